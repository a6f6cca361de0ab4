#include "model/packed_weights.hpp"

#include <algorithm>
#include <vector>

#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "core/log.hpp"
#include "model/model_impl.hpp"
#include "model/weight_places.hpp"

namespace xlstm::model {
namespace {

// Calls body(weights, their packed forms) for every product, whose weights are packed together.
template <class AnyNetwork, class Body>
void for_each_product(AnyNetwork& network, Body&& body) {
  const auto group = [&](std::span<const Tensor> w, auto& packed) {
    const bool all = std::all_of(w.begin(), w.end(), [](const Tensor& t) {
      return t && t.dtype == DType::bf16 && t.dim(0) % ops::PackedTile::kRows == 0 &&
             t.dim(1) % ops::PackedTile::kRows == 0;
    });
    if (all) body(w, std::span(packed));
  };
  for (auto& block : network.blocks) {
    auto* large = std::get_if<LargeBlock>(&block);
    if (large == nullptr) continue;
    group(large->mlstm.w_qkvo, large->mlstm.packed_qkvo);
    group(large->mlstm.w_out, large->mlstm.packed_out);
    group(large->feed_forward.w_gate_up, large->feed_forward.packed_gate_up);
    group(large->feed_forward.w_down, large->feed_forward.packed_down);
  }
  group(network.lm_head, network.packed_head);
}

}  // namespace

void expect_packing(const Config& config, const LoadOptions& options) {
  if (options.packing != Packing::on) return;
  XLSTM_CHECK(!options.device.is_cpu(), unsupported,
              "packed weights: expected a CUDA device, found the CPU");
  XLSTM_CHECK(options.dtype == DType::bf16, invalid_argument,
              "packed weights: expected bf16 arithmetic (--dtype bf16), found {}",
              to_string(options.dtype));
  XLSTM_CHECK(!config.block_stack.has_value(), unsupported,
              "packed weights: expected xLSTM-large, found a model of the first xLSTM");
}

bool may_pack(const Config& config, const LoadOptions& options) {
  return !options.device.is_cpu() && options.dtype == DType::bf16 && !config.block_stack &&
         ops::reads_packed(options.device);
}

std::size_t place_packed_weights(Network& network, Packing packing, Device device,
                                 std::byte* memory) {
  if (packing != Packing::on) return 0;
  WeightPlaces places(device, memory);
  for_each_product(network, [&](std::span<const Tensor> w, std::span<ops::PackedWeights> packed) {
    for (std::size_t i = 0; i < w.size(); ++i) {
      const ops::PackedShape shape(w[i].dim(0), w[i].dim(1));
      packed[i].tiles = places.take(DType::u8, {shape.rows, shape.bytes});
      packed[i].scales = places.take(DType::f32, {w[i].dim(0)});
    }
  });
  return places.bytes();
}

void make_packed_weights(Model::Impl& impl) {
  if (impl.options.packing != Packing::on) return;
  Context& c = impl.context;
  const auto place = [&](std::byte* memory) {
    return place_packed_weights(impl.network, Packing::on, c.device(), memory);
  };
  const std::size_t bytes = place(nullptr);
  if (bytes == 0) return;
  impl.owned.emplace_back(bytes, c.device());
  place(impl.owned.back().data());

  std::int64_t tile_rows = 0;
  for_each_product(impl.network,
                   [&](std::span<const Tensor>, std::span<ops::PackedWeights> packed) {
                     for (const ops::PackedWeights& p : packed) tile_rows += p.tiles.dim(0);
                   });
  const std::size_t count = static_cast<std::size_t>(tile_rows);
  Buffer left_out(count * sizeof(std::int32_t), c.device());
  const Tensor all = Tensor::dense(left_out.data(), DType::i32, {tile_rows}, c.device());
  tile_rows = 0;
  for_each_product(impl.network, [&](std::span<const Tensor> w,
                                     std::span<ops::PackedWeights> packed) {
    for (std::size_t i = 0; i < w.size(); ++i) {
      const std::int64_t rows = packed[i].tiles.dim(0);
      ops::pack_weights(c, {.w = w[i], .packed = packed[i], .left_out = all.rows(tile_rows, rows)});
      tile_rows += rows;
    }
  });
  std::vector<std::int32_t> found(count);
  cuda::copy(found.data(), left_out.data(), count * sizeof(std::int32_t), c.stream(), c.device());
  c.synchronize();

  // Weights that do not fit their lists: few models have any. Their products read them as they are.
  std::size_t from = 0, products = 0, plain = 0;
  for_each_product(impl.network,
                   [&](std::span<const Tensor>, std::span<ops::PackedWeights> packed) {
                     const std::size_t begin = from;
                     for (const ops::PackedWeights& p : packed)
                       from += static_cast<std::size_t>(p.tiles.dim(0));
                     ++products;
                     if (std::any_of(found.begin() + static_cast<std::ptrdiff_t>(begin),
                                     found.begin() + static_cast<std::ptrdiff_t>(from),
                                     [](std::int32_t n) { return n > 0; })) {
                       std::fill(packed.begin(), packed.end(), ops::PackedWeights{});
                       ++plain;
                     }
                   });
  if (plain > 0)
    log(LogLevel::info,
        fmt::format("packed weights: {} of {} products have numbers too far apart and are read as "
                    "they are",
                    plain, products));
}

std::uint64_t bytes_saved_by_packing(const Network& network) {
  std::uint64_t saved = 0;
  for_each_product(network,
                   [&](std::span<const Tensor> w, std::span<const ops::PackedWeights> packed) {
                     if (!packed[0]) return;
                     for (std::size_t i = 0; i < w.size(); ++i)
                       saved += w[i].bytes() - packed[i].tiles.bytes() - packed[i].scales.bytes();
                   });
  return saved;
}

}  // namespace xlstm::model
