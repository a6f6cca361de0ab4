#pragma once
// What comes when: tiles of y, where clusters of blocks take them in turn, and stages of a ring.

#include "ops/cuda/sm90/matmul_kernels.cuh"

namespace xlstm::ops::cuda {

/// A stage of a ring and the parity of its barriers.
struct Turn {
  int at = 0;
  unsigned phase = 0;
  __device__ __forceinline__ void next(int stages, int step = 1) {
    at += step;
    if (at >= stages) {
      at -= stages;
      phase ^= 1;
    }
  }
};

struct Place {
  int row;  // of the cluster, in tiles
  int weight;
  int column;  // of this weight, in tiles
  bool back;   // the depth from its end (TileOrder)
};

__device__ __forceinline__ Place place_of(const MatmulArgs& a, int tile) {
  constexpr int kBand = TileOrder::kBand;
  const int band = tile / (kBand * a.column_tiles);
  const int in_band = tile - band * kBand * a.column_tiles;
  const int rows = min(kBand, a.row_tiles - band * kBand);
  Place p;
  p.column = in_band / rows;
  p.row = band * kBand + in_band - p.column * rows;
  p.back = a.order.turn > 0 && p.column / a.order.turn % 2 != 0;
  p.weight = 0;
  int first = 0;
#pragma unroll
  for (int i = 0; i < kMostProducts - 1; ++i) {
    if (i < a.weights - 1 && p.column >= a.tile_end[i]) {
      p.weight = i + 1;
      first = a.tile_end[i];
    }
  }
  p.column -= first;
  return p;
}

/// The stage of the depth, of kMatmulDepth numbers, that comes as number i. Two are one of packed
/// weights, so pairs stay in their order: where both forms have tiles of as many columns, and none
/// are shared, they add up the same way.
__device__ __forceinline__ int stage_of(const Place& p, int i, int stages) {
  if (!p.back) return i;
  if (stages % 2 == 1 && i > 0) ++i;  // the last pair lacks its second stage
  return (stages - 1) / 2 * 2 - i / 2 * 2 + i % 2;
}

}  // namespace xlstm::ops::cuda
