#include "model/e4m3_weights.hpp"

#include "core/check.hpp"
#include "model/model_impl.hpp"
#include "model/weight_places.hpp"

namespace xlstm::model {
namespace {

constexpr std::int64_t kRowBytes = kRowAlignment;
// Calls body(weight, its e4m3 form) for every product that has one: those of all blocks but the
// first, whose rounding costs more perplexity than that of all others together (docs/cuda.md).
template <class Body>
void for_each_product(Network& network, Body&& body) {
  const auto group = [&](const auto& from, auto& to) {
    for (std::size_t i = 0; i < from.size(); ++i) body(from[i], to[i]);
  };
  for (std::size_t i = 1; i < network.blocks.size(); ++i) {
    auto* large = std::get_if<LargeBlock>(&network.blocks[i]);
    if (large == nullptr) continue;
    group(large->mlstm.w_qkvo, large->mlstm.e4m3_qkvo);
    group(large->mlstm.w_out, large->mlstm.e4m3_out);
    group(large->feed_forward.w_gate_up, large->feed_forward.e4m3_gate_up);
    group(large->feed_forward.w_down, large->feed_forward.e4m3_down);
  }
}

}  // namespace

void expect_prefill(const Config& config, const LoadOptions& options) {
  if (options.prefill == Prefill::same) return;
  XLSTM_CHECK(!options.device.is_cpu(), unsupported,
              "prompts in fp8: expected a CUDA device, found the CPU");
  XLSTM_CHECK(options.dtype == DType::bf16, invalid_argument,
              "prompts in fp8: expected bf16 arithmetic (--dtype bf16), found {}",
              to_string(options.dtype));
  XLSTM_CHECK(!config.block_stack.has_value(), unsupported,
              "prompts in fp8: expected xLSTM-large, found a model of the first xLSTM");
}

std::size_t place_e4m3_weights(Network& network, Prefill prefill, Device device,
                               std::byte* memory) {
  if (prefill == Prefill::same) return 0;
  WeightPlaces places(device, memory);
  for_each_product(network, [&](const Tensor& w, ops::E4m3Matrix& to) {
    const std::int64_t rows = w.dim(0), columns = w.dim(1);
    to.codes = places.take(DType::u8, {rows, (columns + kRowBytes - 1) / kRowBytes * kRowBytes})
                   .cols(0, columns);
    to.kind = prefill == Prefill::fp8 ? ops::E4m3Scales::rows : ops::E4m3Scales::blocks;
    const auto [first, second] = ops::e4m3_scales_shape(to.kind, rows, columns);
    to.scales =
        second == 0 ? places.take(DType::f32, {first}) : places.take(DType::f32, {first, second});
  });
  return places.bytes();
}

void place_e4m3_weights(Model::Impl& impl) {
  if (impl.options.prefill == Prefill::same) return;
  const auto place = [&](std::byte* memory) {
    return place_e4m3_weights(impl.network, impl.options.prefill, impl.context.device(), memory);
  };
  impl.owned.emplace_back(place(nullptr), impl.context.device());
  place(impl.owned.back().data());
}

void make_e4m3_weights(Model::Impl& impl, std::span<const Tensor> weights) {
  if (impl.options.prefill == Prefill::same) return;
  for_each_product(impl.network, [&](const Tensor& w, const ops::E4m3Matrix& to) {
    for (const Tensor& of : weights)
      if (&w == &of) ops::quantise_e4m3(impl.context, {.x = w, .y = to});
  });
}

}  // namespace xlstm::model
