#pragma once
// How an mlstm_backward call on the CPU is cut into tasks, and what scratch memory they need.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/mlstm.hpp"

namespace xlstm::ops::cpu {

/// A pair is a head of a sequence. Its work has phases: states by groups of value columns, then
/// denominators by chunks, gradients of states by columns, and the other gradients by chunks. With
/// many pairs each thread takes whole ones, the last three phases chunk by chunk; with few, the
/// threads share the phases of a wave of them. Neither changes a bit of the result.
struct MlstmBackwardPlan {
  static constexpr std::int64_t kUnit = 128;      ///< value columns of a task in a wave
  static constexpr std::int64_t kTokenRows = 11;  ///< numbers per token that a pair keeps

  MlstmBackwardPlan(const MlstmBackwardArgs& a, int threads_)
      : threads(threads_),
        sequences(a.batch.sequences()),
        heads(a.i.dim(1)),
        dqk(a.q.dim(1) / heads),
        dv(a.v.dim(1) / heads) {
    std::int64_t longest = 0;
    for (std::size_t s = 1; s < a.batch.offsets.size(); ++s)
      longest = std::max<std::int64_t>(longest, a.batch.offsets[s] - a.batch.offsets[s - 1]);
    chunk = std::min(a.chunk, longest);
    chunk_stride = padded(chunk);
    most_chunks = chunks(longest);
    const std::int64_t pairs = sequences * heads;
    whole_pairs = threads == 1 || pairs % threads == 0 || pairs >= 4 * threads;
    unit = whole_pairs ? dv : kUnit;
    units = (dv + unit - 1) / unit;
    wave = whole_pairs ? std::min<std::int64_t>(threads, pairs)
                       : std::min((threads + units - 1) / units, pairs);
    workers = whole_pairs ? wave : threads;
  }

  /// Of `count` gradients of states, or score matrices, those in memory at a time: a thread with a
  /// pair of its own goes from chunk to chunk, with all its work on one.
  std::int64_t kept(std::int64_t count) const {
    return whole_pairs ? std::min<std::int64_t>(count, 2) : count;
  }
  std::int64_t chunks(std::int64_t tokens) const { return (tokens + chunk - 1) / chunk; }

  // Strides are no multiple of 4 KiB: the rows of activations often are, and then fall on each
  // other in the cache.
  std::int64_t qk_stride() const { return padded(dqk) + 16; }
  std::int64_t v_stride() const { return padded(dv) + 16; }
  /// Floats of one pair: what its phases hand to each other.
  std::int64_t pair_floats() const {
    const std::int64_t states = most_chunks + 1;
    return kTokenRows * most_chunks * chunk_stride + 2 * padded(states) + 2 * states * padded(dqk) +
           (states + kept(states)) * dqk * v_stride() + kept(most_chunks) * chunk * chunk_stride;
  }
  /// Floats of one worker: dense copies of rows, scores, and three numbers per token.
  std::int64_t worker_floats() const {
    return chunk * (3 * qk_stride() + 3 * v_stride() + chunk_stride) + 3 * chunk_stride;
  }
  std::size_t bytes() const {
    return sizeof(float) *
           static_cast<std::size_t>(wave * pair_floats() + workers * worker_floats());
  }

  /// Rounds up to a multiple of the widest vector, and of a cache line.
  static constexpr std::int64_t padded(std::int64_t n) { return (n + 15) / 16 * 16; }

  int threads;
  std::int64_t sequences, heads, dqk, dv;
  std::int64_t chunk, chunk_stride, most_chunks;
  bool whole_pairs;
  std::int64_t unit, units, wave, workers;
};

}  // namespace xlstm::ops::cpu
