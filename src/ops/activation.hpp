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

/// d_up = d_y act(gate), d_gate = d_y up act'(gate)
struct GatedActivationBackwardArgs {
  Tensor gate, up;  ///< [T, F] f32
  Activation kind = Activation::gelu;
  Tensor d_y;     ///< [T, F] f32
  Tensor d_gate;  ///< [T, F] f32; may be gate
  Tensor d_up;    ///< [T, F] f32; may be up
};
XLSTM_OP(gated_activation_backward, GatedActivationBackwardArgs)

/// y (+)= mask x / (1 - p), where each element of the mask is 0 with probability p, and otherwise
/// 1. An element's mask is a function of the key and its index in [T, N] alone, so the backward
/// pass is the same call on the gradient.
struct DropoutArgs {
  Tensor x;                 ///< [T, N] f32
  float p = 0.0F;           ///< in [0, 1)
  std::uint64_t key = 0;    ///< another one for every use
  bool accumulate = false;  ///< y += instead of y =
  Tensor y;                 ///< [T, N] f32; may be x
};
XLSTM_OP(dropout, DropoutArgs)

/// x = c tanh(x / c), in place
struct SoftCapArgs {
  Tensor x;  ///< [T, N] f32
  float cap = 30.0F;
};
XLSTM_OP(soft_cap, SoftCapArgs)

}  // namespace xlstm::ops
