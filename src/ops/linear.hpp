#pragma once
// Dense products with weights stored [out, in], as every linear layer has them.

#include <span>

#include "ops/op.hpp"
#include "ops/packed.hpp"

namespace xlstm::ops {

/// y = x W^T + b + beta y, float32 accumulation. W may consist of several row blocks (a group: q,
/// k, v, o) whose outputs lie side by side in y. Up to 16 rows of x use kernels with one summation
/// order, so a row's result does not depend on how many rows there are.
struct LinearArgs {
  Tensor x;                   ///< [T, K] f32 or bf16
  std::span<const Tensor> w;  ///< each [N_i, K] f32, bf16 or f16
  std::span<const Tensor> b;  ///< empty, or one [N_i] each
  Tensor y;                   ///< [T, sum N_i] f32; on CUDA also bf16
  bool accumulate = false;    ///< y += instead of y =
  /// Empty, or w packed, which kernels that can read in its place: the same numbers, whose sums may
  /// have another order. Then w may be without memory; where no kernel reads packed weights of
  /// these shapes and types (ops::reads_packed(), x in bf16, N_i and K multiples of 8) that is an
  /// error.
  std::span<const PackedWeights> packed = {};
};
XLSTM_OP(linear, LinearArgs)

/// y = silu(x W_0^T + b_0) (x W_1^T + b_1): linear() and swiglu(), in one kernel where there is
/// one.
struct LinearSwigluArgs {
  Tensor x;                                    ///< [T, K] f32 or bf16
  std::span<const Tensor> w;                   ///< of the gate and of what it gates, [F, K] each
  std::span<const Tensor> b;                   ///< empty, or two [F]
  Tensor y;                                    ///< [T, F] f32 or bf16
  std::span<const PackedWeights> packed = {};  ///< as in LinearArgs
};
XLSTM_OP(linear_swiglu, LinearSwigluArgs)

/// The ops that it stands for, on any device, some rows at a time; scratch for them is what
/// linear_swiglu_workspace() counts.
namespace composed {
void linear_swiglu(Context& context, const LinearSwigluArgs& args);
}

/// d_x (+)= d_y W, d_w += d_y^T x, d_b += column sums of d_y, float32 accumulation. Sums have one
/// order for a given number of threads. If x and all W are bf16, d_y is rounded to bf16 for the
/// products (not for d_b); otherwise the arithmetic is f32.
struct LinearBackwardArgs {
  Tensor x;                          ///< [T, K] f32 or bf16; empty if d_w is
  std::span<const Tensor> w;         ///< each [N_i, K] f32, bf16 or f16, as in linear()
  Tensor d_y;                        ///< [T, sum N_i] f32
  Tensor d_x;                        ///< [T, K] f32, over all blocks; empty: not wanted
  bool accumulate = false;           ///< d_x += instead of d_x =
  std::span<const Tensor> d_w = {};  ///< empty, or each [N_i, K] f32, +=
  std::span<const Tensor> d_b = {};  ///< empty, or each [N_i] f32, +=
};
XLSTM_OP(linear_backward, LinearBackwardArgs)

}  // namespace xlstm::ops
