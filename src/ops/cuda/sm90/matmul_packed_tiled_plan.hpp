#pragma once
// How packed weights (ops/packed.hpp) are multiplied with many rows on compute capability 9.0.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/host_device.hpp"
#include "ops/cuda/sm90/matmul_plan.hpp"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {

/// Clusters of blocks take tiles of y in turn: so many rows of x, by 128 rows of W for each block.
struct PackedTiledPlan {
  int rows;                 ///< of x in a tile: one of kPackedTiledRows, or of kStreamKRows
  bool stream_k = false;    ///< clusters share the depth of tiles that few would have
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

/// Who multiplies what. Clusters take whole tiles in turn; but with stream-K the first ones,
/// `shared` tiles of `stages` stages of the depth each, are cut into a range of stages for each
/// cluster, all of one length, whatever tiles they lie in. Who has the first stage of a tile adds
/// up what the clusters behind it have made of the others, in the order of the depth, and stores
/// it. A cluster makes at most one sum for another, at the beginning of its range, so it waits for
/// nobody before it has made that.
struct PackedTiledWork {
  int tiles, stages, shared, clusters;
  int rows;  ///< tiles of shared ones that have the same rows of W; 1: tiles are taken as they lie

  /// Stages `begin` to `end` - 1 of a tile.
  struct Piece {
    int tile, begin, end;
  };

  /// @param row_tiles  of tiles_, which lie one after the other for each column
  XLSTM_HOST_DEVICE constexpr PackedTiledWork(std::int64_t tiles_, std::int64_t stages_,
                                              bool stream_k, std::int64_t most_clusters,
                                              std::int64_t row_tiles = 1)
      : tiles(static_cast<int>(tiles_)),
        stages(static_cast<int>(stages_)),
        shared(0),
        clusters(static_cast<int>(tiles_ < most_clusters ? tiles_ : most_clusters)),
        rows(1) {
    if (!stream_k) return;
    constexpr std::int64_t kFewestStages = 4;  // of a range
    const std::int64_t all = tiles_ * stages_ / kFewestStages;
    clusters = static_cast<int>(all < 1 ? 1 : all < most_clusters ? all : most_clusters);
    // Clusters have the same number of whole tiles, and a range longer than a tile before that.
    shared = tiles % clusters;
    if (shared > 0 && shared < tiles) shared += clusters;
    if (row_tiles <= TileOrder::kBand && shared % row_tiles == 0)
      rows = static_cast<int>(row_tiles);
  }

  /// The tile of y that a piece's tile is. Ranges go through one row of tiles after the other, so
  /// that clusters in different rows read the same rows of W at the same time, and once from
  /// memory.
  XLSTM_HOST_DEVICE constexpr int place(int tile) const {
    if (rows == 1 || tile >= shared) return tile;
    const int columns = shared / rows, row = tile / columns;
    return (tile - row * columns) * rows + row;
  }

  /// Where the range of a cluster begins.
  XLSTM_HOST_DEVICE constexpr int begin_of(int cluster) const {
    return static_cast<int>(std::int64_t{shared} * stages * cluster / clusters);
  }
  /// Whether the cluster's first piece is a sum for another one.
  XLSTM_HOST_DEVICE constexpr bool gives(int cluster) const {
    const int begin = begin_of(cluster);
    return begin % stages != 0 && begin < begin_of(cluster + 1);
  }
  /// Calls body(cluster) for those who give what a piece that begins a tile lacks, in turn.
  template <class Body>
  XLSTM_HOST_DEVICE constexpr void each_giver(const Piece& piece, int cluster,
                                              const Body& body) const {
    if (piece.end == stages) return;
    const int end = (piece.tile + 1) * stages;
    for (int from = cluster + 1; begin_of(from) < end; ++from) body(from);
  }
  /// Pieces of a cluster, in turn.
  struct Turns {
    int at, end, tile;
  };
  XLSTM_HOST_DEVICE constexpr Turns turns_of(int cluster) const {
    return {begin_of(cluster), begin_of(cluster + 1), shared + cluster};
  }
  /// @tparam kStreamK  false: nothing is shared
  template <bool kStreamK>
  XLSTM_HOST_DEVICE constexpr bool next(Turns& turns, Piece& piece) const {
    if (kStreamK && turns.at < turns.end) {
      piece.tile = turns.at / stages;
      piece.begin = turns.at - piece.tile * stages;
      const int rest = piece.begin + turns.end - turns.at;
      piece.end = rest < stages ? rest : stages;
      turns.at += piece.end - piece.begin;
      return true;
    }
    if (turns.tile >= tiles) return false;
    piece = {turns.tile, 0, stages};
    turns.tile += clusters;
    return true;
  }
};

/// Rows of x in a tile, without stream-K and with it.
constexpr int kPackedTiledRows[] = {256, 192, 128}, kStreamKRows[] = {256, 224, 192, 160};
constexpr int kPackedTiledMostRows = 256;
constexpr std::int64_t kStreamKFewest = 129;  ///< rows of x from which on it is thought of
constexpr int kPackedTiledMostClusters = 66;  ///< of any card of this capability

/// Bytes of the sums that clusters make for one another.
constexpr std::size_t kPackedTiledPartials = sizeof(float) * kPackedTiledMostRows *
                                             kPackedTiledTiles * PackedTile::kRows *
                                             kPackedTiledCluster * kPackedTiledMostClusters;

constexpr PackedTiledWork packed_tiled_work(std::int64_t tiles, std::int64_t stages, bool stream_k,
                                            int multiprocessors, std::int64_t row_tiles = 1) {
  return {tiles, stages, stream_k,
          std::min(multiprocessors / kPackedTiledCluster, kPackedTiledMostClusters), row_tiles};
}

/// Cycles, as in matmul_plan.hpp.
constexpr std::int64_t packed_tiled_cycles(const MatmulShape& s, const PackedTiledPlan& plan) {
  const std::int64_t tiles = pieces_of(s.rows, plan.rows) * packed_tiled_columns(s);
  const std::int64_t stages = pieces_of(s.depth, PackedTile::kColumns);
  const PackedTiledWork work = packed_tiled_work(tiles, stages, plan.stream_k, s.multiprocessors);
  const std::int64_t stage = 1150 + 6 * plan.rows;
  const std::int64_t whole = pieces_of(tiles - work.shared, work.clusters);
  const std::int64_t range = pieces_of(work.shared * stages, work.clusters);
  std::int64_t cycles = whole * (stages * stage + 1500) + 4000;
  if (range > 0)  // and writing a sum, and reading those of a tile
    cycles += range * stage + 6500 + (1 + pieces_of(stages, range)) * 12 * plan.rows;
  return cycles;
}

/// The plan with the fewest cycles. All sizes are positive.
constexpr PackedTiledPlan plan_packed_tiled(const MatmulShape& s) {
  PackedTiledPlan best = {};
  const auto consider = [&](PackedTiledPlan plan) {
    plan.cycles = packed_tiled_cycles(s, plan);
    // Narrow tiles put weights together more often, and sums for others pass through memory: they
    // have to be worth it.
    if (best.cycles == 0 || plan.cycles + plan.cycles / 20 < best.cycles) best = plan;
  };
  for (const int rows : kPackedTiledRows) consider({rows});
  if (s.rows < kStreamKFewest) return best;
  // Of many turns it would save little.
  constexpr std::int64_t kMostTurns = 7;
  for (const int rows : kStreamKRows) {
    const std::int64_t tiles = pieces_of(s.rows, rows) * packed_tiled_columns(s);
    if (tiles <= kMostTurns * (s.multiprocessors / kPackedTiledCluster)) consider({rows, true});
  }
  return best;
}

}  // namespace xlstm::ops::cuda
