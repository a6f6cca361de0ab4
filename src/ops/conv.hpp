#pragma once
// The causal convolution of the first xLSTM's blocks (specification B.2).

#include "ops/batch.hpp"
#include "ops/op.hpp"

namespace xlstm::ops {

/// y_t = act(b + sum_r w[:, r] x_{t - (K - 1) + r}) per channel, for every sequence of a ragged
/// batch behind the window of inputs that its record holds; act is SiLU or nothing.
struct CausalConvArgs {
  Tensor x;  ///< [T, C] f32
  Tensor w;  ///< [C, 1, K], the last tap multiplies the current token
  Tensor b;  ///< [C] or empty
  const Batch& batch;
  /// Bytes from a record's start to its last K - 1 inputs, [K - 1, C] f32, oldest first; in and
  /// out.
  std::size_t window = 0;
  bool silu = true;
  Tensor y;  ///< [T, C] f32; not x
};
XLSTM_OP(causal_conv, CausalConvArgs)

}  // namespace xlstm::ops
