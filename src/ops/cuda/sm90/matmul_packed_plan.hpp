#pragma once
// How packed weights (ops/packed.hpp) are multiplied with few rows on compute capability 9.0.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/cuda/sm90/matmul_plan.hpp"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {

constexpr std::int64_t kPackedRows = 128;  ///< of x, at most

/// Blocks take jobs in turn: so many tiles of 8 rows, over all of the depth or a piece of it.
struct PackedPlan {
  int rows;          ///< of x: 64 or 128; 0: today's kernels are faster, or this one does not serve
  int groups;        ///< warp groups of a block, each for up to 8 tiles: 1 to 3
  int split;         ///< blocks that share the depth: 1, 2 or 4
  int jobs;          ///< among which the tiles are divided
  int x_stages = 0;  ///< of 64 columns of x, in shared memory; 0: as seems best
  std::int64_t cycles = 0;  ///< what it should take

  bool operator==(const PackedPlan&) const = default;
};

constexpr int kPackedMostStages = 16, kPackedMostSplit = 4;

/// What lies in the shared memory of a block.
struct PackedRing {
  int x_bytes, w_bytes;  ///< of a stage
  int x_stages, w_stages;
  std::size_t bytes;

  /// @param tiles  of a job at most
  constexpr PackedRing(const PackedPlan& plan, int tiles)
      : x_bytes(plan.rows * 128),
        w_bytes(tiles * PackedTile::kBytes),
        x_stages(0),
        w_stages(0),
        bytes(0) {
    constexpr int kRoom = 208 << 10;  // a block of a norm fits beside: W begins meanwhile
    x_stages = plan.x_stages > 0 ? plan.x_stages : plan.rows == 64 ? 4 : 3;
    w_stages = std::min((kRoom - x_stages * x_bytes) / w_bytes, kPackedMostStages);
    if (plan.x_stages == 0)
      x_stages = std::min((kRoom - w_stages * w_bytes) / x_bytes, kPackedMostStages);
    bytes = static_cast<std::size_t>(x_stages * x_bytes + w_stages * w_bytes);
    // Blocks that share the depth exchange their sums there.
    const std::size_t sums = static_cast<std::size_t>(plan.rows * plan.groups) * 256;
    if (plan.split > 1 && bytes < sums) bytes = sums;
  }
};

/// Of all W; with SwiGLU, pairs of a gate's and of what it gates.
constexpr std::int64_t packed_units(const MatmulShape& s) {
  std::int64_t units = 0;
  for (const std::int64_t n : s.outputs) units += n / PackedTile::kRows;
  return units;
}

/// Cycles of a plan, as in matmul_plan.hpp.
constexpr std::int64_t packed_cycles(const MatmulShape& s, const PackedPlan& p) {
  const std::int64_t places = s.multiprocessors / p.split;
  const std::int64_t turns = pieces_of(p.jobs, places), of_unit = s.swiglu ? 2 : 1;
  const std::int64_t tiles = pieces_of(packed_units(s), p.jobs) * of_unit * turns;
  const std::int64_t stages = pieces_of(pieces_of(s.depth, PackedTile::kColumns), p.split);
  const std::int64_t w = stages * tiles * PackedTile::kBytes, x = stages * turns * p.rows * 256;
  const std::int64_t products = stages * turns * p.groups * 8 * (p.rows / 2) * 4 / 3;
  return std::max({w / 19, (w + x) / 46, products}) + 6000 + (p.split - 1) * 500;
}

/// Calls f with every plan that is thought of, for at most kPackedRows rows.
template <class F>
constexpr void each_packed_plan(const MatmulShape& s, const F& f) {
  const std::int64_t units = packed_units(s);
  for (const int groups : {1, 2, 3}) {
    const int most = groups * 8 / (s.swiglu ? 2 : 1);
    for (const int split : {1, 2, 4}) {
      if (split > 1 && pieces_of(s.depth, PackedTile::kColumns) < split) continue;
      // Clusters of 4 fill the 16 multiprocessors that every part of the card has.
      const std::int64_t places =
          split == 4 ? s.multiprocessors / 16 * 4 : s.multiprocessors / split;
      const std::int64_t least = pieces_of(units, most), turns = pieces_of(least, places);
      if (split > 1 && turns > 1) continue;
      for (const std::int64_t jobs : {least, std::min(units, turns * places)}) {
        PackedPlan plan = {s.rows <= 64 ? 64 : 128, groups, split, static_cast<int>(jobs)};
        plan.cycles = packed_cycles(s, plan);
        f(plan);
        if (least == turns * places) break;
      }
    }
  }
}

/// The plan with the fewest cycles; without rows where plan_matmul() has one that takes fewer. All
/// sizes are positive, and outputs whole tiles.
constexpr PackedPlan plan_packed(const MatmulShape& s) {
  PackedPlan best = {};
  if (s.rows > kPackedRows) return best;
  best.cycles = plan_matmul(s).cycles;
  each_packed_plan(s, [&](const PackedPlan& plan) {
    if (plan.cycles < best.cycles) best = plan;
  });
  return best;
}

}  // namespace xlstm::ops::cuda
