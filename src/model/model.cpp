// The public Model: what it tells about itself.

#include "xlstm/model.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "model/e4m3_weights.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"
#include "model/packed_weights.hpp"
#include "model/state_impl.hpp"
#include "ops/best.hpp"
#include "ops/mlstm.hpp"

namespace xlstm {

Model::Impl::Impl(Config c, const LoadOptions& o)
    : config(std::move(c)), options(o), context(o.device, o.threads) {
  context.stream();  // a device that is not there is an error before anything is read
  XLSTM_CHECK(o.dtype == DType::f32 || o.dtype == DType::bf16, invalid_argument,
              "dtype: expected f32 or bf16, found {}", to_string(o.dtype));
  model::expect_prefill(config, o);
  model::expect_packing(config, o);
  model::expect_state_type(o);
  XLSTM_CHECK(o.threads >= 0 && o.threads <= 4096, invalid_argument,
              "threads: expected 0 to 4096, found {}", o.threads);
  XLSTM_CHECK(o.chunk_size >= 0, invalid_argument, "chunk_size: expected 0 or more, found {}",
              o.chunk_size);
  // The configuration's chunk_size is the reference's choice; the result does not depend on it but
  // for the last bits, so the engine takes its own.
  const std::int64_t chunk = o.chunk_size > 0 ? o.chunk_size : ops::kDefaultChunk;
  network.hp = model::Hyperparameters(config, o.dtype, chunk);
  network.state = model::StateLayout(config, o.state_dtype);
  network.hp.pends_from = model::pends_from(o, network.state);
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

const Config& Model::config() const noexcept { return impl_->config; }
const Tokenizer* Model::tokenizer() const noexcept {
  return impl_->tokenizer ? &*impl_->tokenizer : nullptr;
}
int Model::threads() const noexcept { return impl_->context.threads(); }
DType Model::dtype() const noexcept { return impl_->options.dtype; }

State Model::make_state() const {
  return State(std::make_unique<State::Impl>(impl_->network.state, impl_->hash,
                                             impl_->config.vocab_size, impl_->context.device()));
}

void Model::forward(std::span<const SequenceInput> batch, Logits which, std::span<float> logits) {
  impl_->expect_vocabulary("forward");
  std::size_t rows = 0;
  if (which == Logits::last) rows = batch.size();
  if (which == Logits::all)
    for (const SequenceInput& s : batch) rows += s.ids.size();
  const std::size_t expected = rows * static_cast<std::size_t>(impl_->config.vocab_size);
  XLSTM_CHECK(logits.size() >= expected, invalid_argument,
              "forward: expected room for {} logits, found {}", expected, logits.size());
  impl_->forward(batch, which, {.logits = logits.data()});
}

std::int64_t Model::most_best() const noexcept {
  return std::min<std::int64_t>(ops::kMostBest, sampleable_ids());
}

void Model::forward_best(std::span<const SequenceInput> batch, std::int64_t count,
                         std::span<Candidate> best) {
  impl_->expect_vocabulary("forward_best");
  XLSTM_CHECK(count >= 1 && count <= most_best(), invalid_argument,
              "forward_best: expected 1 to {} logits of each sequence, found {}", most_best(),
              count);
  const std::size_t expected = batch.size() * static_cast<std::size_t>(count);
  XLSTM_CHECK(best.size() >= expected, invalid_argument,
              "forward_best: expected room for {} candidates, found {}", expected, best.size());
  impl_->forward(batch, Logits::last,
                 {.best = best.data(), .count = count, .ids = sampleable_ids()});
}

void Model::forward_vectors(std::span<const VectorInput> batch, std::span<float> outputs) {
  std::size_t expected = 0;
  for (const VectorInput& s : batch) expected += s.vectors.size();
  XLSTM_CHECK(outputs.size() >= expected, invalid_argument,
              "forward_vectors: expected room for {} numbers, found {}", expected, outputs.size());
  impl_->forward_vectors(batch, outputs.data());
}

std::span<const float> Model::eval(State& state, std::span<const std::int32_t> ids) {
  impl_->expect_vocabulary("eval");
  return impl_->eval(state, ids);
}

std::vector<std::int32_t> Model::encode_prompt(std::string_view text, bool no_bos) const {
  impl_->expect_vocabulary("encode_prompt");
  XLSTM_CHECK(impl_->tokenizer.has_value(), not_found,
              "{}: no tokenizer.json: give the prompt as token ids", impl_->directory.string());
  std::vector<std::int32_t> ids = impl_->tokenizer->encode(text, {.add_special_tokens = !no_bos});
  if (!no_bos && impl_->adds_bos && (ids.empty() || ids.front() != impl_->bos))
    ids.insert(ids.begin(), impl_->bos);
  return ids;
}

std::int32_t Model::bos_id() const noexcept { return impl_->bos; }
bool Model::adds_bos() const noexcept { return impl_->adds_bos; }
const std::vector<std::int32_t>& Model::eos_ids() const noexcept { return impl_->eos; }

std::int32_t Model::sampleable_ids() const noexcept {
  std::int64_t n = impl_->config.vocab_size;
  if (impl_->tokenizer) n = std::min<std::int64_t>(n, impl_->tokenizer->size());
  return static_cast<std::int32_t>(n);
}

std::vector<ParameterInfo> Model::Impl::parameter_infos() const {
  std::vector<ParameterInfo> list;
  for (const model::Parameter& p : parameters) list.push_back({p.name, p.view->dtype, p.shape});
  return list;
}
std::vector<ParameterInfo> Model::parameters() const { return impl_->parameter_infos(); }

const std::vector<std::string>& Model::unexpected_tensors() const noexcept {
  return impl_->unexpected;
}

std::uint64_t Model::weight_bytes() const noexcept {
  std::uint64_t bytes = 0;
  for (const model::Parameter& p : impl_->parameters) bytes += p.view->bytes();
  return bytes;
}

std::uint64_t Model::streamed_bytes() const noexcept {
  return weight_bytes() -
         (impl_->tied || !impl_->network.embedding ? 0 : impl_->network.embedding.bytes()) -
         model::bytes_saved_by_packing(impl_->network);
}

std::uint64_t Model::state_bytes() const noexcept { return impl_->network.state.bytes(); }
std::uint64_t Model::hash() const noexcept { return impl_->hash; }

}  // namespace xlstm
