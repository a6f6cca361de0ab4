#pragma once
// Products of float32 tiles by a block of 256 threads, through shared memory.

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/device/numbers.cuh"

namespace xlstm::ops::cuda {

constexpr int kTile = 64;   // of an output: kTile x kTile, 4 x 4 of a thread
constexpr int kDepth = 32;  // of both factors at a time
constexpr int kSide = kTile / 4;
constexpr int kTileThreads = kSide * kSide;

struct alignas(16) Four {
  float at[4];
};

/// The factors a^T b of a product; rows of whole 16 bytes, of which 8 lie in different banks.
struct alignas(16) Tiles {
  float a[kDepth][kTile + 4], b[kDepth][kTile + 4];
};

__device__ inline bool is_aligned(const float* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

/// Up to four neighbours in memory; those at `from` need no alignment.
__device__ inline void store_four(float* to, const float* from, std::int64_t count) {
  if (count >= 4 && is_aligned(to)) {
    *reinterpret_cast<Four*>(to) = Four{{from[0], from[1], from[2], from[3]}};
  } else {
    for (int j = 0; j < 4; ++j)
      if (j < count) to[j] = from[j];
  }
}

__device__ inline void store_four(Bf16* to, const float* from, std::int64_t count) {
  for (int j = 0; j < 4; ++j)
    if (j < count) store(to + j, from[j]);
}

/// tile[r][x] = from[r][x], zero from row `rows` and column `columns` on.
template <class T>
__device__ inline void load(float (*tile)[kTile + 4], const T* from, std::int64_t stride,
                            std::int64_t rows, std::int64_t columns) {
  const int x = threadIdx.x % kTile;
  for (int r = threadIdx.x / kTile; r < kDepth; r += kTileThreads / kTile)
    tile[r][x] = r < rows && x < columns ? to_float(from[r * stride + x]) : 0.0F;
}

/// tile[x][r] = from[r][x], zero from row `rows` and column `columns` on. A warp has 4 rows of 8
/// columns: whole sectors, and as many banks.
template <class T>
__device__ inline void load_transposed(float (*tile)[kTile + 4], const T* from, std::int64_t stride,
                                       std::int64_t rows, std::int64_t columns) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int x = lane % 8 + warp % 4 * 8;
  static_assert(kDepth == 4 * 8);
  for (int r = lane / 8 + warp / 4 * 4; r < kTile; r += kTileThreads / kWarp)
    tile[x][r] = r < rows && x < columns ? to_float(from[r * stride + x]) : 0.0F;
}

/// sum += a^T b, over the first `depth` rows of both, for the thread's rows and columns.
__device__ inline void multiply(const Tiles& tiles, int depth, int row, int column,
                                float (&sum)[4][4]) {
  for (int d = 0; d < depth; ++d) {
    const Four a = *reinterpret_cast<const Four*>(&tiles.a[d][row]);
    const Four b = *reinterpret_cast<const Four*>(&tiles.b[d][column]);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(a.at[i], b.at[j], sum[i][j]);
  }
}

__device__ inline int depth_from(std::int64_t begin, std::int64_t end) {
  return static_cast<int>(min(std::int64_t{kDepth}, end - begin));
}

}  // namespace xlstm::ops::cuda
