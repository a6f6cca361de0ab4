#include "model/memory_needs.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>

#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "model/e4m3_weights.hpp"
#include "model/packed_weights.hpp"
#include "model/parameters.hpp"
#include "model/step_inputs.hpp"

namespace xlstm::model {
namespace {

// Tensors with shapes and no memory are enough to measure a pass, which touches none.
alignas(kAlignment) std::byte nowhere[kAlignment];  // NOLINT: an address, never written

std::string gigabytes(std::uint64_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace

void expect_state_type(const LoadOptions& options) {
  XLSTM_CHECK(options.state_dtype == DType::f32 || options.state_dtype == DType::bf16,
              invalid_argument, "state_dtype: expected f32 or bf16, found {}",
              to_string(options.state_dtype));
  XLSTM_CHECK(options.state_dtype == DType::f32 || !options.device.is_cpu(), unsupported,
              "states in bf16: expected a CUDA device, found the CPU");
}

std::vector<ParameterInfo> uniform_parameters(const Config& config, DType dtype) {
  Network network;
  std::vector<ParameterInfo> infos;
  for (const Parameter& p : list_parameters(config, Dialect::hugging_face, network))
    if (!p.optional && !(p.view == &network.lm_head[0] && config.tie_word_embeddings))
      infos.push_back({p.name, dtype, p.shape});
  return infos;
}

std::int64_t pends_from(const LoadOptions& options, const StateLayout& state) {
  if (options.device.is_cpu() || options.exact) return ops::kExactPendsFrom;
  std::int64_t c_bytes = 0;
  for (const BlockState& block : state.blocks())
    c_bytes = std::max<std::int64_t>(c_bytes, block.heads * block.dqk * block.dv * 4);
  try {
    return ops::pends_few(options.device) ? ops::few_that_pend(c_bytes) : ops::kExactPendsFrom;
  } catch (const Error&) {
    return ops::kExactPendsFrom;
  }
}

Packing choose_packing(const Config& config, std::span<const ParameterInfo> weights,
                       const LoadOptions& options) {
  if (options.packing != Packing::automatic) return options.packing;
  if (!may_pack(config, options)) return Packing::off;
  const auto needed = [&](Packing packing) {
    LoadOptions with = options;
    with.packing = packing;
    return MemoryMeter(config, weights, with).needs(1);
  };
  const MemoryNeeds off = needed(Packing::off);
  // Weights that stay in the card's second-level cache are read faster than they are unpacked.
  constexpr std::uint64_t kCached = 40'000'000;
  if (off.weights <= kCached) return Packing::off;
  // Only a head that is the embedding too takes more when it is packed.
  const std::uint64_t on = needed(Packing::on).total();
  return on <= cuda::memory(options.device).free || on <= off.total() ? Packing::on : Packing::off;
}

MemoryMeter::MemoryMeter(const Config& config, std::span<const ParameterInfo> weights,
                         const LoadOptions& options)
    : context_(options.device, options.threads) {
  expect_prefill(config, options);
  expect_packing(config, options);
  expect_state_type(options);
  network_.hp = Hyperparameters(config, options.dtype,
                                options.chunk_size > 0 ? options.chunk_size : ops::kDefaultChunk);
  network_.state = StateLayout(config, options.state_dtype);
  network_.hp.pends_from = pends_from(options, network_.state);
  std::map<std::string_view, DType> types;
  for (const ParameterInfo& w : weights) types.emplace(w.name, w.dtype);
  for (const Parameter& p : list_parameters(config, Dialect::hugging_face, network_)) {
    const auto found = types.find(p.name);
    if (found == types.end()) continue;
    *p.view = dense_view(nowhere, placed_type(p, found->second, config, options), p.shape);
    p.view->device = options.device;
    weights_ += placed_bytes(*p.view);
  }
  const bool tied = !network_.lm_head[0];
  if (tied) network_.lm_head[0] = network_.embedding;
  weights_ += place_e4m3_weights(network_, options.prefill, options.device, nullptr);
  const PackedNeeds packed = place_packed_weights(network_, options.packing, tied, options.device);
  weights_ += packed.packed;
  weights_ -= packed.replaced;
  loading_ = packed.passing;
  if (options.device.is_cpu()) return;
  constexpr std::int64_t kMostSlice = 16384, kMostShared = 256;
  for (std::int64_t slice = kMostSlice; slice > limits_.slice; slice /= 2)
    if (measure(std::array{0, static_cast<std::int32_t>(slice)}) <= kMostPromptScratch)
      limits_.slice = slice;
  if (options.exact) return;
  limits_.shared_sequences = kMostShared;
  limits_.shared_tokens = limits_.slice;
}

std::uint64_t MemoryMeter::measure(std::span<const std::int32_t> offsets) {
  const std::size_t sequences = offsets.size() - 1;
  // Not null: cells of a sequence without a record take other scratch memory.
  const std::vector<std::byte*> slots(sequences, nowhere);
  const std::vector<std::int32_t> zeros(static_cast<std::size_t>(offsets.back()), 0);
  const std::span<const std::int32_t> ids = zeros;
  const ops::Batch batch{offsets, slots};
  const Device device = context_.device();
  context_.start_measuring();
  if (network_.hp.vocab > 0) {
    network_.forward(
        context_, batch, ids, ids.first(sequences),
        Tensor::dense(nowhere, DType::f32,
                      {static_cast<std::int64_t>(sequences), network_.hp.vocab}, device));
  } else {
    const Tensor x = Tensor::dense(nowhere, DType::f32, {batch.tokens(), network_.hp.d}, device);
    network_.forward_vectors(context_, batch, ids, x, x);
  }
  return context_.stop_measuring();
}

MemoryNeeds MemoryMeter::needs(std::int64_t sequences, std::int64_t prompt) {
  XLSTM_CHECK(sequences >= 1, invalid_argument, "memory: expected at least one sequence, found {}",
              sequences);
  const std::int64_t shared = std::min(sequences, limits_.shared_sequences);
  MemoryNeeds needs;
  needs.sequences = sequences;
  needs.weights = weights_;
  needs.loading = loading_;
  needs.state = network_.state.bytes_on(context_.device());
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(shared) + 1);
  std::iota(offsets.begin(), offsets.end(), 0);
  needs.decode_scratch = measure(offsets);
  needs.prompt_tokens = prompt > 0 ? std::min(prompt, limits_.slice) : limits_.slice;
  needs.prompt_scratch = measure(std::array{0, static_cast<std::int32_t>(needs.prompt_tokens)});
  if (context_.device().is_cpu()) return needs;
  // Cells of few tokens have float32.
  if (needs.prompt_tokens > ops::kFusedTokens)
    needs.prompt_scratch = std::max(
        needs.prompt_scratch, measure(std::array{0, static_cast<std::int32_t>(ops::kFusedTokens)}));
  if (network_.state.cuda_c() == DType::bf16 && shared > 1) {  // prompts on copies in float32
    for (std::size_t s = 0; s < offsets.size(); ++s)
      offsets[s] = static_cast<std::int32_t>(
          static_cast<std::int64_t>(s) *
          std::clamp<std::int64_t>(limits_.shared_tokens / shared, 2,
                                   std::max<std::int64_t>(2, needs.prompt_tokens)));
    needs.prompt_scratch = std::max(needs.prompt_scratch, measure(offsets));
  }
  const auto rows = static_cast<std::size_t>(shared),
             slice = static_cast<std::size_t>(limits_.slice);
  // Of any pass, and of steps that draw their tokens, which have logits of two steps.
  needs.step_inputs =
      StepInputs::bytes(rows, slice, rows) + StepInputs::bytes(rows, rows, rows, rows);
  const std::int64_t results =
      network_.hp.vocab > 0 ? 3 * shared * network_.hp.vocab : limits_.slice * network_.hp.d;
  needs.results = static_cast<std::uint64_t>(results) * sizeof(float);
  return needs;
}

std::int64_t MemoryMeter::sequences_within(std::uint64_t bytes, std::int64_t prompt) {
  const auto fits = [&](std::int64_t n) { return needs(n, prompt).total() <= bytes; };
  if (fits(limits_.shared_sequences)) {  // from there on, a sequence more takes its state more
    const MemoryNeeds all = needs(limits_.shared_sequences, prompt);
    if (all.state == 0) return limits_.shared_sequences;
    return limits_.shared_sequences + static_cast<std::int64_t>((bytes - all.total()) / all.state);
  }
  std::int64_t fit = 0, most = limits_.shared_sequences;
  while (fit + 1 < most) (fits((fit + most) / 2) ? fit : most) = (fit + most) / 2;
  return fit;
}

void MemoryMeter::expect_fit(std::int64_t sequences, std::uint64_t free) {
  const MemoryNeeds all = needs(sequences);
  if (all.total() <= free) return;
  const std::int64_t fit = sequences_within(free);
  fail(ErrorCode::out_of_memory,
       "{}: {} needed ({} for weights, {} for the states of {} sequence{}, {} for scratch), {} "
       "free: {}",
       to_string(context_.device()), gigabytes(all.total()), gigabytes(all.weights),
       gigabytes(all.states()), sequences, sequences == 1 ? "" : "s",
       gigabytes(all.scratch() + all.step_inputs + all.results), gigabytes(free),
       all.weights > free ? "0 sequences fit, because the weights do not"
                          : fmt::format("{} sequence{} fit{} beside the weights", fit,
                                        fit == 1 ? "" : "s", fit == 1 ? "s" : ""));
}

void MemoryMeter::expect_fit(std::int64_t sequences) {
  if (!context_.device().is_cpu()) expect_fit(sequences, cuda::memory(context_.device()).free);
}

}  // namespace xlstm::model
