#pragma once
// How an sLSTM call on CUDA is spread over clusters of blocks that keep R on the chip.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/slstm.hpp"

namespace xlstm::ops::cuda {

/// A cluster takes one head of 8 sequences through all their tokens. A warp has 4 units: a tile of
/// 16 rows of R (4 gates of each). R of 16 bits is in its registers, in pieces of 16 rows and
/// columns; R of f32 is in shared memory.
/// What decides the order of sums, `kept` and `columns`, depends on the shape and the types alone.
struct SlstmClusterPlan {
  static constexpr int kSequences = 8;
  static constexpr int kTileUnits = 4;
  static constexpr int kPieceColumns = 16;
  static constexpr int kFloatColumns = 32;
  static constexpr int kStages = 4;                       ///< tokens of wx that are under way
  static constexpr std::int64_t kMostShared = 227 << 10;  ///< bytes that a block can ask for
  static constexpr int kBarrierBytes = 128;
  static constexpr int kMostBlocks = 16;
  static constexpr int kMostWarps = 12;  ///< leaves 168 registers a thread
  static constexpr int kFewWarps = 4;
  static constexpr int kMostKept = 24;  ///< pieces of a tile, where all are in registers

  /// @param parts  numbers of 16 bits whose sum h is in the products: 1 rounds it, 3 is all of it
  /// @param most_blocks  of a cluster; it changes no sum
  SlstmClusterPlan(const Tensor& r, int parts_, int most_blocks = kMostBlocks) : parts(parts_) {
    heads = r.dim(0);
    dh = r.dim(2);
    tiles = ceil(dh, kTileUnits);
    const std::int64_t pieces = ceil(dh, kPieceColumns);
    floats = r.dtype == DType::f32;
    if (!floats && pieces > kMostKept) return;
    // Stores into other blocks need a cluster, so it has two blocks at least. The largest power of
    // two that leaves each at least kFewWarps warps.
    while (blocks < most_blocks && ceil(tiles, 2 * blocks) >= kFewWarps) blocks *= 2;
    warps = ceil(tiles, blocks);
    if (floats) {
      columns = ceil(dh, kFloatColumns);
    } else {
      columns = kept = static_cast<int>(ceil(pieces, 4) * 4);
    }
    shared = kBarrierBytes + h_bytes() + wx_bytes() + r_bytes();
    fits = warps <= kMostWarps && shared <= kMostShared;
  }

  int parts;
  std::int64_t heads = 0, dh = 0;
  std::int64_t tiles = 0;    ///< of 4 units, in a head
  bool floats = false;       ///< R is f32: all of it is in shared memory, in pieces of 32 columns
  int blocks = 2;            ///< of a cluster
  std::int64_t warps = 0;    ///< of a block
  int kept = 0;              ///< pieces of a tile in registers
  std::int64_t columns = 0;  ///< pieces of a tile, those behind the head being zeros
  std::int64_t shared = 0;   ///< bytes
  bool fits = false;

  /// h of 8 sequences and 4 units: 64 bytes of every part, or 144 in f32.
  std::int64_t h_chunks() const {
    return columns * (floats ? kFloatColumns : kPieceColumns) / kTileUnits;
  }
  std::int64_t h_bytes() const { return 2 * h_chunks() * (floats ? 144 : parts * 64); }
  std::int64_t wx_bytes() const { return warps * kStages * 512; }
  std::int64_t r_bytes() const { return floats ? warps * columns * 2048 : 0; }

 private:
  static constexpr std::int64_t ceil(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
};

}  // namespace xlstm::ops::cuda
