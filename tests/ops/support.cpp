#include "ops/support.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/cuda_device.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops::test {
namespace {

std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7FC0;
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::uint16_t to_f16(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | 0x7E00;
  const double magnitude = std::abs(value);
  if (magnitude == 0) return sign;
  if (magnitude >= 65520) return sign | 0x7C00;
  const int exponent = std::max(std::ilogb(magnitude), -14);
  const double units = std::nearbyint(std::ldexp(magnitude, 10 - exponent));
  return static_cast<std::uint16_t>(sign + ((exponent + 14) << 10) + static_cast<int>(units));
}

double from_f16(std::uint16_t half) {
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  double value =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) value = mantissa != 0 ? NAN : INFINITY;
  return (half & 0x8000) != 0 ? -value : value;
}

}  // namespace

double rounded(DType dtype, double value) {
  if (dtype == DType::f32) return static_cast<float>(value);
  if (dtype == DType::bf16) return from_bf16(to_bf16(static_cast<float>(value)));
  return from_f16(to_f16(value));
}

std::vector<double> rounded(DType dtype, std::vector<double> values) {
  for (double& value : values) value = rounded(dtype, value);
  return values;
}

Array::Array(DType dtype, std::vector<std::int64_t> shape, std::int64_t gap)
    : dtype_(dtype),
      shape_(std::move(shape)),
      rows_(shape_.size() == 2 ? shape_[0] : 1),
      columns_(shape_.back()),
      stride_(columns_ + gap),
      data_(static_cast<std::size_t>(rows_ * stride_) * size_of(dtype)) {
  poison();
}

Array Array::random(std::mt19937& random, DType dtype, std::vector<std::int64_t> shape,
                    double scale, double mean, std::int64_t gap) {
  Array array(dtype, std::move(shape), gap);
  std::normal_distribution<double> normal(mean, scale);
  for (std::int64_t r = 0; r < array.rows_; ++r)
    for (std::int64_t c = 0; c < array.columns_; ++c) array.set(r, c, normal(random));
  return array;
}

Array Array::of(DType dtype, std::vector<std::int64_t> shape, const std::vector<double>& values,
                std::int64_t gap) {
  Array array(dtype, std::move(shape), gap);
  for (std::int64_t r = 0; r < array.rows_; ++r)
    for (std::int64_t c = 0; c < array.columns_; ++c)
      array.set(r, c, values.at(static_cast<std::size_t>(r * array.columns_ + c)));
  return array;
}

std::size_t Array::offset(std::int64_t row, std::int64_t column) const {
  return static_cast<std::size_t>(row * stride_ + column) * size_of(dtype_);
}

Tensor Array::tensor() {
  Tensor t;
  t.data = data_.data();
  t.dtype = dtype_;
  t.rank = static_cast<std::int8_t>(shape_.size());
  for (std::size_t d = 0; d < shape_.size(); ++d) t.size[d] = shape_[d];
  t.stride[shape_.size() - 1] = 1;
  if (shape_.size() == 2) t.stride[0] = stride_;
  t.device = test_device();
  return t;
}

void Array::set(std::int64_t row, std::int64_t column, double value) {
  std::byte* at = data_.data() + offset(row, column);
  if (dtype_ == DType::f32) {
    const auto single = static_cast<float>(value);
    std::memcpy(at, &single, 4);
  } else {
    const std::uint16_t half =
        dtype_ == DType::bf16 ? to_bf16(static_cast<float>(value)) : to_f16(value);
    std::memcpy(at, &half, 2);
  }
}

std::vector<double> Array::values() const {
  std::vector<double> result;
  for (std::int64_t r = 0; r < rows_; ++r)
    for (std::int64_t c = 0; c < columns_; ++c) {
      const std::byte* at = data_.data() + offset(r, c);
      if (dtype_ == DType::f32) {
        float single;
        std::memcpy(&single, at, 4);
        result.push_back(single);
      } else {
        std::uint16_t half;
        std::memcpy(&half, at, 2);
        result.push_back(dtype_ == DType::bf16 ? from_bf16(half) : from_f16(half));
      }
    }
  return result;
}

std::vector<float> Array::floats() const {
  const std::vector<double> all = values();
  return {all.begin(), all.end()};
}

std::vector<std::byte> Array::bytes() const {
  std::vector<std::byte> result;
  for (std::int64_t r = 0; r < rows_; ++r)
    result.insert(result.end(), data_.begin() + static_cast<std::ptrdiff_t>(offset(r, 0)),
                  data_.begin() + static_cast<std::ptrdiff_t>(offset(r, columns_)));
  return result;
}

void Array::poison() { std::fill(data_.begin(), data_.end(), std::byte{0xFF}); }

bool Array::gaps_untouched() const {
  for (std::int64_t r = 0; r < rows_; ++r)
    for (std::size_t at = offset(r, columns_); at < offset(r, stride_); ++at)
      if (data_[at] != std::byte{0xFF}) return false;
  return true;
}

void poison_scratch(Context& context) {
  const ArenaScope scope(context.arena());
  const std::size_t bytes = context.arena().capacity();
  if (bytes == 0) return;
  std::byte* memory = context.arena().take(bytes);
  const std::vector<std::byte> poison(bytes, std::byte{0xFF});
  if (context.device().is_cpu())
    std::memcpy(memory, poison.data(), bytes);
  else
    cuda::copy(memory, poison.data(), bytes, context.stream(), context.device());
  context.synchronize();
}

void for_each_isa(const std::function<void()>& body) {
  if (!test_device().is_cpu()) return body();
  for (Isa isa : available_isas()) {
    SCOPED_TRACE(to_string(isa));
    set_active_isa(isa);
    body();
  }
  set_active_isa(detected_isa());
}

double max_error(const std::vector<double>& got, const std::vector<double>& want) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (got.size() != want.size()) return kInfinity;
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) != std::isnan(want[i])) return kInfinity;
    if (got[i] == want[i] || std::isnan(want[i])) continue;  // also equal infinities
    worst = std::max(worst, std::abs(got[i] - want[i]));
  }
  return worst;
}

double max_abs(const std::vector<double>& values) {
  double most = 0;
  for (double value : values)
    if (std::isfinite(value)) most = std::max(most, std::abs(value));
  return most;
}

void Errors::add(const std::vector<double>& got, const std::vector<double>& want,
                 const std::vector<float>& naive, DType dtype) {
  ++cases_;
  const double scale = max_abs(want) > 0 ? max_abs(want) : 1;
  engine_ = std::max(engine_, max_error(got, want) / scale);
  naive_ = std::max(naive_, max_error(rounded(dtype, {naive.begin(), naive.end()}), want) / scale);
}

void Errors::expect_at_most_twice_naive(const char* what) const {
  EXPECT_GT(cases_, 0) << what;
  EXPECT_LT(naive_, 0.1) << what;
  EXPECT_LE(engine_, 2 * naive_) << what;
}

void expect_refused(const std::function<void()>& call, const std::string& text) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown; expected: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

}  // namespace xlstm::ops::test
