#pragma once
// The feed-forward half of a block: SwiGLU (specification A.3).

#include <array>

#include "core/context.hpp"
#include "model/hyperparameters.hpp"

namespace xlstm::model {

/// x += W_down( silu(W_gate u) * (W_up u) ), u = RMS(x).
struct FeedForward {
  Tensor norm, norm_bias;                ///< [D]
  std::array<Tensor, 2> w_gate_up;       ///< [F, D] each
  std::array<Tensor, 2> b_gate_up;       ///< [F] each, or empty
  std::array<Tensor, 1> w_down, b_down;  ///< [D, F], [D]

  /// x [T, D] f32, updated in place.
  void forward(Context& c, const Hyperparameters& hp, Tensor x) const;
};

}  // namespace xlstm::model
