#pragma once
// Gates of the mLSTM cell from their pre-activations.

#include "ops/op.hpp"

namespace xlstm::ops {

/// i = z_i and log_f = log sigmoid(z_f): what the cell takes. The first xLSTM has no caps.
struct GatesArgs {
  Tensor z;      ///< [T, 2 H] f32, input gates then forget gates
  Tensor i;      ///< [T, H] f32
  Tensor log_f;  ///< [T, H] f32
};
XLSTM_OP(gates, GatesArgs)

/// d_z_i = d_i and d_z_f = d_log_f (1 - e^log_f)
struct GatesBackwardArgs {
  Tensor log_f;         ///< [T, H] f32
  Tensor d_i, d_log_f;  ///< [T, H] f32
  Tensor d_z;           ///< [T, 2 H] f32
};
XLSTM_OP(gates_backward, GatesBackwardArgs)

}  // namespace xlstm::ops
