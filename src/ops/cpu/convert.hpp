#pragma once
// Single values between dtypes, for borders and biases; kernels convert whole vectors.

#include <bit>
#include <cmath>
#include <cstdint>

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cpu {

inline float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Rounds to nearest, ties to even; NaN stays NaN.
inline std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

inline float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
  const float subnormal = std::ldexp(static_cast<float>(mantissa), -24);
  return sign != 0 ? -subnormal : subnormal;
}

/// Element `i` of the memory of an f32, bf16 or f16 tensor.
inline float load_f32(const Tensor& t, std::int64_t i) {
  switch (t.dtype) {
    case DType::bf16: return bf16_to_f32(t.as<std::uint16_t>()[i]);
    case DType::f16: return f16_to_f32(t.as<std::uint16_t>()[i]);
    default: return t.as<float>()[i];
  }
}

}  // namespace xlstm::ops::cpu
