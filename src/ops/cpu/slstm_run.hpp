#pragma once
// What the workers of an sLSTM call share, forward or backward.

#include <algorithm>
#include <atomic>
#include <numeric>

#include "core/spin_barrier.hpp"
#include "core/threads.hpp"
#include "ops/cpu/slstm_plan.hpp"

namespace xlstm::ops::cpu {

/// A share of the work: units of heads [head0, head1) that fall to `part` of `parts`, for rows
/// [row0, row1) through all steps. The parts meet at the barrier after every step.
struct SlstmShare {
  std::int64_t head0, head1, row0, row1;
  int part = 0, parts = 1;
  SpinBarrier* barrier = nullptr;
  float* pre;    ///< [kRowBlock][4][unit], what comes out of the product
  float* panel;  ///< room for the columns of R of one unit
  bool pack;     ///< whether this share packs its own columns of R

  void meet() const {
    if (parts > 1) barrier->wait(parts);
  }
};

/// Where a worker goes from one unit to the next: along the features, or to a neighbouring step.
struct SlstmNext {
  std::int64_t tokens, features;
};

/// Rows between a request for memory and its use: enough for its latency, and few enough that
/// sequences whose lengths are powers of two do not push each other out of the cache.
inline constexpr std::int64_t kSlstmRowsAhead = 4;

/// Sequences by falling length, then by number.
class SlstmRows {
 public:
  SlstmRows(const Batch& batch, std::int32_t* order) : batch_(batch), order_(order) {
    std::iota(order, order + batch.sequences(), 0);
    std::sort(order, order + batch.sequences(), [&batch](std::int32_t a, std::int32_t b) {
      const auto length = [&batch](std::int32_t s) {
        const auto i = static_cast<std::size_t>(s);
        return batch.offsets[i + 1] - batch.offsets[i];
      };
      return length(a) != length(b) ? length(a) > length(b) : a < b;
    });
  }

  std::size_t sequence(std::int64_t row) const { return static_cast<std::size_t>(order_[row]); }
  std::int64_t begin(std::int64_t row) const { return batch_.offsets[sequence(row)]; }
  std::int64_t length(std::int64_t row) const {
    return batch_.offsets[sequence(row) + 1] - begin(row);
  }
  /// First row of [row0, row1) that has no token `step`.
  std::int64_t end_at(std::int64_t row0, std::int64_t row1, std::int64_t step) const {
    while (row1 > row0 && length(row1 - 1) <= step) --row1;
    return row1;
  }

 private:
  const Batch& batch_;
  const std::int32_t* order_;
};

/// Hands out parts of one block of scratch memory.
class ScratchFloats {
 public:
  explicit ScratchFloats(std::byte* memory) : next_(reinterpret_cast<float*>(memory)) {}
  float* take(std::int64_t floats) {
    float* begin = next_;
    next_ += floats;
    return begin;
  }

 private:
  float* next_;
};

/// Runs body(share) for all shares of a plan. pack_all(workers) packs R beforehand where it is kept
/// and several shares read the same columns of it.
template <class PackAll, class Body>
void run_slstm_shares(const SlstmPlan& plan, bool keeps_packed, float* pre, float* packed,
                      PackAll&& pack_all, Body&& body) {
  const auto share_of = [&](std::int64_t worker) {
    return SlstmShare{.head0 = 0,
                      .head1 = plan.heads,
                      .row0 = 0,
                      .row1 = plan.rows,
                      .pre = pre + worker * SlstmPlan::kPreFloats,
                      .panel = packed + worker * 4 * SlstmPlan::kUnit * plan.dh,
                      .pack = true};
  };
  const int workers = static_cast<int>(plan.workers);
  if (plan.team) {
    SpinBarrier barrier;
    parallel_team(workers, [&](int member, int members) {
      SlstmShare share = share_of(member);
      share.part = member;
      share.parts = members;
      share.barrier = &barrier;
      body(share);
    });
    return;
  }
  const bool pack_before = plan.groups > 1 && keeps_packed;
  if (pack_before) pack_all(workers);
  std::atomic<std::int64_t> next{0};
  const std::int64_t tasks = plan.heads * plan.groups;
  parallel_ranges(workers, workers, 1, [&](Range worker) {
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      SlstmShare share = share_of(worker.begin);
      share.head0 = task / plan.groups;
      share.head1 = share.head0 + 1;
      share.row0 = plan.rows * (task % plan.groups) / plan.groups;
      share.row1 = plan.rows * (task % plan.groups + 1) / plan.groups;
      share.pack = !pack_before;
      body(share);
    }
  });
}

}  // namespace xlstm::ops::cpu
