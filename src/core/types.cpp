// Names of the public enumerations and views.

#include <charconv>

#include "core/check.hpp"
#include "xlstm/device.hpp"
#include "xlstm/dtype.hpp"
#include "xlstm/error.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm {

const char* to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::invalid_file: return "invalid_file";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::io: return "io";
    case ErrorCode::internal: return "internal";
  }
  return "unknown";
}

const char* to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::f16: return "f16";
    case DType::f64: return "f64";
    case DType::i32: return "i32";
    case DType::i64: return "i64";
    case DType::u8: return "u8";
  }
  return "unknown";
}

std::optional<DType> parse_dtype(std::string_view name) noexcept {
  if (name == "f32" || name == "float32") return DType::f32;
  if (name == "bf16" || name == "bfloat16") return DType::bf16;
  if (name == "f16" || name == "float16") return DType::f16;
  if (name == "f64" || name == "float64") return DType::f64;
  if (name == "i32") return DType::i32;
  if (name == "i64") return DType::i64;
  if (name == "u8") return DType::u8;
  return std::nullopt;
}

std::string to_string(Device device) {
  if (device.is_cpu()) return "cpu";
  return fmt::format("cuda:{}", static_cast<int>(device.index));
}

Device parse_device(std::string_view name) {
  if (name == "cpu") return {};
  if (name == "cuda") return {DeviceType::cuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  if (name.starts_with(kPrefix)) {
    const std::string_view digits = name.substr(kPrefix.size());
    int index = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error == std::errc() && end == digits.data() + digits.size() && index >= 0 && index < 64)
      return {DeviceType::cuda, static_cast<std::int8_t>(index)};
  }
  fail(ErrorCode::invalid_argument, "device: expected cpu, cuda or cuda:<index>, found '{}'", name);
}

std::string to_string(const Tensor& tensor) {
  std::string text = std::string(to_string(tensor.dtype)) + "[";
  for (int d = 0; d < tensor.rank; ++d)
    text += fmt::format("{}{}", d == 0 ? "" : ", ", tensor.dim(d));
  return text + "]";
}

}  // namespace xlstm
