// How a batch is cut into passes through the network.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>

#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "core/hash.hpp"
#include "model/model_impl.hpp"
#include "model/state_impl.hpp"
#include "model/step_inputs.hpp"
#include "ops/best.hpp"
#include "ops/fused.hpp"

namespace xlstm {
namespace {

using model::next_pass;
using model::PassLimits;
using model::StepInputs;

// Calls body(sequences, begin, count, tokens) for every pass through the network: as many short
// sequences as share one, or a slice [begin, begin + count) of one long sequence after the other.
template <class Input, class Length, class Body>
void for_each_pass(std::span<const Input> batch, const PassLimits& limits, const Length& length,
                   Body&& body) {
  for (std::size_t first = 0; first < batch.size();) {
    std::size_t n = 1;
    std::int64_t tokens = length(batch[first]);
    while (first + n < batch.size() && n < static_cast<std::size_t>(limits.shared_sequences) &&
           tokens + length(batch[first + n]) <= limits.shared_tokens)
      tokens += length(batch[first + n++]);
    for (std::int64_t begin = 0; begin < tokens; begin += limits.slice)
      body(batch.subspan(first, n), begin, std::min(limits.slice, tokens - begin), tokens);
    first += n;
  }
}

// The inputs of a pass while it runs.
class Pass {
 public:
  template <class Input, class Length>
  Pass(StepInputs& inputs, const Context& context, const model::StateLayout& layout,
       std::span<const Input> sequences, std::int64_t count, std::size_t rows, const Length& length)
      : inputs_(inputs), context_(context) {
    inputs.resize(sequences.size(), static_cast<std::size_t>(count), rows, context.device());
    inputs.offsets()[0] = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      inputs.slots()[i] = sequences[i].state->impl().on(context.device(), layout);
      inputs.offsets()[i + 1] =
          inputs.offsets()[i] +
          static_cast<std::int32_t>(sequences.size() == 1 ? count : length(sequences[i]));
    }
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  ~Pass() {
    if (finished_) return;
    try {
      context_.synchronize();          // the device may still read the inputs
    } catch (const std::exception&) {  // another error is on its way already
    }
  }
  /// Waits until the pass is done.
  void finish() {
    finished_ = true;
    context_.synchronize();
  }

  ops::Batch batch() const { return inputs_.batch(); }
  model::Ids ids() const { return {inputs_.ids(), inputs_.on_device(inputs_.ids())}; }
  model::Ids rows() const { return {inputs_.rows(), inputs_.on_device(inputs_.rows())}; }

 private:
  StepInputs& inputs_;
  const Context& context_;
  bool finished_ = false;
};

std::int64_t length(const SequenceInput& s) { return static_cast<std::int64_t>(s.ids.size()); }

}  // namespace

std::uint64_t model::next_pass() {
  static std::atomic<std::uint64_t> passes{0};
  return ++passes;
}

void Model::Impl::expect_vocabulary(const char* what) const {
  XLSTM_CHECK(config.vocab_size > 0, unsupported,
              "{}: expected a model with a vocabulary, found a block stack alone (vocab_size 0), "
              "which reads vectors",
              what);
}

void Model::Impl::check_state(const char* what, State* s, std::size_t i, std::uint64_t pass) const {
  XLSTM_CHECK(s != nullptr, invalid_argument, "{}: sequence {} has no state", what, i);
  State::Impl& state = s->impl();
  XLSTM_CHECK(state.model_hash == hash && state.layout == network.state, invalid_argument,
              "{}: the state of sequence {} belongs to model {:016x}, not to {:016x}", what, i,
              state.model_hash, hash);
  XLSTM_CHECK(state.last_pass != pass, invalid_argument,
              "{}: the state of sequence {} appears twice in the batch", what, i);
  state.last_pass = pass;
  state.results_pass = 0;
}

void Model::Impl::check_batch(std::span<const SequenceInput> batch) const {
  const std::uint64_t pass = next_pass();
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const SequenceInput& s = batch[i];
    check_state("forward", s.state, i, pass);
    XLSTM_CHECK(!s.ids.empty(), invalid_argument,
                "forward: sequence {}: expected at least one token, found none", i);
    for (std::size_t t = 0; t < s.ids.size(); ++t)
      XLSTM_CHECK(s.ids[t] >= 0 && s.ids[t] < config.vocab_size, invalid_argument,
                  "forward: sequence {}, token {}: expected an id in [0, {}), found {}", i, t,
                  config.vocab_size, s.ids[t]);
  }
}

void Model::Impl::check_batch(std::span<const VectorInput> batch) const {
  const std::uint64_t pass = next_pass();
  const auto d = static_cast<std::size_t>(config.hidden_size);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const std::size_t n = batch[i].vectors.size();
    check_state("forward_vectors", batch[i].state, i, pass);
    XLSTM_CHECK(n > 0 && n % d == 0, invalid_argument,
                "forward_vectors: sequence {}: expected vectors of {} numbers, at least one, found "
                "{} numbers",
                i, d, n);
  }
}

void Model::Impl::forward(std::span<const SequenceInput> batch, Logits which, Results results) {
  const std::lock_guard<std::mutex> lock(mutex);
  check_batch(batch);
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  PassLimits sizes = limits;
  if (which == Logits::all) {
    sizes.slice = std::min(sizes.slice, model::kMostLogitRows);
    sizes.shared_tokens = std::min(sizes.shared_tokens, sizes.slice);
  }

  for_each_pass(batch, sizes, length, [&](auto sequences, auto begin, auto count, auto tokens) {
    const bool is_end = begin + count == tokens;
    std::size_t wanted = 0;
    if (which == Logits::all) wanted = static_cast<std::size_t>(count);
    if (which == Logits::last && is_end) wanted = sequences.size();
    run(sequences, begin, count, wanted, results);
    if (results.best != nullptr)
      results.best += wanted * static_cast<std::size_t>(results.count);
    else if (wanted > 0)
      results.logits += wanted * vocab;
    if (!is_end) return;

    const bool keeps = which != Logits::none && results.best == nullptr;
    const float* after = results.logits;  // one past the last row written
    for (std::size_t i = sequences.size(); i-- > 0;) {
      State::Impl& state = sequences[i].state->impl();
      state.tokens += length(sequences[i]);
      state.has_logits = keeps;
      if (!keeps) continue;
      const float* last = after - vocab;
      if (last != state.logits.data()) std::copy_n(last, vocab, state.logits.data());
      after -= vocab * (which == Logits::all ? sequences[i].ids.size() : 1);
    }
  });
}

void Model::Impl::forward_vectors(std::span<const VectorInput> batch, float* outputs) {
  const std::lock_guard<std::mutex> lock(mutex);
  check_batch(batch);
  const std::int64_t d = config.hidden_size;
  const auto vectors = [d](const VectorInput& s) {
    return static_cast<std::int64_t>(s.vectors.size()) / d;
  };
  // Those of a pass must lie end to end, as the outputs do.
  float* end = outputs;
  for (const VectorInput& s : batch) end = std::ranges::copy(s.vectors, end).out;

  for_each_pass(batch, limits, vectors, [&](auto sequences, auto begin, auto count, auto tokens) {
    const Device device = context.device();
    Pass pass(inputs_, context, network.state, sequences, count, 0, vectors);
    std::iota(inputs_.ids().begin(), inputs_.ids().end(), 0);
    const std::size_t bytes = static_cast<std::size_t>(count * d) * sizeof(float);
    float* on_device = outputs;
    if (!device.is_cpu()) {
      on_device = reinterpret_cast<float*>(result_memory(bytes));
      cuda::copy(on_device, outputs, bytes, context.stream(), device);
    }
    const Tensor x = Tensor::dense(on_device, DType::f32, {count, d}, device);
    fold_pending(sequences, inputs_);
    const auto body = [&] { network.forward_vectors(context, pass.batch(), pass.ids(), x, x); };
    run_prepared(pass.batch(), 0, pass_memory(), std::ref(body));
    if (!device.is_cpu()) cuda::copy(outputs, on_device, bytes, context.stream(), device);
    pass.finish();
    outputs += count * d;
    if (begin + count < tokens) return;
    for (const VectorInput& s : sequences) {
      s.state->impl().tokens += vectors(s);
      s.state->impl().has_logits = false;
    }
  });
}

// @param wanted  rows of logits: none, the sequences' last tokens, or all tokens
void Model::Impl::run(std::span<const SequenceInput> sequences, std::int64_t begin,
                      std::int64_t count, std::size_t wanted, const Results& results) {
  const Device device = context.device();
  Pass pass(inputs_, context, network.state, sequences, count, wanted, length);
  if (sequences.size() == 1) {
    std::ranges::copy(
        sequences[0].ids.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)),
        inputs_.ids().begin());
  } else {
    for (std::size_t i = 0; i < sequences.size(); ++i)
      std::ranges::copy(sequences[i].ids, inputs_.ids().begin() + inputs_.offsets()[i]);
  }
  if (wanted == static_cast<std::size_t>(count))
    std::iota(inputs_.rows().begin(), inputs_.rows().end(), 0);
  else
    for (std::size_t i = 0; i < wanted; ++i) inputs_.rows()[i] = inputs_.offsets()[i + 1] - 1;

  // Logits, and of a pass that is asked for the best, those: values and then ids.
  const auto rows = static_cast<std::int64_t>(wanted);
  const auto vocab = config.vocab_size;
  const std::size_t logit_bytes = wanted * static_cast<std::size_t>(vocab) * sizeof(float);
  const std::size_t best_bytes = wanted * static_cast<std::size_t>(results.count) * sizeof(float);
  const bool in_place = device.is_cpu() && results.best == nullptr;
  std::byte* memory = in_place ? nullptr : result_memory(logit_bytes);
  const Tensor logits = Tensor::dense(in_place ? static_cast<void*>(results.logits) : memory,
                                      DType::f32, {rows, vocab}, device);
  // Logits of many tokens are not worth pinned memory.
  constexpr std::size_t kMostPinned = std::size_t{16} << 20;
  const std::size_t result_bytes = results.best != nullptr ? 2 * best_bytes : logit_bytes;
  const bool pinned = results.best != nullptr || (!device.is_cpu() && result_bytes <= kMostPinned);
  if (pinned && pinned_results_.size() < result_bytes)
    pinned_results_ = Buffer::on_host_for(device, result_bytes);
  std::byte* const best = pinned_results_.data();  // a device writes them there itself
  Tensor values, ids;
  if (results.best != nullptr) {
    values = Tensor::dense(best, DType::f32, {rows, results.count}, device);
    ids = Tensor::dense(best + best_bytes, DType::i32, {rows, results.count}, device);
  }

  const std::size_t kind = 1 + wanted + (static_cast<std::size_t>(results.count) << 32);
  fold_pending(sequences, inputs_);
  const auto body = [&] {
    network.forward(context, pass.batch(), pass.ids(), pass.rows(), logits);
    if (results.best == nullptr || wanted == 0) return;
    ops::best_logits(context,
                     {.logits = logits.cols(0, results.ids), .values = values, .ids = ids});
  };
  run_prepared(pass.batch(), kind, pass_memory(), std::ref(body));
  if (results.best == nullptr && !in_place && wanted > 0)
    cuda::copy(pinned ? static_cast<void*>(pinned_results_.data()) : results.logits, memory,
               logit_bytes, context.stream(), device);
  pass.finish();
  if (results.best == nullptr) {
    if (pinned && wanted > 0) std::memcpy(results.logits, pinned_results_.data(), logit_bytes);
    return;
  }
  results_pass_ = next_pass();
  for (std::size_t i = 0; i < wanted; ++i) {
    State::Impl& state = sequences[i].state->impl();
    state.results_pass = results_pass_;
    state.results_row = static_cast<std::int64_t>(i);
  }
  const auto n = best_bytes / sizeof(float);
  for (std::size_t i = 0; i < n; ++i)
    results.best[i] = {reinterpret_cast<const float*>(best)[i],
                       reinterpret_cast<const std::int32_t*>(best + best_bytes)[i]};
}

std::byte* Model::Impl::result_memory(std::size_t bytes) {
  results_pass_ = 0;
  if (results_.size() < bytes) {
    results_ = Buffer();  // free first: the old content is dead
    results_ = Buffer(bytes, context.device());
  }
  return results_.data();
}

// Cells that this pass does not run as steps with pending tokens need all of C.
template <class Input>
void Model::Impl::fold_pending(std::span<const Input> sequences, const StepInputs& inputs) {
  const ops::Batch batch = inputs.batch();
  const bool pends = ops::pends(context, batch, network.hp.pends_from, network.state.cuda_c());
  const auto steps = [&](std::size_t i) {
    return pends && batch.offsets[i + 1] - batch.offsets[i] == 1;
  };
  bool folds = false;
  for (std::size_t i = 0; i < sequences.size(); ++i)
    folds = folds || (sequences[i].state->impl().pending && !steps(i));
  if (folds) {
    inputs.upload(context);
    network.state.fold(context, batch, pends);
  }
  for (std::size_t i = 0; i < sequences.size(); ++i) sequences[i].state->impl().pending = steps(i);
}
template void Model::Impl::fold_pending(std::span<const SequenceInput>, const StepInputs&);

Model::Impl::PassMemory Model::Impl::pass_memory() const {
  return {.inputs = &inputs_, .results = {results_.data(), pinned_results_.data()}};
}

// @param kind  what beside the lengths decides how much scratch the pass takes
void Model::Impl::run_prepared(const ops::Batch& batch, std::size_t kind, const PassMemory& memory,
                               const std::function<void()>& body) {
  // Scratch never shrinks, so a shape that was measured once fits for ever.
  const std::uint64_t key = hash_bytes(std::as_bytes(batch.offsets), kind);
  if (std::ranges::find(prepared_, key) == prepared_.end()) {
    context.start_measuring();
    try {
      body();
    } catch (...) {
      context.finish_measuring();
      throw;
    }
    context.finish_measuring();
    prepared_[next_prepared_++ % prepared_.size()] = key;
  }
  if (context.device().is_cpu()) return body();
  const auto pass = [&] {
    if (memory.inputs != nullptr) memory.inputs->upload(context);
    body();
  };
  if (batch.tokens() > model::kMostGraphTokens) return pass();
  const std::array<std::uintptr_t, 5> places{context.arena().capacity(),
                                             reinterpret_cast<std::uintptr_t>(batch.slots.data()),
                                             reinterpret_cast<std::uintptr_t>(batch.device_slots),
                                             reinterpret_cast<std::uintptr_t>(memory.results[0]),
                                             reinterpret_cast<std::uintptr_t>(memory.results[1])};
  run_graph(hash_bytes(std::as_bytes(std::span(places)), key), pass);
}

// Passes of few tokens are hundreds of short kernels, which cost the host more than the device.
// They are the same kernels and copies with the same arguments each time: whatever changes is in
// the step's inputs.
// @param key  everything that the arguments depend on
template <class Pass>
void Model::Impl::run_graph(std::uint64_t key, Pass&& pass) {
  const Device device = context.device();
  auto found = std::ranges::find(graphs_, key, &Graph::key);
  if (found == graphs_.end()) {  // the first time as it is: kernels are loaded when first launched
    pass();
    if (graphs_.size() == kMostGraphs) graphs_.erase(graphs_.begin());
    graphs_.push_back({key, nullptr});
    return;
  }
  if (found->graph == nullptr) {
    cuda::begin_capture(context.stream(), device);
    try {
      pass();
      found->graph = std::shared_ptr<void>(cuda::end_capture(context.stream(), device),
                                           [device](void* g) { cuda::destroy_graph(g, device); });
    } catch (...) {
      cuda::cancel_capture(context.stream(), device);
      graphs_.erase(found);  // whoever tries again gets the pass as it is
      throw;
    }
  }
  std::rotate(found, found + 1, graphs_.end());  // what was used last stays longest
  cuda::launch_graph(graphs_.back().graph.get(), context.stream(), device);
}

std::span<const float> Model::Impl::eval(State& state, std::span<const std::int32_t> ids) {
  const SequenceInput input{.ids = ids, .state = &state};
  forward(std::span(&input, 1), Logits::last, {.logits = state.impl().logits.data()});
  return state.last_logits();
}

void Model::Impl::fetch_logits(State& state) {
  const std::lock_guard<std::mutex> lock(mutex);
  State::Impl& s = state.impl();
  if (s.has_logits || s.results_pass == 0) return;
  const std::byte* from = s.results_pass == results_pass_ ? results_.data() : nullptr;
  for (const model::DrawingMemory::Turn& turn : drawing_.turns)
    if (s.results_pass == turn.pass) from = turn.logits.data();
  if (from == nullptr) return;
  const std::size_t bytes = s.logits.size() * sizeof(float);
  copy_memory(s.logits.data(), {}, from + static_cast<std::size_t>(s.results_row) * bytes,
              context.device(), bytes);
  s.has_logits = true;
}

}  // namespace xlstm
