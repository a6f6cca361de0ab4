#pragma once
// How an mlstm call on a CUDA device is cut, and where its scratch memory lies.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda {

/// Sequences of more than one token are cut into chunks of kChunk, whatever the argument `chunk`
/// says. All chunks of the batch, sequence after sequence, are processed in windows: states at the
/// beginning of each chunk first, then the outputs of all chunks. A window bounds the memory for
/// states and changes no bit.
struct MlstmPlan {
  static constexpr std::int64_t kChunk = 64;
  static constexpr std::size_t kStateBytes = std::size_t{256} << 20;  ///< of a window
  static constexpr std::int64_t kGateRows = 9;  ///< numbers per token and head

  explicit MlstmPlan(const MlstmArgs& a, std::size_t state_bytes = kStateBytes)
      : sequences(a.batch.sequences()),
        tokens(a.batch.tokens()),
        heads(a.i.dim(1)),
        dqk(a.q.dim(1) / heads),
        dv(a.v.dim(1) / heads),
        c_pitch((dv + 3) / 4 * 4) {
    for (std::size_t s = 1; s < a.batch.offsets.size(); ++s) {
      const std::int64_t length = a.batch.offsets[s] - a.batch.offsets[s - 1];
      if (length == 1) continue;
      ++longs;
      chunks += (length + kChunk - 1) / kChunk;
    }
    const auto bytes = static_cast<std::int64_t>(sizeof(float)) * c_floats();
    window =
        std::min(chunks, std::max<std::int64_t>(1, static_cast<std::int64_t>(state_bytes) / bytes));
    states = window < chunks ? window + 2 : window;

    const auto place = [this](std::int64_t numbers) {  // of 4 bytes each
      const std::size_t at = bytes_;
      bytes_ += (static_cast<std::size_t>(numbers) * 4 + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    gates = place(kGateRows * heads * tokens);
    firsts = place(sequences);
    long_sequences = place(longs);
    chunk_sequences = place(chunks);
    c = place(states * c_floats());
    n = place(states * heads * dqk);
    scores = place(window * heads * kChunk * kChunk);
  }

  std::int64_t c_floats() const { return heads * dqk * c_pitch; }  ///< of one state
  std::size_t bytes() const { return bytes_; }

  std::int64_t sequences, tokens, heads, dqk, dv;
  std::int64_t c_pitch;     ///< of the rows of C in scratch memory: whole 16 bytes
  std::int64_t longs = 0;   ///< sequences of more than one token
  std::int64_t chunks = 0;  ///< of all those
  std::int64_t window = 0;  ///< chunks at a time
  /// States in scratch memory: one per chunk of a window, and two between which a sequence that
  /// goes on in the next window alternates.
  std::int64_t states = 0;
  // Bytes from the beginning of the scratch memory.
  std::size_t gates, firsts, long_sequences, chunk_sequences, c, n, scores;

 private:
  std::size_t bytes_ = 0;
};

enum class MlstmSequences { all, longer /**< than one token; the others are left alone */ };

/// The body of mlstm with another bound on the memory for states.
void mlstm_within(Context& context, const MlstmArgs& args, std::size_t state_bytes,
                  MlstmSequences which = MlstmSequences::all);

}  // namespace xlstm::ops::cuda
