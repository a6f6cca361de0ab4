#pragma once
// A whole model of the xLSTM-large family, composed of the oracle's ops (specification
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
template <class Real>
using WeightsOf = std::map<std::string, std::vector<Real>>;
using Weights = WeightsOf<double>;

/// One state per block, zero at the beginning.
template <class Real = double>
std::vector<MlstmStateOf<Real>> make_states(const xlstm::Config& config);

/// Logits [T, V] of one sequence, moving `states` on. Missing biases count as absent, a missing
/// out_norm as the identity, a missing lm_head as tied. `Real` is double, or Var for gradients.
template <class Real>
std::vector<Real> forward(const xlstm::Config& config, const WeightsOf<Real>& weights,
                          std::span<const std::int32_t> ids,
                          std::vector<MlstmStateOf<Real>>& states);

}  // namespace oracle
