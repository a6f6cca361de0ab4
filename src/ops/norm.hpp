#pragma once
// Normalisations (specification A.3). Statistics are float32.

#include "ops/op.hpp"

namespace xlstm::ops {

/// y = x * rsqrt(mean(x^2) + eps) * w + b, per row.
struct RmsNormArgs {
  Tensor x;  ///< [T, D] f32
  Tensor w;  ///< [D]
  Tensor b;  ///< [D] or empty
  float eps = 1e-6F;
  Tensor y;  ///< [T, D] f32 or bf16; may be x
};
XLSTM_OP(rms_norm, RmsNormArgs)

/// Backward of rms_norm(). Sums over rows have one order, whatever the number of threads.
struct RmsNormBackwardArgs {
  Tensor x;  ///< [T, D] f32
  Tensor w;  ///< [D]
  float eps = 1e-6F;
  Tensor d_y;  ///< [T, D] f32
  Tensor d_x;  ///< [T, D] f32, +=
  Tensor d_w;  ///< [D] f32, +=; or empty
  Tensor d_b;  ///< [D] f32, +=; or empty
};
XLSTM_OP(rms_norm_backward, RmsNormBackwardArgs)

/// The norm before the mLSTM layer together with the two gates that read it: 2H dot products ride
/// on a row that is already in registers.
///   u = rms_norm(x);  i = cap(W_i u + b_i);  log_f = log sigmoid(cap(W_f u + b_f))
/// with cap(z) = c tanh(z / c), or z when c == 0. Gates are computed from the unrounded row.
struct RmsNormGatesArgs {
  Tensor x;         ///< [T, D] f32
  Tensor w;         ///< [D]
  Tensor b;         ///< [D] or empty
  Tensor w_i, w_f;  ///< [H, D] each
  Tensor b_i, b_f;  ///< [H] each
  float eps = 1e-6F;
  float cap = 15.0F;           ///< c, 0 = no cap
  Tensor u;                    ///< [T, D] f32 or bf16
  Tensor i;                    ///< [T, H] f32
  Tensor log_f;                ///< [T, H] f32
  bool sigmoid_input = false;  ///< i = log sigmoid(cap(...)), for MlstmGate::sigmoid
};
XLSTM_OP(rms_norm_gates, RmsNormGatesArgs)

/// Backward of rms_norm_gates(), from its results i and log_f.
struct RmsNormGatesBackwardArgs {
  Tensor x;         ///< [T, D] f32
  Tensor w;         ///< [D]
  Tensor b;         ///< [D] or empty
  Tensor w_i, w_f;  ///< [H, D] each
  float eps = 1e-6F;
  float cap = 15.0F;
  bool sigmoid_input = false;
  Tensor i, log_f;      ///< [T, H] f32, results of the forward pass
  Tensor d_i, d_log_f;  ///< [T, H] f32; become the gradients of the gates' pre-activations
  Tensor d_u;           ///< [T, D] f32; gets the gates' share added
  Tensor d_x;           ///< [T, D] f32, +=
  Tensor d_w;           ///< [D] f32, +=
  Tensor d_b;           ///< [D] f32, +=; or empty
  Tensor d_w_i, d_w_f;  ///< [H, D] f32, +=
  Tensor d_b_i, d_b_f;  ///< [H] f32, +=
};
XLSTM_OP(rms_norm_gates_backward, RmsNormGatesBackwardArgs)

/// LayerNorm within each head, then the output gate:
///   y = sigmoid(o) * ((h - mean) * rsqrt(var + eps) * w + b), mean and biased var over dv.
struct HeadNormArgs {
  Tensor h;  ///< [T, H dv] f32; on CUDA also bf16, as o then is too
  Tensor o;  ///< [T, H dv] f32, pre-activation of the output gate
  Tensor w;  ///< [H dv]
  Tensor b;  ///< [H dv] or empty
  std::int64_t heads = 1;
  float eps = 1e-6F;
  Tensor y;  ///< [T, H dv] f32 or bf16; may be h if that has its type
};
XLSTM_OP(head_norm, HeadNormArgs)

/// Backward of head_norm().
struct HeadNormBackwardArgs {
  Tensor h;  ///< [T, H dv] f32
  Tensor o;  ///< [T, H dv] f32
  Tensor w;  ///< [H dv]
  Tensor b;  ///< [H dv] or empty
  std::int64_t heads = 1;
  float eps = 1e-6F;
  Tensor d_y;  ///< [T, H dv] f32
  Tensor d_h;  ///< [T, H dv] f32; may be d_y
  Tensor d_o;  ///< [T, H dv] f32
  Tensor d_w;  ///< [H dv] f32, +=
  Tensor d_b;  ///< [H dv] f32, +=; or empty
};
XLSTM_OP(head_norm_backward, HeadNormBackwardArgs)

}  // namespace xlstm::ops
