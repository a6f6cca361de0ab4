#pragma once
// How an sLSTM call on CUDA is cut into blocks.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/slstm.hpp"

namespace xlstm::ops::cuda {

/// A block takes one head of a group of sequences through all their tokens, a warp some units of
/// the head. Every sum has one order, so the plan may look at the batch: groups grow, to share what
/// is read of R, only where the card has no room for more blocks.
struct SlstmPlan {
  static constexpr int kMostGroup = 8;               ///< sequences of a block
  static constexpr int kMostWarps = 16;              ///< of a block: leaves 128 registers a thread
  static constexpr std::int64_t kBlocks = 128;       ///< about the multiprocessors of a large card
  static constexpr std::int64_t kShared = 48 << 10;  ///< bytes of a block

  SlstmPlan(const Batch& batch, const Tensor& r)
      : heads(r.dim(0)), dh(r.dim(2)), sequences(batch.sequences()) {
    while (group < kMostGroup && blocks() > kBlocks && state_bytes(2 * group) <= kShared)
      group *= 2;
    // What is used once need not be kept.
    const bool again = batch.tokens() > sequences;
    const std::int64_t bytes = r_bytes(static_cast<std::int64_t>(size_of(r.dtype)));
    keeps_r = again && state_bytes(group) + bytes <= kShared;
    shared = state_bytes(group) + (keeps_r ? bytes : 0);
  }

  std::int64_t heads, dh, sequences;
  int group = 1;            ///< sequences of a block: 1, 2, 4 or 8
  bool keeps_r = false;     ///< R of the head lies in shared memory, else it is read every step
  std::int64_t shared = 0;  ///< bytes

  bool fits() const { return shared <= kShared; }
  std::int64_t blocks() const { return heads * ((sequences + group - 1) / group); }
  std::int64_t units_per_warp() const { return (dh + kMostWarps - 1) / kMostWarps; }
  std::int64_t warps() const { return (dh + units_per_warp() - 1) / units_per_warp(); }
  /// A row of R or of the state in shared memory, which is read in fours.
  std::int64_t padded_dh() const { return (dh + 3) / 4 * 4; }

 private:
  /// h twice, c, n and m
  std::int64_t state_bytes(std::int64_t rows) const { return 5 * 4 * rows * padded_dh(); }
  std::int64_t r_bytes(std::int64_t size) const { return 4 * dh * padded_dh() * size; }
};

}  // namespace xlstm::ops::cuda
