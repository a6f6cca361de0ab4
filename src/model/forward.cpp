// How a batch is cut into passes through the network.

#include <algorithm>
#include <atomic>

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

std::int64_t length(const SequenceInput& s) { return static_cast<std::int64_t>(s.ids.size()); }

}  // namespace

void Model::Impl::check_batch(std::span<const SequenceInput> batch) {
  // Numbers of passes, to find a state that appears twice; of all models, because a state may go
  // from one to another that holds the same weights.
  static std::atomic<std::uint64_t> passes{0};
  const std::uint64_t pass = ++passes;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const SequenceInput& s = batch[i];
    XLSTM_CHECK(s.state != nullptr, invalid_argument, "forward: sequence {} has no state", i);
    XLSTM_CHECK(!s.ids.empty(), invalid_argument,
                "forward: sequence {}: expected at least one token, found none", i);
    State::Impl& state = s.state->impl();
    XLSTM_CHECK(state.model_hash == hash && state.layout == network.state, invalid_argument,
                "forward: the state of sequence {} belongs to model {:016x}, not to {:016x}", i,
                state.model_hash, hash);
    XLSTM_CHECK(state.last_pass != pass, invalid_argument,
                "forward: the state of sequence {} appears twice in the batch", i);
    state.last_pass = pass;
    for (std::size_t t = 0; t < s.ids.size(); ++t)
      XLSTM_CHECK(s.ids[t] >= 0 && s.ids[t] < config.vocab_size, invalid_argument,
                  "forward: sequence {}, token {}: expected an id in [0, {}), found {}", i, t,
                  config.vocab_size, s.ids[t]);
  }
}

void Model::Impl::forward(std::span<const SequenceInput> batch, Logits which, float* logits) {
  const std::lock_guard<std::mutex> lock(mutex);
  check_batch(batch);
  std::array<std::int32_t, kSliceTokens> rows;  // NOLINT: filled as far as it is read
  const auto vocab = static_cast<std::size_t>(config.vocab_size);

  for (std::size_t first = 0; first < batch.size();) {
    // As many short sequences as share a pass, or a slice of one long sequence after the other.
    std::size_t n = 1;
    std::int64_t tokens = length(batch[first]);
    while (first + n < batch.size() && tokens + length(batch[first + n]) <= kSharedTokens)
      tokens += length(batch[first + n++]);
    const std::span<const SequenceInput> sequences = batch.subspan(first, n);

    for (std::int64_t begin = 0; begin < tokens; begin += kSliceTokens) {
      const std::int64_t count = std::min(kSliceTokens, tokens - begin);
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
    }

    const float* after = logits;  // one past the last row written
    for (std::size_t i = n; i-- > 0;) {
      State::Impl& state = sequences[i].state->impl();
      state.tokens += length(sequences[i]);
      state.has_logits = which != Logits::none;
      if (which == Logits::none) continue;
      const float* last = after - vocab;
      if (last != state.logits.data()) std::copy_n(last, vocab, state.logits.data());
      after -= vocab * (which == Logits::all ? sequences[i].ids.size() : 1);
    }
    first += n;
  }
}

void Model::Impl::run(std::span<const SequenceInput> sequences, std::int64_t begin,
                      std::int64_t count, std::span<const std::int32_t> rows, float* logits) {
  std::array<std::int32_t, kSharedTokens> joined;  // NOLINT
  std::array<std::int32_t, kSharedTokens + 1> offsets;
  std::array<std::byte*, kSharedTokens> slots;  // NOLINT
  std::span<const std::int32_t> ids = sequences[0].ids.subspan(
      static_cast<std::size_t>(begin), sequences.size() == 1 ? static_cast<std::size_t>(count) : 0);
  offsets[0] = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    slots[i] = sequences[i].state->impl().record.data();
    offsets[i + 1] = offsets[i] + static_cast<std::int32_t>(
                                      sequences.size() == 1 ? count : length(sequences[i]));
    if (sequences.size() > 1) std::ranges::copy(sequences[i].ids, joined.begin() + offsets[i]);
  }
  if (sequences.size() > 1) ids = std::span(joined).first(static_cast<std::size_t>(count));

  const ops::Batch batch{.offsets = std::span(offsets).first(sequences.size() + 1),
                         .slots = std::span(slots).first(sequences.size())};
  const Tensor out = Tensor::dense(logits, DType::f32,
                                   {static_cast<std::int64_t>(rows.size()), config.vocab_size});
  prepare(batch, ids, rows, out);
  network.forward(context, batch, ids, rows, out);
}

void Model::Impl::prepare(const ops::Batch& batch, std::span<const std::int32_t> ids,
                          std::span<const std::int32_t> rows, Tensor logits) {
  // Scratch never shrinks, so a shape that was measured once fits for ever.
  const std::uint64_t key = hash_bytes(std::as_bytes(batch.offsets), 1 + rows.size());
  if (std::ranges::find(prepared_, key) != prepared_.end()) return;
  context.start_measuring();
  try {
    network.forward(context, batch, ids, rows, logits);
  } catch (...) {
    context.finish_measuring();
    throw;
  }
  context.finish_measuring();
  prepared_[next_prepared_++ % prepared_.size()] = key;
}

std::span<const float> Model::Impl::eval(State& state, std::span<const std::int32_t> ids) {
  const SequenceInput input{.ids = ids, .state = &state};
  forward(std::span(&input, 1), Logits::last, state.impl().logits.data());
  return state.last_logits();
}

}  // namespace xlstm
