#pragma once
// Element types of tensors.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace xlstm {

enum class DType : std::uint8_t { f32, bf16, f16, f64, i32, i64, u8 };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::u8: return 1;
  }
  return 0;
}

/// True for the types a weight or an activation may have (f32, bf16, f16).
constexpr bool is_weight_dtype(DType dtype) noexcept {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

/// "f32", "bf16", ...
const char* to_string(DType dtype) noexcept;

/// Inverse of to_string; also reads "float32", "bfloat16" and "float16". Empty if unknown.
std::optional<DType> parse_dtype(std::string_view name) noexcept;

}  // namespace xlstm
