#pragma once
// How an sLSTM call with wide heads is spread over the whole card.

#include <cstddef>
#include <cstdint>

#include "ops/slstm.hpp"

namespace xlstm::ops::cuda {

/// A team of blocks takes one head of 16 sequences through all their tokens; a block has 8 units,
/// and its warps share the columns of their rows of R, which are in registers. The blocks hand h to
/// each other through the L2 cache: `kSlots` copies of it in scratch memory, of which each step
/// takes the next one.
/// For heads that are too wide for a cluster, where products may round h.
struct SlstmGridPlan {
  static constexpr int kSequences = 16;
  static constexpr int kUnits = 8;
  static constexpr int kWarps = 8;
  static constexpr int kSlots = 4;
  static constexpr std::int64_t kFew = 384;  ///< units that a cluster can hold
  static constexpr std::int64_t kMost = 1024;

  SlstmGridPlan(const Batch& batch, const Tensor& r, DType product) {
    const std::int64_t dh = r.dim(2);
    fits = r.dtype != DType::f32 && product == DType::bf16 && dh > kFew && dh <= kMost;
    pieces = static_cast<int>(ceil(ceil(dh, 16), kWarps));
    pieces = pieces <= 4 ? 4 : pieces <= 6 ? 6 : 8;
    blocks = ceil(dh, kUnits);
    items = r.dim(0) * ceil(batch.sequences(), kSequences);
    chunks = ceil(dh, 4);
  }

  bool fits = false;
  int pieces;           ///< of 16 columns, of a warp: 4, 6 or 8
  std::int64_t blocks;  ///< of a team
  std::int64_t items;   ///< heads of 16 sequences
  std::int64_t chunks;  ///< of 4 units, in a head

  /// h of an item in one slot: [2][chunks][8 sequences][4] of 16 bits
  std::int64_t slot_bytes() const { return 2 * chunks * 64; }
  std::size_t scratch() const {
    return fits ? static_cast<std::size_t>(items * kSlots * slot_bytes()) : 0;
  }

 private:
  static constexpr std::int64_t ceil(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
};

}  // namespace xlstm::ops::cuda
