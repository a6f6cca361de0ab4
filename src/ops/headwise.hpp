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
  Tensor y;  ///< [T, blocks out] f32; not x
};
XLSTM_OP(headwise_linear, HeadwiseLinearArgs)

}  // namespace xlstm::ops
