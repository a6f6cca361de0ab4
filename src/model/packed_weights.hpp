#pragma once
// Packed weights (ops/packed.hpp), which take the place of the weights themselves where every pass
// reads them.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/network.hpp"
#include "xlstm/model.hpp"

namespace xlstm::model {

/// Whether it is one that packs; `automatic` is none before choose_packing().
constexpr bool packs(Packing packing) { return packing == Packing::on || packing == Packing::both; }

/// Throws Error unless a model of this configuration can have packed weights, if `options` asks for
/// them.
void expect_packing(const Config& config, const LoadOptions& options);

/// Whether the kernels of capability 9.0 for steps of few tokens serve such a model. Where they do
/// not (norms with biases, heads of other widths), steps read packed weights by more kernels than
/// weights as they are.
bool steps_read_packed(const Config& config);

/// Whether Packing::automatic may choose them: where something reads them, and steps too.
bool may_pack(const Config& config, const LoadOptions& options);

/// Weights of bf16 that are multiplied together and can be packed, with their packed form.
struct PackedProduct {
  std::span<Tensor> w;
  std::span<ops::PackedWeights> packed;
  bool keeps_plain;  ///< w stays as it is beside its packed form

  std::size_t bytes() const;         ///< of w, as they are placed on a device
  std::size_t packed_bytes() const;  ///< the same of their packed form
  /// Gives `packed` its views from `memory` on; null: of no memory.
  void place(Device device, std::byte* memory) const;
};

/// All of them with Packing::on or both; else none.
/// @param tied  the head is the embedding
std::vector<PackedProduct> products_to_pack(Network& network, Packing packing, bool tied);

/// Whether this one is kept in its packed form alone. Where no kernel reads that, weights stay. A
/// device that is not here counts as one whose kernels do.
bool is_replaced(const PackedProduct& product, Device device);

/// Memory in which replaced ones of these pass the device: two that follow each other at once.
std::size_t passing_bytes(std::span<const PackedProduct> products, Device device);

/// What Packing::on makes of a network's weights.
struct PackedNeeds {
  std::size_t packed = 0;    ///< bytes of the packed forms
  std::size_t replaced = 0;  ///< bytes of weights that are not kept
  std::size_t passing = 0;   ///< of those the most that are on the device at once while it loads
};

/// Gives the products of a network without memory the views of their packed form, of no memory.
PackedNeeds place_packed_weights(Network& network, Packing packing, bool tied, Device device);

/// By how much the packed forms that a network has are smaller than their weights.
std::uint64_t bytes_saved_by_packing(const Network& network);

/// The packed form of this weight of the network; null if it has none.
const ops::PackedWeights* packed_form(const Network& network, const Tensor& weight);

}  // namespace xlstm::model
