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

/// With x^ = (x - mean) r, r = rsqrt(var + eps) and g = d_y (w_offset + w), over each head:
///   d_x (+)= r (g - mean(g) - x^ mean(g x^));  d_w += d_y x^
struct LayerNormBackwardArgs {
  Tensor x;  ///< [T, D] f32
  Tensor w;  ///< [D], or empty: factor 1
  std::int64_t heads = 1;
  float eps = 1e-5F;
  float w_offset = 1.0F;
  Tensor d_y;               ///< [T, D] f32
  bool accumulate = false;  ///< d_x += instead of d_x =
  Tensor d_x;               ///< [T, D] f32; not d_y
  Tensor d_w;               ///< [D] f32, +=; empty if w is
};
XLSTM_OP(layer_norm_backward, LayerNormBackwardArgs)

/// What leaves the mLSTM cell of the first xLSTM (B.3): y = (layer_norm(h) + skip c) silu(z), the
/// norm over each head.
struct SkipGateArgs {
  Tensor h;     ///< [T, D] f32, on a CUDA device also bf16; cell output
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

/// With p = layer_norm(h) + skip c and d_p = d_y silu(z):
///   d_h = the gradient of the norm for d_p;  d_w += d_p h^;  d_skip += d_p c;  d_c = d_p skip
///   d_z = d_y p silu'(z)
struct SkipGateBackwardArgs {
  Tensor h;        ///< [T, D] f32
  Tensor w, skip;  ///< [D]
  Tensor c, z;     ///< [T, D] f32
  std::int64_t heads = 1;
  float eps = 1e-5F;
  float w_offset = 1.0F;
  Tensor d_y;            ///< [T, D] f32
  Tensor d_h, d_c, d_z;  ///< [T, D] f32, written; d_h may be d_y
  Tensor d_w, d_skip;    ///< [D] f32, +=
};
XLSTM_OP(skip_gate_backward, SkipGateBackwardArgs)

}  // namespace xlstm::ops
