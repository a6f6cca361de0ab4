#pragma once
// Block-diagonal products: every head, or group of features, has a matrix of its own
// (specification B.2, "headwise linear").

#include "ops/op.hpp"

namespace xlstm::ops {

/// y_b = W_b x_b (+ b) for every block b of features.
struct HeadwiseLinearArgs {
  Tensor x;  ///< [T, blocks in] f32
  Tensor w;  ///< [blocks, out, in]
  Tensor b;  ///< [blocks out] or empty
  Tensor y;  ///< [T, blocks out] f32, on a CUDA device also bf16; not x
};
XLSTM_OP(headwise_linear, HeadwiseLinearArgs)

/// d_x_b (+)= W_b^T d_y_b, d_W_b += d_y_b^T x_b, d_b += column sums of d_y.
struct HeadwiseLinearBackwardArgs {
  Tensor x;                 ///< [T, blocks in] f32
  Tensor w;                 ///< [blocks, out, in]
  Tensor d_y;               ///< [T, blocks out] f32
  Tensor d_x;               ///< [T, blocks in] f32; not d_y
  bool accumulate = false;  ///< d_x += instead of d_x =
  Tensor d_w;               ///< [blocks, out, in] f32, +=
  Tensor d_b;               ///< [blocks out] f32, +=; may be empty
};
XLSTM_OP(headwise_linear_backward, HeadwiseLinearBackwardArgs)

}  // namespace xlstm::ops
