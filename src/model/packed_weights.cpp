#include "model/packed_weights.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "model/weight_places.hpp"

namespace xlstm::model {
namespace {

// Calls body(weights, their packed forms, biases) for every product, whose weights are packed
// together.
template <class AnyNetwork, class Body>
void for_each_product(AnyNetwork& network, Body&& body) {
  for (auto& block : network.blocks) {
    auto* large = std::get_if<LargeBlock>(&block);
    if (large == nullptr) continue;
    auto& mlstm = large->mlstm;
    auto& feed_forward = large->feed_forward;
    body(mlstm.w_qkvo, mlstm.packed_qkvo, mlstm.b_qkvo);
    body(mlstm.w_out, mlstm.packed_out, mlstm.b_out);
    body(feed_forward.w_gate_up, feed_forward.packed_gate_up, feed_forward.b_gate_up);
    body(feed_forward.w_down, feed_forward.packed_down, feed_forward.b_down);
  }
  // Without a norm the head multiplies float32, which no kernel of packed weights does.
  if (network.out_norm && network.hp.apply_out_norm)
    body(network.lm_head, network.packed_head, std::array<Tensor, 1>{});
}

// What takes_packed() of ops/cuda/sm90/matmul.cu, and the kernels of few tokens, ask for.
bool can_be_packed(std::span<const Tensor> w, std::span<const Tensor> b) {
  constexpr std::int64_t kUnit = ops::PackedTile::kRows;
  return std::ranges::all_of(w,
                             [](const Tensor& t) {
                               return t.rank == 2 && t.dtype == DType::bf16 &&
                                      t.dim(0) % kUnit == 0 && t.dim(1) % kUnit == 0;
                             }) &&
         std::ranges::all_of(b, [&](const Tensor& t) { return t.dtype == b[0].dtype; });
}

}  // namespace

void expect_packing(const Config& config, const LoadOptions& options) {
  if (!packs(options.packing)) return;
  XLSTM_CHECK(!options.device.is_cpu(), unsupported,
              "packed weights: expected a CUDA device, found the CPU");
  XLSTM_CHECK(options.dtype == DType::bf16, invalid_argument,
              "packed weights: expected bf16 arithmetic (--dtype bf16), found {}",
              to_string(options.dtype));
  XLSTM_CHECK(!config.block_stack.has_value(), unsupported,
              "packed weights: expected xLSTM-large, found a model of the first xLSTM");
}

bool steps_read_packed(const Config& config) {
  // serves_norm() of ops/cuda/sm90/few_rows.cu, serves_mlstm_step() of mlstm_step.cu
  constexpr std::int64_t kColumns = 64, kMostWidth = 512, kMostRows = 256;
  return !config.use_bias && config.v_head_dim() % kColumns == 0 &&
         config.v_head_dim() <= kMostWidth && config.qk_head_dim() <= kMostRows;
}

bool may_pack(const Config& config, const LoadOptions& options) {
  return !options.device.is_cpu() && options.dtype == DType::bf16 && !config.block_stack &&
         steps_read_packed(config) && ops::reads_packed(options.device);
}

std::size_t PackedProduct::bytes() const {
  std::size_t sum = 0;
  for (const Tensor& t : w) sum += placed_bytes(t);
  return sum;
}

std::size_t PackedProduct::packed_bytes() const {
  std::size_t sum = 0;
  for (const Tensor& t : w) {
    const ops::PackedShape shape(t.dim(0), t.dim(1));
    WeightPlaces places({}, nullptr);
    places.take(DType::u8, {shape.rows, shape.bytes});
    places.take(DType::f32, {t.dim(0)});
    sum += places.bytes();
  }
  return sum;
}

void PackedProduct::place(Device device, std::byte* memory) const {
  WeightPlaces places(device, memory);
  for (std::size_t i = 0; i < w.size(); ++i) {
    const ops::PackedShape shape(w[i].dim(0), w[i].dim(1));
    packed[i].tiles = places.take(DType::u8, {shape.rows, shape.bytes});
    packed[i].scales = places.take(DType::f32, {w[i].dim(0)});
  }
}

std::vector<PackedProduct> products_to_pack(Network& network, Packing packing, bool tied) {
  std::vector<PackedProduct> products;
  if (!packs(packing)) return products;
  for_each_product(network, [&](std::span<Tensor> w, std::span<ops::PackedWeights> packed,
                                std::span<const Tensor> b) {
    if (!can_be_packed(w, b)) return;
    const bool head = w.data() == network.lm_head.data();
    products.push_back({w, packed, packing == Packing::both || (head && tied)});
  });
  return products;
}

bool is_replaced(const PackedProduct& product, Device device) {
  if (product.keeps_plain) return false;
  try {
    return ops::reads_packed(device);
  } catch (const Error&) {
    return true;
  }
}

std::size_t passing_bytes(std::span<const PackedProduct> products, Device device) {
  std::size_t most = 0, before = 0;
  for (const PackedProduct& product : products) {
    if (!is_replaced(product, device)) continue;
    most = std::max(most, before + product.bytes());
    before = product.bytes();
  }
  return most;
}

PackedNeeds place_packed_weights(Network& network, Packing packing, bool tied, Device device) {
  PackedNeeds needs;
  const std::vector<PackedProduct> products = products_to_pack(network, packing, tied);
  for (const PackedProduct& product : products) {
    product.place(device, nullptr);
    needs.packed += product.packed_bytes();
    if (is_replaced(product, device)) needs.replaced += product.bytes();
  }
  needs.passing = passing_bytes(products, device);
  return needs;
}

std::uint64_t bytes_saved_by_packing(const Network& network) {
  std::uint64_t saved = 0;
  for_each_product(network,
                   [&](std::span<const Tensor> w, std::span<const ops::PackedWeights> packed,
                       std::span<const Tensor>) {
                     if (!packed[0]) return;
                     for (std::size_t i = 0; i < w.size(); ++i)
                       saved += w[i].bytes() - packed[i].tiles.bytes() - packed[i].scales.bytes();
                   });
  return saved;
}

const ops::PackedWeights* packed_form(const Network& network, const Tensor& weight) {
  const ops::PackedWeights* found = nullptr;
  for_each_product(network,
                   [&](std::span<const Tensor> w, std::span<const ops::PackedWeights> packed,
                       std::span<const Tensor>) {
                     for (std::size_t i = 0; i < w.size(); ++i)
                       if (&w[i] == &weight && packed[i]) found = &packed[i];
                   });
  return found;
}

}  // namespace xlstm::model
