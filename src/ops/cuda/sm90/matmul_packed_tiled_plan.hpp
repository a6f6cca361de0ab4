#pragma once
// How packed weights (ops/packed.hpp) are multiplied with many rows on compute capability 9.0.

#include <cstdint>

#include "ops/cuda/sm90/matmul_plan.hpp"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {

/// Clusters of blocks take tiles of y in turn: so many rows of x, by 128 rows of W for each block.
struct PackedTiledPlan {
  int rows;                 ///< of x in a tile: 128, 192 or 256
  std::int64_t cycles = 0;  ///< what it should take

  bool operator==(const PackedTiledPlan&) const = default;
};

constexpr int kPackedTiledCluster = 2;  ///< blocks that share the rows of x
constexpr int kPackedTiledTiles = 16;   ///< of W for a block, 8 rows each; half of each with SwiGLU
constexpr int kPackedTiledPiece = 32;   ///< rows of y that are stored at once

/// Tiles of y in the direction of W, of a cluster.
constexpr std::int64_t packed_tiled_columns(const MatmulShape& s) {
  constexpr int kHeight = kPackedTiledCluster * kPackedTiledTiles * PackedTile::kRows;
  return matmul_tiles(s.outputs, s.swiglu ? kHeight / 2 : kHeight);
}

/// Cycles, as in matmul_plan.hpp.
constexpr std::int64_t packed_tiled_cycles(const MatmulShape& s, int rows) {
  const std::int64_t tiles = pieces_of(s.rows, rows) * packed_tiled_columns(s);
  const std::int64_t turns = pieces_of(tiles, s.multiprocessors / kPackedTiledCluster);
  const std::int64_t stage = 1150 + 6 * rows;
  return turns * (pieces_of(s.depth, PackedTile::kColumns) * stage + 1500) + 4000;
}

/// The plan with the fewest cycles. All sizes are positive.
constexpr PackedTiledPlan plan_packed_tiled(const MatmulShape& s) {
  PackedTiledPlan best = {};
  for (const int rows : {256, 192, 128}) {
    const std::int64_t cycles = packed_tiled_cycles(s, rows);
    // Narrow tiles put weights together more often: they have to be worth it.
    if (best.cycles == 0 || cycles + cycles / 20 < best.cycles) best = {rows, cycles};
  }
  return best;
}

}  // namespace xlstm::ops::cuda
