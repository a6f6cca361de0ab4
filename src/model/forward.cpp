// How a batch is cut into passes through the network.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <numeric>

#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "core/hash.hpp"
#include "model/model_impl.hpp"
#include "model/state_impl.hpp"
#include "model/step_inputs.hpp"

namespace xlstm {
namespace {

using model::kSharedTokens;
using model::kSliceTokens;
using model::StepInputs;

// Calls body(sequences, begin, count, tokens) for every pass through the network: as many short
// sequences as share one, or a slice [begin, begin + count) of one long sequence after the other.
template <class Input, class Length, class Body>
void for_each_pass(std::span<const Input> batch, const Length& length, Body&& body) {
  for (std::size_t first = 0; first < batch.size();) {
    std::size_t n = 1;
    std::int64_t tokens = length(batch[first]);
    while (first + n < batch.size() && tokens + length(batch[first + n]) <= kSharedTokens)
      tokens += length(batch[first + n++]);
    for (std::int64_t begin = 0; begin < tokens; begin += kSliceTokens)
      body(batch.subspan(first, n), begin, std::min(kSliceTokens, tokens - begin), tokens);
    first += n;
  }
}

class Pass {
 public:
  template <class Input, class Length>
  Pass(std::span<const Input> sequences, std::int64_t count, const Length& length, Device device)
      : size_(sequences.size()) {
    inputs.offsets[0] = 0;
    for (std::size_t i = 0; i < size_; ++i) {
      inputs.slots[i] = sequences[i].state->impl().on(device);
      inputs.offsets[i + 1] =
          inputs.offsets[i] + static_cast<std::int32_t>(size_ == 1 ? count : length(sequences[i]));
    }
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  ~Pass() {
    if (unfinished_ == nullptr) return;
    try {
      unfinished_->synchronize();
    } catch (const std::exception&) {  // another error is on its way already
    }
  }
  /// After `inputs` are complete: queues a copy of them to the device of `context`.
  void upload(const Context& context, Buffer& memory) {
    if (context.device().is_cpu()) return;
    if (memory.size() == 0) memory = Buffer(sizeof(StepInputs), context.device());
    unfinished_ = &context;
    cuda::copy(memory.data(), &inputs, sizeof(StepInputs), context.stream(), context.device());
    device_ = reinterpret_cast<const StepInputs*>(memory.data());
  }
  /// Waits until the pass is done and its `bytes` of results are where the host wants them.
  /// @param between  memory of the host that the device writes fastest; null: none
  void finish(const Context& context, void* to, const void* results, std::size_t bytes,
              void* between) {
    if (to != results)
      cuda::copy(between != nullptr ? between : to, results, bytes, context.stream(),
                 context.device());
    unfinished_ = nullptr;
    context.synchronize();
    if (to != results && between != nullptr) std::memcpy(to, between, bytes);
  }

  ops::Batch batch() const {
    ops::Batch batch{.offsets = std::span(inputs.offsets).first(size_ + 1),
                     .slots = std::span(inputs.slots).first(size_)};
    if (device_ != nullptr) {
      batch.device_offsets = device_->offsets.data();
      batch.device_slots = device_->slots.data();
    }
    return batch;
  }
  model::Ids ids(std::int64_t count) const {
    return {std::span(inputs.ids).first(static_cast<std::size_t>(count)),
            device_ != nullptr ? device_->ids.data() : nullptr};
  }
  model::Ids rows(std::size_t count) const {
    return {std::span(inputs.rows).first(count),
            device_ != nullptr ? device_->rows.data() : nullptr};
  }

  StepInputs inputs;

 private:
  std::size_t size_;
  const StepInputs* device_ = nullptr;
  const Context* unfinished_ = nullptr;  ///< whose stream may still read `inputs`
};

std::int64_t length(const SequenceInput& s) { return static_cast<std::int64_t>(s.ids.size()); }

// A number for every forward pass, to find a state that appears twice; of all models, because a
// state may go from one to another that holds the same weights.
std::uint64_t next_pass() {
  static std::atomic<std::uint64_t> passes{0};
  return ++passes;
}

}  // namespace

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

void Model::Impl::forward(std::span<const SequenceInput> batch, Logits which, float* logits) {
  const std::lock_guard<std::mutex> lock(mutex);
  check_batch(batch);
  std::array<std::int32_t, kSliceTokens> rows;  // NOLINT: filled as far as it is read
  const auto vocab = static_cast<std::size_t>(config.vocab_size);

  for_each_pass(batch, length, [&](auto sequences, auto begin, auto count, auto tokens) {
    const bool is_end = begin + count == tokens;
    std::size_t wanted = 0;
    if (which == Logits::all) {
      for (std::int64_t t = 0; t < count; ++t) rows[wanted++] = static_cast<std::int32_t>(t);
    } else if (which == Logits::last && is_end) {
      std::int64_t end = -begin;
      for (const SequenceInput& s : sequences) {
        end += length(s);
        rows[wanted++] = static_cast<std::int32_t>(end - 1);
      }
    }
    run(sequences, begin, count, std::span(rows).first(wanted), logits);
    logits += wanted * vocab;
    if (!is_end) return;

    const float* after = logits;  // one past the last row written
    for (std::size_t i = sequences.size(); i-- > 0;) {
      State::Impl& state = sequences[i].state->impl();
      state.tokens += length(sequences[i]);
      state.has_logits = which != Logits::none;
      if (which == Logits::none) continue;
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

  for_each_pass(batch, vectors, [&](auto sequences, auto begin, auto count, auto tokens) {
    const Device device = context.device();
    Pass pass(sequences, count, vectors, device);
    std::iota(pass.inputs.ids.begin(), pass.inputs.ids.begin() + count, 0);
    pass.upload(context, step_inputs_);
    const std::size_t bytes = static_cast<std::size_t>(count * d) * sizeof(float);
    float* on_device = outputs;
    if (!device.is_cpu()) {
      on_device = device_floats(static_cast<std::size_t>(count * d));
      cuda::copy(on_device, outputs, bytes, context.stream(), device);
    }
    const Tensor x = Tensor::dense(on_device, DType::f32, {count, d}, device);
    run_prepared(pass.batch(), 0,
                 [&] { network.forward_vectors(context, pass.batch(), pass.ids(count), x, x); });
    pass.finish(context, outputs, on_device, bytes,
                host_floats(static_cast<std::size_t>(count * d)));
    outputs += count * d;
    if (begin + count < tokens) return;
    for (const VectorInput& s : sequences) {
      s.state->impl().tokens += vectors(s);
      s.state->impl().has_logits = false;
    }
  });
}

void Model::Impl::run(std::span<const SequenceInput> sequences, std::int64_t begin,
                      std::int64_t count, std::span<const std::int32_t> rows, float* logits) {
  const Device device = context.device();
  Pass pass(sequences, count, length, device);
  if (sequences.size() == 1) {
    std::ranges::copy(
        sequences[0].ids.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)),
        pass.inputs.ids.begin());
  } else {
    for (std::size_t i = 0; i < sequences.size(); ++i)
      std::ranges::copy(sequences[i].ids, pass.inputs.ids.begin() + pass.inputs.offsets[i]);
  }
  std::ranges::copy(rows, pass.inputs.rows.begin());
  pass.upload(context, step_inputs_);
  const std::size_t floats = rows.size() * static_cast<std::size_t>(config.vocab_size);
  const Tensor out =
      Tensor::dense(device.is_cpu() ? logits : device_floats(floats), DType::f32,
                    {static_cast<std::int64_t>(rows.size()), config.vocab_size}, device);
  run_prepared(pass.batch(), 1 + rows.size(), [&] {
    network.forward(context, pass.batch(), pass.ids(count), pass.rows(rows.size()), out);
  });
  pass.finish(context, logits, out.data, floats * sizeof(float), host_floats(floats));
}

float* Model::Impl::device_floats(std::size_t count) {
  if (results_.size() < count * sizeof(float)) {
    results_ = Buffer();  // free first: the old content is dead
    results_ = Buffer(count * sizeof(float), context.device());
  }
  return reinterpret_cast<float*>(results_.data());
}

float* Model::Impl::host_floats(std::size_t count) {
  constexpr std::size_t kMost = std::size_t{4} << 20;  // what cannot be swapped out is kept small
  if (context.device().is_cpu() || count == 0 || count > kMost) return nullptr;
  if (host_results_size_ < count) {
    host_results_.reset();
    host_results_size_ = 0;
    host_results_ = {cuda::allocate_pinned(count * sizeof(float), context.device()),
                     cuda::release_pinned};
    host_results_size_ = count;
  }
  return static_cast<float*>(host_results_.get());
}

// @param kind  what beside the lengths decides how much scratch the pass takes
template <class Pass>
void Model::Impl::run_prepared(const ops::Batch& batch, std::size_t kind, Pass&& pass) {
  // Scratch never shrinks, so a shape that was measured once fits for ever.
  const std::uint64_t key = hash_bytes(std::as_bytes(batch.offsets), kind);
  if (std::ranges::find(prepared_, key) == prepared_.end()) {
    context.start_measuring();
    try {
      pass();
    } catch (...) {
      context.finish_measuring();
      throw;
    }
    context.finish_measuring();
    prepared_[next_prepared_++ % prepared_.size()] = key;
  }
  if (context.device().is_cpu() || batch.tokens() > kSharedTokens) return pass();
  const std::array<std::uint64_t, 2> memory{context.arena().capacity(),
                                            reinterpret_cast<std::uintptr_t>(results_.data())};
  run_graph(hash_bytes(std::as_bytes(std::span(memory)), key), pass);
}

// Passes of few tokens are hundreds of short kernels, which cost the host more than the device.
// They are the same kernels with the same arguments each time: whatever changes is in the step's
// inputs.
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
  cuda::launch_graph(found->graph.get(), context.stream(), device);
}

std::span<const float> Model::Impl::eval(State& state, std::span<const std::int32_t> ids) {
  const SequenceInput input{.ids = ids, .state = &state};
  forward(std::span(&input, 1), Logits::last, state.impl().logits.data());
  return state.last_logits();
}

}  // namespace xlstm
