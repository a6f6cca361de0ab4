#pragma once
// Products of 8-bit floating point numbers (e4m3: a sign, 4 bits of exponent, 3
// of mantissa) with float32 scales for rows or parts of rows of both matrices.

#include <array>
#include <cstdint>
#include <span>

#include "ops/op.hpp"

namespace xlstm::ops {

/// What has a scale of its own.
enum class E4m3Scales : std::uint8_t {
  rows,   ///< each row: scales [R]
  runs,   ///< of activations, 128 numbers of a row: [C / 128, R], the last run
          ///< shorter
  blocks  ///< of weights, 128 x 128: [R / 128, C / 128], the last ones smaller
};
inline constexpr std::int64_t kE4m3Run = 128;
/// Where the largest number is below this, all become 0.
inline constexpr float kLeastE4m3 = 1e-30F;

/// A matrix whose numbers are what the codes say times a scale.
struct E4m3Matrix {
  Tensor codes;   ///< [R, C] u8; fastest where rows begin at multiples of 16 bytes
  Tensor scales;  ///< f32
  E4m3Scales kind = E4m3Scales::rows;

  explicit operator bool() const noexcept { return static_cast<bool>(codes); }
  /// Not of blocks.
  E4m3Matrix rows(std::int64_t begin, std::int64_t n) const noexcept {
    return {codes.rows(begin, n),
            kind == E4m3Scales::rows ? scales.rows(begin, n) : scales.cols(begin, n), kind};
  }
  /// Steps in `scales` from a row (of blocks, 128 rows) to the next, and from a
  /// run to the next.
  std::int64_t row_step() const noexcept {
    return kind == E4m3Scales::blocks ? scales.row_stride() : 1;
  }
  std::int64_t run_step() const noexcept {
    return kind == E4m3Scales::rows ? 0 : kind == E4m3Scales::runs ? scales.row_stride() : 1;
  }
};

/// Shape of the scales of a matrix [rows, columns]; the second size is 0 where
/// there is but one.
std::array<std::int64_t, 2> e4m3_scales_shape(E4m3Scales kind, std::int64_t rows,
                                              std::int64_t columns);

/// The largest of what shares a scale becomes 448, the largest number of e4m3,
/// and all others the nearest multiple; where it is below kLeastE4m3 all are 0. NaN
/// stays in its place, infinity makes all that shares its scale NaN.
struct QuantiseE4m3Args {
  Tensor x;      ///< [R, C] f32, bf16 or f16
  E4m3Matrix y;  ///< [R, C]
};
XLSTM_OP(quantise_e4m3, QuantiseE4m3Args)

/// linear() of such matrices: y (+)= x W^T + b with sums in float32. On tensor
/// cores of capability 9.0 sums keep about 14 bits, with blocks those of each
/// 128 of K alone.
struct LinearE4m3Args {
  E4m3Matrix x;                   ///< [T, K], scales for rows, or for runs where w has blocks
  std::span<const E4m3Matrix> w;  ///< each [N_i, K], at most 4; scales for rows or blocks
  std::span<const Tensor> b;      ///< empty, or one [N_i] each
  Tensor y;                       ///< [T, sum N_i] f32; on CUDA also bf16
  bool accumulate = false;        ///< y += instead of y =
};
XLSTM_OP(linear_e4m3, LinearE4m3Args)

/// linear_swiglu() of such matrices. What lies between a row of `coded` and the next multiple of 16
/// bytes may change.
struct LinearSwigluE4m3Args {
  E4m3Matrix x;                   ///< [T, K]
  std::span<const E4m3Matrix> w;  ///< of the gate and of what it gates, [F, K] each
  std::span<const Tensor> b;      ///< empty, or two [F]
  Tensor y;                       ///< [T, F] f32 or bf16; or empty:
  E4m3Matrix coded = {};          ///< [T, F] with scales for runs
};
XLSTM_OP(linear_swiglu_e4m3, LinearSwigluE4m3Args)

/// The most weights of a product.
inline constexpr std::size_t kMostE4m3Weights = 4;

/// linear_swiglu_e4m3() by other ops, on any device.
namespace composed {
void linear_swiglu_e4m3(Context& context, const LinearSwigluE4m3Args& args);
}

}  // namespace xlstm::ops
