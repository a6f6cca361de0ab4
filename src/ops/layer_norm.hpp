#pragma once
// The norms of the first xLSTM (specification B.2). Their files hold the scale as an offset from 1.
// Statistics are float32.

#include "ops/op.hpp"

namespace xlstm::ops {

/// y = (x - mean) rsqrt(var + eps) (w_offset + w) + b with mean and biased variance over each
/// head's share of a row: one head is LayerNorm, several are GroupNorm of one token.
struct LayerNormArgs {
  Tensor x;  ///< [T, D] f32
  Tensor w;  ///< [D], or empty: factor 1
  Tensor b;  ///< [D] or empty
  std::int64_t heads = 1;
  float eps = 1e-5F;
  float w_offset = 1.0F;
  bool accumulate = false;  ///< y += instead of y =, for f32 alone
  Tensor y;                 ///< [T, D] f32 or bf16; may be x
};
XLSTM_OP(layer_norm, LayerNormArgs)

/// What leaves the mLSTM cell of the first xLSTM (B.3): y = (layer_norm(h) + skip c) silu(z), the
/// norm over each head.
struct SkipGateArgs {
  Tensor h;     ///< [T, D] f32, cell output
  Tensor w;     ///< [D], scale of the norm
  Tensor skip;  ///< [D]
  Tensor c;     ///< [T, D] f32, output of the convolution
  Tensor z;     ///< [T, D] f32, pre-activation of the gate
  std::int64_t heads = 1;
  float eps = 1e-5F;
  float w_offset = 1.0F;
  Tensor y;  ///< [T, D] f32 or bf16; may be h
};
XLSTM_OP(skip_gate, SkipGateArgs)

}  // namespace xlstm::ops
