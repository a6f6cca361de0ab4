#pragma once
// Products of 8-bit floating point numbers (e4m3: a sign, 4 bits of exponent, 3 of mantissa) with a
// float32 scale for every row of both matrices.

#include <span>

#include "ops/op.hpp"

namespace xlstm::ops {

/// A matrix whose row r is scales[r] times what the codes say.
struct E4m3Matrix {
  Tensor codes;   ///< [R, C] u8; fastest where rows begin at multiples of 16 bytes
  Tensor scales;  ///< [R] f32

  explicit operator bool() const noexcept { return static_cast<bool>(codes); }
  E4m3Matrix rows(std::int64_t begin, std::int64_t n) const noexcept {
    return {codes.rows(begin, n), scales.rows(begin, n)};
  }
};

/// Largest of a row becomes 448, the largest number of e4m3, and all others the nearest multiple;
/// a row whose largest is below 1e-30 is 0. NaN stays in its place, infinity makes its row NaN.
struct QuantiseE4m3Args {
  Tensor x;      ///< [R, C] f32, bf16 or f16
  E4m3Matrix y;  ///< [R, C]
};
XLSTM_OP(quantise_e4m3, QuantiseE4m3Args)

/// linear() of such matrices: y (+)= x W^T + b with sums in float32; on tensor cores of capability
/// 9.0 they keep about 14 bits.
struct LinearE4m3Args {
  E4m3Matrix x;                   ///< [T, K]
  std::span<const E4m3Matrix> w;  ///< each [N_i, K], at most 4
  std::span<const Tensor> b;      ///< empty, or one [N_i] each
  Tensor y;                       ///< [T, sum N_i] f32; on CUDA also bf16
  bool accumulate = false;        ///< y += instead of y =
};
XLSTM_OP(linear_e4m3, LinearE4m3Args)

/// linear_swiglu() of such matrices.
struct LinearSwigluE4m3Args {
  E4m3Matrix x;                   ///< [T, K]
  std::span<const E4m3Matrix> w;  ///< of the gate and of what it gates, [F, K] each
  std::span<const Tensor> b;      ///< empty, or two [F]
  Tensor y;                       ///< [T, F] f32 or bf16
};
XLSTM_OP(linear_swiglu_e4m3, LinearSwigluE4m3Args)

/// The most weights of a product.
inline constexpr std::size_t kMostE4m3Weights = 4;

/// linear_swiglu_e4m3() by other ops, on any device.
namespace composed {
void linear_swiglu_e4m3(Context& context, const LinearSwigluE4m3Args& args);
}

}  // namespace xlstm::ops
