#pragma once
// Steps of one token that leave C to a later step (ops/mlstm_ring.hpp), on any card.

#include "core/context.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda {

/// For every sequence of one token: n, m and the ring of its state, C when the ring is full, and h.
/// Longer sequences are left alone.
void mlstm_ring_steps(Context& context, const MlstmArgs& args);

}  // namespace xlstm::ops::cuda
