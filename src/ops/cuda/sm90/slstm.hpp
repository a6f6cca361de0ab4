#pragma once
// The sLSTM with R on the chip: what clusters of blocks can hold.

#include "core/context.hpp"
#include "ops/slstm.hpp"

namespace xlstm::ops::cuda::sm90 {

/// slstm() by a cluster of blocks per head and group of sequences. False where R does not fit into
/// a cluster, or the card has none of that size: then nothing was launched. The answer depends on
/// R alone, never on the batch.
bool slstm(Context& context, const SlstmArgs& args);

}  // namespace xlstm::ops::cuda::sm90
