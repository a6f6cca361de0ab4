#pragma once
// Packed copies of weights (ops/packed.hpp), beside the weights themselves: what kernels of few
// tokens read.

#include <cstddef>
#include <cstdint>

#include "model/network.hpp"
#include "xlstm/model.hpp"

namespace xlstm::model {

/// Throws Error unless a model of this configuration can have packed weights, if `options` asks for
/// them.
void expect_packing(const Config& config, const LoadOptions& options);

/// Whether Packing::automatic may choose them: where something reads them.
bool may_pack(const Config& config, const LoadOptions& options);

/// With Packing::on gives the products of bf16 weights the views of their packed form, one after
/// the other from `memory` on, or of no memory where it is null. @return bytes that they take
std::size_t place_packed_weights(Network& network, Packing packing, Device device,
                                 std::byte* memory);

/// By how much the packed forms that a network has are smaller than their weights.
std::uint64_t bytes_saved_by_packing(const Network& network);

}  // namespace xlstm::model
