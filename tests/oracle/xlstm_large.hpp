#pragma once
// A whole model of the xLSTM-large family in double, composed of the oracle's ops (specification
// A.3), taking weights under their Hugging Face names (A.2).

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "oracle/ops.hpp"
#include "xlstm/config.hpp"

namespace oracle {

/// Weights by Hugging Face name ("backbone.blocks.0.norm_mlstm.weight", ...), single or fused.
using Weights = std::map<std::string, Vector>;

/// One state per block, zero at the beginning.
std::vector<MlstmState> make_states(const xlstm::Config& config);

/// Logits [T, V] of one sequence, moving `states` on. Missing biases count as absent, a missing
/// out_norm as the identity, a missing lm_head as tied.
Vector forward(const xlstm::Config& config, const Weights& weights,
               std::span<const std::int32_t> ids, std::vector<MlstmState>& states);

}  // namespace oracle
