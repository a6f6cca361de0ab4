// How a batch is cut into passes through the network.

#include <algorithm>
#include <atomic>
#include <numeric>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "model/model_impl.hpp"
#include "model/state_impl.hpp"

namespace xlstm {
namespace {

// Tokens of one pass. Bounds the activations (about 210 kB per token at 7B); at this many tokens
// the matrix products have reached their peak rate. A multiple of the usual chunk sizes.
constexpr std::int64_t kSliceTokens = 512;

// Products of up to so many rows have one summation order, so sequences may share a pass without
// changing each other's bits (ops/linear.hpp). A longer sequence has passes of its own.
constexpr std::int64_t kSharedTokens = 16;

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

// Where the tokens of a pass lie and whose they are.
struct PassBatch {
  template <class Input, class Length>
  PassBatch(std::span<const Input> sequences, std::int64_t count, const Length& length)
      : size(sequences.size()) {
    offsets[0] = 0;
    for (std::size_t i = 0; i < size; ++i) {
      slots[i] = sequences[i].state->impl().record.data();
      offsets[i + 1] =
          offsets[i] + static_cast<std::int32_t>(size == 1 ? count : length(sequences[i]));
    }
  }
  ops::Batch view() const {
    return {.offsets = std::span(offsets).first(size + 1), .slots = std::span(slots).first(size)};
  }

  std::size_t size;
  std::array<std::int32_t, kSharedTokens + 1> offsets;
  std::array<std::byte*, kSharedTokens> slots;
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
  std::array<std::int32_t, kSliceTokens> rows;  // NOLINT: filled below
  std::iota(rows.begin(), rows.end(), 0);
  const std::int64_t d = config.hidden_size;
  const auto vectors = [d](const VectorInput& s) {
    return static_cast<std::int64_t>(s.vectors.size()) / d;
  };
  // Those of a pass must lie end to end, as the outputs do.
  float* end = outputs;
  for (const VectorInput& s : batch) end = std::ranges::copy(s.vectors, end).out;

  for_each_pass(batch, vectors, [&](auto sequences, auto begin, auto count, auto tokens) {
    const PassBatch pass(sequences, count, vectors);
    const auto ids = std::span<const std::int32_t>(rows).first(static_cast<std::size_t>(count));
    const Tensor x = Tensor::dense(outputs, DType::f32, {count, d});
    run_prepared(pass.view(), 0, [&] { network.forward_vectors(context, pass.view(), ids, x, x); });
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
  const PassBatch pass(sequences, count, length);
  std::array<std::int32_t, kSharedTokens> joined;  // NOLINT
  std::span<const std::int32_t> ids;
  if (sequences.size() == 1) {
    ids =
        sequences[0].ids.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
  } else {
    for (std::size_t i = 0; i < sequences.size(); ++i)
      std::ranges::copy(sequences[i].ids, joined.begin() + pass.offsets[i]);
    ids = std::span(joined).first(static_cast<std::size_t>(count));
  }
  const Tensor out = Tensor::dense(logits, DType::f32,
                                   {static_cast<std::int64_t>(rows.size()), config.vocab_size});
  run_prepared(pass.view(), 1 + rows.size(),
               [&] { network.forward(context, pass.view(), ids, rows, out); });
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
  pass();
}

std::span<const float> Model::Impl::eval(State& state, std::span<const std::int32_t> ids) {
  const SequenceInput input{.ids = ids, .state = &state};
  forward(std::span(&input, 1), Logits::last, state.impl().logits.data());
  return state.last_logits();
}

}  // namespace xlstm
