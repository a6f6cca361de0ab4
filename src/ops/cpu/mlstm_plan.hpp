#pragma once
// How an mlstm call on the CPU is cut into tasks, and what scratch memory they need.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/mlstm.hpp"

namespace xlstm::ops::cpu {

/// One task is a sequence, a head and a group of value columns. Columns are processed in units of
/// kUnit whatever the grouping, so that neither threads nor batch change a bit of the result.
struct MlstmPlan {
  static constexpr std::int64_t kUnit = 128;

  MlstmPlan(const MlstmArgs& a, int threads)
      : sequences(a.batch.sequences()),
        heads(a.i.dim(1)),
        dqk(a.q.dim(1) / heads),
        dv(a.v.dim(1) / heads),
        units((dv + kUnit - 1) / kUnit) {
    std::int64_t longest = 0;
    for (std::size_t s = 1; s < a.batch.offsets.size(); ++s)
      longest = std::max<std::int64_t>(longest, a.batch.offsets[s] - a.batch.offsets[s - 1]);
    chunk = std::min(a.chunk, longest);
    for (const std::byte* slot : a.batch.slots) null_slots = null_slots || slot == nullptr;
    chunk_stride = padded(chunk);
    groups = choose_groups(threads);
    workers = std::min<std::int64_t>(threads, tasks());
  }

  std::int64_t tasks() const { return sequences * heads * groups; }
  /// Value columns [begin, end) of group g.
  std::int64_t column(std::int64_t g) const { return std::min(dv, units * g / groups * kUnit); }

  // Scratch of one worker, in floats. Rows of q, k, v and num are copied to strides that are no
  // multiple of 4 KiB: the rows of activations often are, and then fall on each other in the cache.
  static constexpr std::int64_t kChunkRows = 7;  ///< of numbers per token: gates and factors
  std::int64_t qk_stride() const { return padded(dqk) + 16; }
  std::int64_t v_stride() const { return padded(std::min(kUnit, dv)) + 16; }
  std::int64_t n_floats() const { return 2 * padded(dqk); }  ///< n in double
  /// C of a sequence without a record.
  std::int64_t own_c_floats() const { return null_slots ? padded(dqk * dv) : 0; }
  std::int64_t worker_floats() const {
    const std::int64_t per_token = 2 * qk_stride() + 2 * v_stride() + chunk_stride;
    return n_floats() + own_c_floats() +
           (chunk > 1 ? 2 * n_floats() + chunk * per_token + kChunkRows * chunk_stride : 0);
  }
  /// n and m of every sequence and head, double, wait here until no task reads the old ones any
  /// more.
  std::int64_t result_floats() const { return groups > 1 ? 2 * sequences * heads * (dqk + 1) : 0; }
  std::size_t bytes() const {
    return sizeof(float) *
           static_cast<std::size_t>(workers * worker_floats() + padded(result_floats()));
  }

  /// Rounds up to a multiple of the widest vector, and of a cache line.
  static constexpr std::int64_t padded(std::int64_t n) { return (n + 15) / 16 * 16; }

  std::int64_t sequences, heads, dqk, dv, units;
  std::int64_t chunk = 1, chunk_stride = 16;  ///< longest chunk, and its padded length
  std::int64_t groups = 1, workers = 1;
  bool null_slots = false;

 private:
  /// The number of groups with the least work on the critical path: groups repeat the scores.
  std::int64_t choose_groups(int threads) const {
    const std::int64_t score_cost = chunk > 1 ? chunk * dqk : dqk;
    const std::int64_t unit_cost = (chunk > 1 ? 2 * dqk + chunk : dqk) * std::min(kUnit, dv);
    std::int64_t best = 1, best_cost = INT64_MAX;
    for (std::int64_t g = 1; g <= units; ++g) {
      const std::int64_t rounds = (sequences * heads * g + threads - 1) / threads;
      const std::int64_t cost = rounds * (score_cost + (units + g - 1) / g * unit_cost);
      if (cost < best_cost) {
        best = g;
        best_cost = cost;
      }
    }
    return best;
  }
};

}  // namespace xlstm::ops::cpu
