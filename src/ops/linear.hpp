#pragma once
// Dense products with weights stored [out, in], as every linear layer has them.

#include <span>

#include "ops/op.hpp"

namespace xlstm::ops {

/// y = x W^T + b + beta y, float32 accumulation. W may consist of several row blocks (a group: q,
/// k, v, o) whose outputs lie side by side in y. Up to 16 rows of x use kernels with one summation
/// order, so a row's result does not depend on how many rows there are.
struct LinearArgs {
  Tensor x;                   ///< [T, K] f32 or bf16
  std::span<const Tensor> w;  ///< each [N_i, K] f32, bf16 or f16
  std::span<const Tensor> b;  ///< empty, or one [N_i] each
  Tensor y;                   ///< [T, sum N_i] f32
  bool accumulate = false;    ///< y += instead of y =
};
XLSTM_OP(linear, LinearArgs)

}  // namespace xlstm::ops
