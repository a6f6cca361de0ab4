#pragma once
// The mLSTM cell for long sequences of bf16 in one kernel with the state on chip.

#include <cstdint>

#include "core/context.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda::sm90 {

/// h and the states of mlstm() for the sequences of more than one token, with bf16 q, k, v and h
/// whose rows begin on 16 bytes, dqk up to 256 or half of dqk up to 256, and dv up to 512,
/// multiples of 8. False, and nothing done, where it does not serve. A NaN also reaches earlier
/// tokens of its chunk of 64; other sequences and heads keep their bits.
/// @param early     as mlstm_head_norm(): states and gates are there when this op may begin
/// @param segments  into which the longest sequence is cut; 0: as the plan finds best
bool mlstm_fused(Context& context, const MlstmArgs& args, bool early, std::int64_t segments = 0);

}  // namespace xlstm::ops::cuda::sm90
