#pragma once
// Copies of weights in e4m3, beside the weights themselves: what prompts multiply under
// Prefill::fp8 and Prefill::fp8_blocks.

#include <cstddef>

#include "model/network.hpp"
#include "xlstm/model.hpp"

namespace xlstm::model {

/// Throws Error unless a model of this configuration can read prompts as the options say.
void expect_prefill(const Config& config, const LoadOptions& options);

/// Unless `prefill` is Prefill::same, gives products of the blocks the views of its e4m3
/// weights, one after the other from `memory` on, or of no memory where it is null. @return bytes
/// that they take
std::size_t place_e4m3_weights(Network& network, Prefill prefill, Device device, std::byte* memory);

}  // namespace xlstm::model
