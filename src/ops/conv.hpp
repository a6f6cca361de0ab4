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

/// With s the sum of the forward pass and d_s = d_y act'(s):
///   d_x_t += sum_r w[:, r] d_s_(t + K - 1 - r);  d_w[:, r] += sum_t d_s_t x_(t - (K - 1) + r)
///   d_b += sum_t d_s_t
struct CausalConvBackwardArgs {
  Tensor x;                             ///< [T, C] f32
  Tensor w;                             ///< [C, 1, K]
  Tensor b;                             ///< [C] or empty
  const Batch& batch;                   ///< slots: records before the forward pass, read only
  std::size_t window = 0;               ///< of the records in both batch.slots and d_slots
  std::span<std::byte* const> d_slots;  ///< empty, or one per sequence (batch.hpp)
  bool silu = true;
  Tensor d_y;  ///< [T, C] f32; becomes d_s
  Tensor d_x;  ///< [T, C] f32, +=; not x, not d_y
  Tensor d_w;  ///< [C, 1, K] f32, +=
  Tensor d_b;  ///< [C] f32, +=; may be empty
};
XLSTM_OP(causal_conv_backward, CausalConvBackwardArgs)

}  // namespace xlstm::ops
