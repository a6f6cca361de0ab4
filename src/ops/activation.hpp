#pragma once
// Element-wise functions.

#include <cstdint>

#include "ops/op.hpp"

namespace xlstm::ops {

/// y = silu(gate) * up (the middle of SwiGLU)
struct SwigluArgs {
  Tensor gate, up;  ///< [T, F] f32
  Tensor y;         ///< [T, F] f32 or bf16
};
XLSTM_OP(swiglu, SwigluArgs)

/// d_up = d_y silu(gate), d_gate = d_y up silu'(gate)
struct SwigluBackwardArgs {
  Tensor gate, up;  ///< [T, F] f32
  Tensor d_y;       ///< [T, F] f32
  Tensor d_gate;    ///< [T, F] f32; may be gate
  Tensor d_up;      ///< [T, F] f32; may be up
};
XLSTM_OP(swiglu_backward, SwigluBackwardArgs)

/// The functions of gated feed-forward layers (specification B.1, `act_fn`).
enum class Activation : std::uint8_t { gelu, relu, relu2, sigmoid, silu };

/// y = act(gate) * up; GELU is the exact one, x Phi(x)
struct GatedActivationArgs {
  Tensor gate, up;  ///< [T, F] f32
  Activation kind = Activation::gelu;
  Tensor y;  ///< [T, F] f32 or bf16
};
XLSTM_OP(gated_activation, GatedActivationArgs)

/// x = c tanh(x / c), in place
struct SoftCapArgs {
  Tensor x;  ///< [T, N] f32
  float cap = 30.0F;
};
XLSTM_OP(soft_cap, SoftCapArgs)

}  // namespace xlstm::ops
