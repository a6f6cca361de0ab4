#pragma once
// One token each of many sequences through the mLSTM cell, and the norm of its heads, in one kernel
// on capability 9.0.

#include "ops/mlstm.hpp"
#include "ops/norm.hpp"

namespace xlstm::ops::cuda::sm90 {

/// Whether mlstm_steps() takes these shapes and types; not a matter of the batch's lengths.
bool serves_mlstm_steps(const MlstmArgs& cell);

/// For every sequence of one token: C, n and m of its state, and its h; or, with `norm`, what
/// head_norm() makes of that h, in norm->y, and h is left alone. So are longer sequences.
void mlstm_steps(Context& context, const MlstmArgs& cell, const HeadNormArgs* norm);

/// The same where C is only read, unless the token fills the ring of the record, which then goes
/// into C (ops/mlstm_ring.hpp).
bool serves_mlstm_ring_steps(const MlstmArgs& cell);
void mlstm_ring_steps(Context& context, const MlstmArgs& cell, const HeadNormArgs* norm);

}  // namespace xlstm::ops::cuda::sm90
