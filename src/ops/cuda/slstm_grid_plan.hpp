#pragma once
// How an sLSTM call with wide heads is spread over the whole card.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/slstm.hpp"

namespace xlstm::ops::cuda {

/// A team of blocks takes one head of 8 sequences through all their tokens. A block has 3 or 4
/// tiles of 4 units, and its warps share the columns of their rows of R, which are in registers.
/// The blocks hand h to each other through the L2 cache: `kSlots` copies of it in scratch memory,
/// of which each step takes the next one.
/// For heads that are too wide for a cluster, where products may round h.
/// What decides the order of sums, `pieces`, depends on the shape alone.
struct SlstmGridPlan {
  static constexpr int kSequences = 8;
  static constexpr int kWarps = 8;  ///< that multiply
  static constexpr int kSlots = 8;
  static constexpr int kMostTiles = 4;
  static constexpr std::int64_t kFew = 384;  ///< units that a cluster can hold
  static constexpr std::int64_t kMost = 1024;

  /// @param multiprocessors  a block takes a whole one
  SlstmGridPlan(const Batch& batch, const Tensor& r, DType product, int multiprocessors = 0) {
    const std::int64_t dh = r.dim(2);
    fits = r.dtype != DType::f32 && product == DType::bf16 && dh > kFew && dh <= kMost;
    pieces = static_cast<int>(ceil(ceil(dh, 16), kWarps));
    pieces = pieces <= 4 ? 4 : pieces <= 6 ? 6 : 8;
    items = r.dim(0) * ceil(batch.sequences(), kSequences);
    chunks = ceil(dh, 8);
    // Fewer tiles make a step shorter, unless fewer items then run at once.
    const auto teams_of = [&](int of) { return multiprocessors / ceil(dh, 4 * of); };
    tiles = kMostTiles;
    if (pieces < 8 && teams_of(tiles - 1) >= std::min<std::int64_t>(items, teams_of(tiles)))
      --tiles;
    blocks = ceil(dh, 4 * tiles);
    teams = std::min<std::int64_t>(items, teams_of(tiles));
  }

  bool fits = false;
  int pieces;           ///< of 16 columns, of a warp: 4, 6 or 8
  int tiles;            ///< of 4 units, of a block: 3 or 4
  std::int64_t blocks;  ///< of a team
  std::int64_t teams;   ///< that run at once
  std::int64_t items;   ///< heads of 8 sequences
  std::int64_t chunks;  ///< of 8 units, in a head

  /// h of an item in one slot: [chunks][8 sequences][8] of 16 bits
  std::int64_t slot_bytes() const { return chunks * 128; }
  std::size_t scratch() const {
    return fits ? static_cast<std::size_t>(items * kSlots * slot_bytes()) : 0;
  }

 private:
  static constexpr std::int64_t ceil(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
};

}  // namespace xlstm::ops::cuda
