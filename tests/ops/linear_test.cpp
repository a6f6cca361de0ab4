#include "ops/linear.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "core/convert.hpp"
#include "core/cpu_features.hpp"
#include "test_device.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Restores the instruction set that was active.
class ActiveIsa {
 public:
  explicit ActiveIsa(Isa isa) : before_(active_isa()) { set_active_isa(isa); }
  ~ActiveIsa() { set_active_isa(before_); }

 private:
  Isa before_;
};

// Numbers in a dtype, rows `stride` apart.
struct Matrix {
  Matrix(std::int64_t rows, std::int64_t columns, DType dtype, std::int64_t padding = 0)
      : stride(columns + padding),
        storage(static_cast<std::size_t>(std::max<std::int64_t>(rows * stride, 1)) *
                size_of(dtype)),
        tensor(Tensor::dense(storage.data(), dtype, {rows, columns})) {
    tensor.stride[0] = stride;
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  void set(std::int64_t r, std::int64_t c, float value) {
    const std::int64_t i = r * stride + c;
    if (tensor.dtype == DType::f32) {
      tensor.as<float>()[i] = value;
    } else if (tensor.dtype == DType::bf16) {
      tensor.as<std::uint16_t>()[i] = f32_to_bf16(value);
    } else {  // only NaN: fill_normal() draws patterns of bits instead
      ASSERT_TRUE(std::isnan(value));
      tensor.as<std::uint16_t>()[i] = 0x7E00;
    }
  }
  float get(std::int64_t r, std::int64_t c) const { return load_f32(tensor, r * stride + c); }
  void fill_normal(std::mt19937& random) {
    std::normal_distribution<float> normal;
    if (tensor.dtype == DType::f16) {  // any finite pattern below 2 is a valid number
      std::uniform_int_distribution<int> bits(0, 0x3FFF);
      for (std::int64_t i = 0; i < tensor.dim(0) * stride; ++i)
        tensor.as<std::uint16_t>()[i] =
            static_cast<std::uint16_t>(bits(random) | ((bits(random) & 1) << 15));
      return;
    }
    for (std::int64_t r = 0; r < tensor.dim(0); ++r)
      for (std::int64_t c = 0; c < stride; ++c) set(r, c, normal(random));
  }
  void fill(float value) {
    for (std::int64_t r = 0; r < tensor.dim(0); ++r)
      for (std::int64_t c = 0; c < stride; ++c) set(r, c, value);
  }

  std::int64_t stride;
  std::vector<std::byte> storage;
  Tensor tensor;
};

void run(Context& context, const LinearArgs& args) {
  context.start_measuring();
  linear(context, args);
  context.finish_measuring();
  linear(context, args);
}

void run(const LinearArgs& args, int threads = 2) {
  Context context(test_device(), threads);
  run(context, args);
}

// Largest error of any output over the sum of its terms' magnitudes: of `y`, and of a plain float32
// loop over the same numbers.
struct Errors {
  double ours = 0;
  double naive = 0;
};
void compare(const Matrix& x, const Matrix& w, const Matrix* bias, const Matrix* before,
             const Tensor& y, Errors& errors) {
  for (std::int64_t t = 0; t < x.tensor.dim(0); ++t) {
    for (std::int64_t n = 0; n < w.tensor.dim(0); ++n) {
      double sum = 0;
      double magnitude = std::numeric_limits<double>::min();
      float naive = 0;
      auto add = [&](float a, float b) {
        sum += static_cast<double>(a) * b;
        magnitude += std::fabs(static_cast<double>(a) * b);
        const float product = a * b;
        naive += product;
      };
      for (std::int64_t k = 0; k < x.tensor.dim(1); ++k) add(x.get(t, k), w.get(n, k));
      if (before != nullptr) add(before->get(t, n), 1.0F);
      if (bias != nullptr) add(bias->get(0, n), 1.0F);
      errors.ours = std::max(errors.ours, std::fabs(y.row<float>(t)[n] - sum) / magnitude);
      errors.naive = std::max(errors.naive, std::fabs(naive - sum) / magnitude);
    }
  }
}

// A plain loop's error for this depth and these dtypes, over enough dot products to be no accident.
double naive_error(std::int64_t k, DType x_dtype, DType w_dtype) {
  static std::map<std::tuple<std::int64_t, DType, DType>, double> known;
  double& error = known[{k, x_dtype, w_dtype}];
  if (error == 0) {
    std::mt19937 random(7);
    Matrix x(40, k, x_dtype), w(40, k, w_dtype), y(40, 40, DType::f32), b(1, 40, DType::f32);
    for (Matrix* m : {&x, &w, &y, &b}) m->fill_normal(random);
    Errors errors;
    compare(x, w, &b, &y, y.tensor, errors);
    error = errors.naive;
  }
  return error;
}

constexpr DType kXTypes[] = {DType::f32, DType::bf16};
constexpr DType kWTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr std::int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 17, 40};

class LinearOnIsa : public testing::TestWithParam<Isa> {};

TEST_P(LinearOnIsa, IsAsExactAsAPlainLoop) {
  const ActiveIsa isa(GetParam());
  std::mt19937 random(1);
  for (const DType x_dtype : kXTypes) {
    for (const DType w_dtype : kWTypes) {
      for (const std::int64_t k : {1, 7, 33, 64, 300, 1111}) {
        // The sums of tensor cores cut off what float arithmetic rounds.
        const bool cuts = !test_device().is_cpu() && x_dtype == w_dtype && x_dtype == DType::bf16;
        const double bound = (cuts ? 4 : 2) * naive_error(k, x_dtype, w_dtype);
        for (const std::int64_t n : {1, 5, 18}) {
          for (const std::int64_t t : kRows) {
            Matrix x(t, k, x_dtype, 3), w(n, k, w_dtype), y(t, n, DType::f32, 2);
            x.fill_normal(random);
            w.fill_normal(random);
            y.fill(kNaN);  // nobody may read it
            run({.x = x.tensor, .w = {&w.tensor, 1}, .b = {}, .y = y.tensor}, n == 18 ? 2 : 1);
            Errors errors;
            compare(x, w, nullptr, nullptr, y.tensor, errors);
            EXPECT_LE(errors.ours, bound)
                << "x " << to_string(x.tensor) << " w " << to_string(w.tensor);
            for (std::int64_t r = 0; r < t; ++r)  // and nobody may write past it
              EXPECT_TRUE(std::isnan(y.get(r, n)) && std::isnan(y.get(r, n + 1)));
          }
        }
      }
    }
  }
}

TEST_P(LinearOnIsa, AddsBiasAndWhatWasThere) {
  const ActiveIsa isa(GetParam());
  std::mt19937 random(2);
  for (const DType b_dtype : kWTypes) {
    for (const std::int64_t t : {1, 5, 16, 33}) {
      const std::int64_t k = 77;
      const std::int64_t n = 9;
      Matrix x(t, k, DType::f32), w(n, k, DType::bf16), b(1, n, b_dtype), y(t, n, DType::f32),
          before(t, n, DType::f32);
      for (Matrix* m : {&x, &w, &b, &before}) m->fill_normal(random);
      const Tensor bias = Tensor::dense(b.tensor.data, b_dtype, {n});
      for (const bool accumulate : {false, true}) {
        y.storage = before.storage;
        y.tensor.data = y.storage.data();
        run({.x = x.tensor,
             .w = {&w.tensor, 1},
             .b = {&bias, 1},
             .y = y.tensor,
             .accumulate = accumulate});
        Errors errors;
        compare(x, w, &b, accumulate ? &before : nullptr, y.tensor, errors);
        EXPECT_LE(errors.ours, 2 * naive_error(k, DType::f32, DType::bf16));
      }
    }
  }
}

// The bits of a row of x depend neither on the rows beside it, nor on threads, nor on how the rows
// of W are grouped.
TEST_P(LinearOnIsa, ARowHasTheSameBitsInAnyBatchThreadCountAndGroup) {
  const ActiveIsa isa(GetParam());
  std::mt19937 random(3);
  for (const DType x_dtype : kXTypes) {
    for (const DType w_dtype : kWTypes) {
      for (const std::int64_t k : {33, 2100}) {
        const std::int64_t n = 43;
        Matrix x(16, k, x_dtype), w(n, k, w_dtype), alone(16, n, DType::f32);
        x.fill_normal(random);
        w.fill_normal(random);
        for (std::int64_t t = 0; t < 16; ++t)
          run({.x = x.tensor.rows(t, 1),
               .w = {&w.tensor, 1},
               .b = {},
               .y = alone.tensor.rows(t, 1)},
              1);
        const std::vector<Tensor> group = {w.tensor.rows(0, 1), w.tensor.rows(1, 17),
                                           w.tensor.rows(18, 6), w.tensor.rows(24, n - 24)};
        for (std::int64_t t = 1; t <= 16; ++t) {
          for (const int threads : {1, 2, 3}) {
            for (const bool grouped : {false, true}) {
              Matrix y(t, n, DType::f32);
              y.fill(kNaN);
              const std::span<const Tensor> weights =
                  grouped ? std::span<const Tensor>(group) : std::span<const Tensor>(&w.tensor, 1);
              // the last rows of x, so that a row is not always at the same place
              run({.x = x.tensor.rows(16 - t, t), .w = weights, .b = {}, .y = y.tensor}, threads);
              EXPECT_EQ(0, std::memcmp(y.tensor.data, alone.tensor.row<float>(16 - t),
                                       static_cast<std::size_t>(t * n) * sizeof(float)))
                  << to_string(x_dtype) << " x " << to_string(w_dtype) << ", K " << k << ", rows "
                  << t << ", threads " << threads << (grouped ? ", grouped" : "");
            }
          }
        }
      }
    }
  }
}

TEST_P(LinearOnIsa, NanStaysInItsRowAndColumn) {
  const ActiveIsa isa(GetParam());
  std::mt19937 random(4);
  for (const DType x_dtype : kXTypes) {
    for (const DType w_dtype : kWTypes) {
      for (const std::int64_t t : {2, 7, 16, 40}) {
        const std::int64_t k = 45;
        const std::int64_t n = 23;
        Matrix x(t, k, x_dtype), w(n, k, w_dtype), y(t, n, DType::f32);
        x.fill_normal(random);
        w.fill_normal(random);
        x.set(1, k - 1, kNaN);
        w.set(n - 2, 3, kNaN);
        run({.x = x.tensor, .w = {&w.tensor, 1}, .b = {}, .y = y.tensor});
        for (std::int64_t r = 0; r < t; ++r)
          for (std::int64_t c = 0; c < n; ++c)
            EXPECT_EQ(std::isnan(y.get(r, c)), r == 1 || c == n - 2)
                << to_string(x_dtype) << " x " << to_string(w_dtype) << " row " << r << " of " << t
                << " column " << c;
      }
    }
  }
}

// Weights of several dtypes in one group, as a checkpoint may have them.
TEST_P(LinearOnIsa, AGroupMayMixDtypes) {
  const ActiveIsa isa(GetParam());
  std::mt19937 random(5);
  const std::int64_t k = 130;
  for (const DType x_dtype : kXTypes) {
    for (const std::int64_t t : {1, 9, 25}) {
      Matrix x(t, k, x_dtype), a(7, k, DType::f32), b(6, k, DType::bf16), c(5, k, DType::f16),
          y(t, 18, DType::f32);
      for (Matrix* m : {&x, &a, &b, &c}) m->fill_normal(random);
      const Tensor group[] = {a.tensor, b.tensor, c.tensor};
      run({.x = x.tensor, .w = group, .b = {}, .y = y.tensor});
      Errors errors;
      compare(x, a, nullptr, nullptr, y.tensor.cols(0, 7), errors);
      compare(x, b, nullptr, nullptr, y.tensor.cols(7, 6), errors);
      compare(x, c, nullptr, nullptr, y.tensor.cols(13, 5), errors);
      EXPECT_LE(errors.ours, 2 * naive_error(k, x_dtype, DType::f16));
    }
  }
}

// On CUDA once: no kernel there asks what the CPU has.
std::vector<Isa> tested_isas() {
  if (test_device().is_cpu()) return available_isas();
  return {active_isa()};
}

INSTANTIATE_TEST_SUITE_P(AllIsas, LinearOnIsa, testing::ValuesIn(tested_isas()),
                         [](const auto& isa) { return std::string(to_string(isa.param)); });

TEST(Linear, MeasuringWithManyRowsServesFewer) {
  std::mt19937 random(6);
  Context context(test_device(), 2);
  Matrix x(600, 65, DType::bf16), w(30, 65, DType::bf16), y(600, 30, DType::f32);
  x.fill_normal(random);
  w.fill_normal(random);
  auto call = [&](std::int64_t t) {
    linear(context,
           {.x = x.tensor.rows(0, t), .w = {&w.tensor, 1}, .b = {}, .y = y.tensor.rows(0, t)});
  };
  context.start_measuring();
  call(600);
  context.finish_measuring();
  for (const std::int64_t t : {600, 1, 16, 17, 0}) EXPECT_NO_THROW(call(t)) << t;
}

TEST(Linear, RefusesArgumentsThatDoNotFit) {
  Context context(test_device());
  Matrix x(2, 8, DType::f32), w(4, 8, DType::bf16), y(2, 4, DType::f32), narrow(4, 7, DType::bf16),
      short_y(2, 3, DType::f32), integers(4, 8, DType::f32);
  integers.tensor.dtype = DType::i32;
  const Tensor bias = Tensor::dense(y.storage.data(), DType::f32, {3});
  auto code = [&](const LinearArgs& args) {
    try {
      linear(context, args);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::internal;
  };
  const Tensor f16_x = Tensor::dense(x.storage.data(), DType::f16, {2, 8});
  EXPECT_EQ(code({.x = x.tensor, .w = {&narrow.tensor, 1}, .b = {}, .y = y.tensor}),
            ErrorCode::invalid_argument);
  EXPECT_EQ(code({.x = x.tensor, .w = {&integers.tensor, 1}, .b = {}, .y = y.tensor}),
            ErrorCode::invalid_argument);
  EXPECT_EQ(code({.x = x.tensor, .w = {&w.tensor, 1}, .b = {}, .y = short_y.tensor}),
            ErrorCode::invalid_argument);
  EXPECT_EQ(code({.x = f16_x, .w = {&w.tensor, 1}, .b = {}, .y = y.tensor}),
            ErrorCode::invalid_argument);
  EXPECT_EQ(code({.x = x.tensor, .w = {&w.tensor, 1}, .b = {&bias, 1}, .y = y.tensor}),
            ErrorCode::invalid_argument);
  EXPECT_EQ(code({.x = x.tensor, .w = {}, .b = {}, .y = y.tensor}), ErrorCode::invalid_argument);
}

}  // namespace
}  // namespace xlstm::ops
