#pragma once
// The sLSTM with R spread over the registers of the whole card.

#include "core/context.hpp"
#include "ops/slstm.hpp"

namespace xlstm::ops::cuda::sm90 {

/// slstm() for heads that are too wide for a cluster, in scratch memory of SlstmGridPlan. False
/// where the plan does not fit or the card has too few multiprocessors: then nothing was launched.
bool slstm_grid(Context& context, const SlstmArgs& args);

}  // namespace xlstm::ops::cuda::sm90
