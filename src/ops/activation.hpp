#pragma once
// Element-wise functions.

#include "ops/op.hpp"

namespace xlstm::ops {

/// y = silu(gate) * up (the middle of SwiGLU)
struct SwigluArgs {
  Tensor gate, up;  ///< [T, F] f32
  Tensor y;         ///< [T, F] f32 or bf16
};
XLSTM_OP(swiglu, SwigluArgs)

/// x = c tanh(x / c), in place
struct SoftCapArgs {
  Tensor x;  ///< [T, N] f32
  float cap = 30.0F;
};
XLSTM_OP(soft_cap, SoftCapArgs)

}  // namespace xlstm::ops
