#pragma once
// How packed weights (ops/packed.hpp) are multiplied with few rows on compute capability 9.0.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/cuda/sm90/matmul_packed_tiled_plan.hpp"
#include "ops/cuda/sm90/matmul_plan.hpp"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {

constexpr std::int64_t kPackedRows = 512;  ///< of x, at most

/// Blocks take jobs in turn: so many tiles of a W, or of gate and up, over all of the depth or a
/// piece of it, with all rows of x or with 128 of them.
struct PackedPlan {
  int rows;                 ///< of x in a job: 64 or 128; 0: plan_packed_tiled() has a faster one
  int height;               ///< tiles of a job, of each W with SwiGLU: a block has up to 24
  int split;                ///< blocks that share the depth: 1, 2 or 4
  int x_stages = 0;         ///< of 128 columns of x, in shared memory; 0: as seems best
  std::int64_t cycles = 0;  ///< what it should take

  constexpr int tiles(bool swiglu) const { return swiglu ? 2 * height : height; }
  /// Warp groups with different tiles, of up to 8 each. Where one would do, there are two with the
  /// same, which take stages in turn.
  constexpr int groups(bool swiglu) const { return (tiles(swiglu) + 7) / 8; }
  constexpr int turns(bool swiglu) const { return groups(swiglu) == 1 ? 2 : 1; }

  bool operator==(const PackedPlan&) const = default;
};

constexpr int kPackedMostStages = 16, kPackedMostSplit = 4, kPackedMostTiles = 24;

/// What lies in the shared memory of a block.
struct PackedRing {
  int x_bytes, w_bytes;  ///< of a stage
  int x_stages, w_stages;
  std::size_t bytes;

  /// Of so many tiles of a W: boxes begin at multiples of 128.
  XLSTM_HOST_DEVICE static constexpr int of_w(int height) {
    return (height * PackedTile::kBytes + 127) / 128 * 128;
  }

  constexpr PackedRing(const PackedPlan& plan, bool swiglu)
      : x_bytes(plan.rows * 256), w_bytes(0), x_stages(0), w_stages(0), bytes(0) {
    constexpr int kMost = 208 << 10;  // a block of a norm fits beside: W begins meanwhile
    w_bytes = of_w(plan.height) * (swiglu ? 2 : 1);
    // Warps without tiles read what lies where theirs would.
    const int behind = plan.groups(swiglu) * 8 * PackedTile::kBytes - w_bytes,
              room = kMost - std::max(behind, 0);
    // A place is of one of the groups that take stages in turn: the parity of its barrier says
    // enough only to who has had the stage before.
    const auto whole = [&](int stages) { return stages - stages % plan.turns(swiglu); };
    x_stages = whole(plan.x_stages > 0 ? plan.x_stages : std::min(8, room * 5 / 8 / x_bytes));
    w_stages = whole(std::min((room - x_stages * x_bytes) / w_bytes, kPackedMostStages));
    bytes = static_cast<std::size_t>(x_stages * x_bytes + w_stages * w_bytes + kMost - room);
    // Those who share the depth exchange their sums there.
    const int sums = plan.rows * plan.groups(swiglu) * plan.turns(swiglu) * 256;
    if (plan.split * plan.turns(swiglu) > 1)
      bytes = std::max(bytes, static_cast<std::size_t>(sums));
  }
};

constexpr std::int64_t packed_jobs(const MatmulShape& s, const PackedPlan& p) {
  return matmul_tiles(s.outputs, std::int64_t{p.height} * PackedTile::kRows) *
         pieces_of(s.rows, p.rows);
}

/// Cycles of a plan, as in matmul_plan.hpp: the slowest of device memory, second-level cache and
/// what the warps of a block do with a stage; and what comes before and after.
constexpr std::int64_t packed_cycles(const MatmulShape& s, const PackedPlan& p) {
  const int groups = p.groups(s.swiglu);
  const bool many = p.rows > 64;
  const std::int64_t turns = pieces_of(packed_jobs(s, p), s.multiprocessors / p.split);
  const std::int64_t stages = turns * pieces_of(pieces_of(s.depth, PackedTile::kColumns), p.split);
  const std::int64_t w = stages * p.tiles(s.swiglu) * PackedTile::kBytes, x = stages * p.rows * 256;
  // Blocks that are alone on the card's memory get a quarter more of it.
  const std::int64_t busy = std::min(packed_jobs(s, p) * p.split, std::int64_t{s.multiprocessors});
  const std::int64_t memory = w * 2 / 35 * std::max(busy * 5, s.multiprocessors * std::int64_t{4}) /
                              (5 * s.multiprocessors);
  const std::int64_t of_stage = groups == 1   ? (many ? 780 : 640)
                                : groups == 2 ? (many ? 1450 : 1200)
                                              : (many ? 1740 : 1410);
  const bool exchange = p.split * p.turns(s.swiglu) > 1;
  // More than one job reads the same weights: once from memory, but the cache gives less.
  const std::int64_t readers = pieces_of(s.rows, p.rows), cache = readers > 1 ? 29 : 52;
  return std::max({memory / readers, (w + x) / cache, stages * of_stage}) + (many ? 8000 : 6500) +
         (exchange ? (many ? 2000 : 1000) + 500 * p.split : 0);
}

/// Calls f with every plan that is thought of, for at most kPackedRows rows.
template <class F>
constexpr void each_packed_plan(const MatmulShape& s, const F& f) {
  for (const int split : {1, 2, 4}) {
    if (split > pieces_of(s.depth, PackedTile::kColumns)) continue;
    const std::int64_t places = s.multiprocessors / split;
    for (int height = 4; height <= (s.swiglu ? kPackedMostTiles / 2 : kPackedMostTiles); ++height) {
      PackedPlan plan = {s.rows <= 64 ? 64 : 128, height, split};
      // Those who share the depth take one job; clusters of 4 do not fill all of the card.
      if (split * plan.turns(s.swiglu) > 1 &&
          packed_jobs(s, plan) > (split == 4 ? places * 3 / 4 : places))
        continue;
      plan.cycles = packed_cycles(s, plan);
      f(plan);
    }
  }
}

/// The plan with the fewest cycles; without rows where plan_packed_tiled() has one that takes
/// fewer. All sizes are positive, and outputs whole tiles.
constexpr PackedPlan plan_packed(const MatmulShape& s) {
  PackedPlan best = {};
  if (s.rows > kPackedRows) return best;
  best.cycles = plan_packed_tiled(s).cycles;
  each_packed_plan(s, [&](const PackedPlan& plan) {
    if (plan.cycles <= best.cycles) best = plan;  // high jobs read less of x
  });
  return best;
}

}  // namespace xlstm::ops::cuda
