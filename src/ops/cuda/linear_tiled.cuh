#pragma once
// Linear layers of many rows in float32, and where the sums of all of them go.

#include <cstdint>
#include <type_traits>

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/linear_plan.hpp"

namespace xlstm::ops::cuda {

/// Where the sums go: y = sum + what was there + b.
struct Output {
  void* data;
  bool is_bf16;  // or float32
  std::int64_t stride, rows, columns;
  const void* bias;
  DType bias_dtype;
  bool accumulate;

  Output(const Tensor& y, const Tensor* b, bool accumulates)
      : data(y.data),
        is_bf16(y.dtype == DType::bf16),
        stride(y.row_stride()),
        rows(y.dim(0)),
        columns(y.dim(1)),
        bias(b != nullptr ? b->data : nullptr),
        bias_dtype(b != nullptr ? b->dtype : DType::f32),
        accumulate(accumulates) {}

  /// Of output n; 0 where there is none.
  __device__ float bias_of(std::int64_t n) const {
    if (bias == nullptr || n >= columns) return 0.0F;
    if (bias_dtype == DType::f32) return static_cast<const float*>(bias)[n];
    if (bias_dtype == DType::bf16) return to_float(static_cast<const Bf16*>(bias)[n]);
    return to_float(static_cast<const F16*>(bias)[n]);
  }
  /// @param b  bias_of(n)
  __device__ void write(std::int64_t t, std::int64_t n, float sum, float b) const {
    if (t >= rows || n >= columns) return;
    const std::int64_t at = t * stride + n;
    if (is_bf16)
      put(static_cast<Bf16*>(data) + at, sum, b);
    else
      put(static_cast<float*>(data) + at, sum, b);
  }
  template <class Y>
  __device__ void put(Y* to, float sum, float b) const {
    if (accumulate) sum += to_float(*to);
    store(to, sum + b);
  }
};

/// The tile of y that a block computes, row tiles of the same columns first.
struct TilePlace {
  std::int64_t row, column;
  __device__ TilePlace(std::int64_t row_tiles, int rows, int columns)
      : row(blockIdx.x % row_tiles * rows), column(blockIdx.x / row_tiles * columns) {}
};

constexpr int kTiledThreads = 256;
constexpr int kTiledDepth = 16;
constexpr int kQuad = 4;
struct alignas(16) Quad {
  float at[kQuad];
};
constexpr int kTiledColumns = static_cast<int>(kLinearTiledColumns);

/// What numbers that are as they are are multiplied with; other kinds of rows say it themselves.
template <class T>
__device__ inline float scale_of(const PackedRows<T>&, std::int64_t, std::int64_t) {
  return 1.0F;
}

/// kRows rows of x or W from depth `from` on, as to[depth][row].
template <int kRows, class Rows>
__device__ void fill_tile(Quad (&to)[kTiledDepth][kRows / kQuad + 1], const Rows& rows,
                          std::int64_t first, std::int64_t from, std::int64_t depth) {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(rows.data)>>;
  constexpr int kQuads = kTiledDepth / kQuad;
  constexpr int kPass = kTiledThreads / kQuads;
  const int k = static_cast<int>(threadIdx.x) % kQuads * kQuad;
#pragma unroll
  for (int pass = 0; pass < kRows; pass += kPass) {
    const int row = pass + static_cast<int>(threadIdx.x) / kQuads;
    const std::int64_t count = first + row < rows.rows ? depth - from - k : 0;
    Pack<T, kQuad> quad;
    load_pack(&quad, rows.row(first + row) + from + k, count, rows.aligned);
    const float scale = scale_of(rows, first + row, from + k);
#pragma unroll
    for (int i = 0; i < kQuad; ++i)
      to[k + i][row / kQuad].at[row % kQuad] = to_float(quad.at(i)) * scale;
  }
}

/// A tile of 16 kHigh x 64 outputs, kHigh x 4 a thread.
template <class X, class W, int kHigh>
__global__ void __launch_bounds__(kTiledThreads)
    tiled_kernel(X x, W w, Output y, std::int64_t depth, std::int64_t row_tiles) {
  constexpr int kWide = 4;
  constexpr int kThreadsAcross = kTiledColumns / kWide;
  constexpr int kRows = kTiledThreads / kThreadsAcross * kHigh;
  __shared__ Quad left[kTiledDepth][kRows / kQuad + 1];
  __shared__ Quad right[kTiledDepth][kTiledColumns / kQuad + 1];
  const TilePlace place(row_tiles, kRows, kTiledColumns);
  const int across = static_cast<int>(threadIdx.x) % kThreadsAcross;
  const int down = static_cast<int>(threadIdx.x) / kThreadsAcross;
  float sums[kHigh][kWide] = {};
  for (std::int64_t from = 0; from < depth; from += kTiledDepth) {
    __syncthreads();
    fill_tile<kRows>(left, x, place.row, from, depth);
    fill_tile<kTiledColumns>(right, w, place.column, from, depth);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTiledDepth; ++k) {
      const Quad b = right[k][across];
#pragma unroll
      for (int q = 0; q < kHigh / kQuad; ++q) {
        const Quad a = left[k][down * (kHigh / kQuad) + q];
#pragma unroll
        for (int i = 0; i < kQuad; ++i)
#pragma unroll
          for (int j = 0; j < kWide; ++j)
            sums[q * kQuad + i][j] = fmaf(a.at[i], b.at[j], sums[q * kQuad + i][j]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    const std::int64_t n = place.column + across * kWide + j;
    const float b = y.bias_of(n);
#pragma unroll
    for (int i = 0; i < kHigh; ++i) y.write(place.row + down * kHigh + i, n, sums[i][j], b);
  }
}

/// @param x, w  PackedRows, or rows of another kind that have scale_of()
template <int kHigh, class X, class W>
void tiled(Context& context, const X& x, const W& w, const Output& y, std::int64_t depth) {
  constexpr int kRows = 16 * kHigh;
  const std::int64_t row_tiles = blocks_for(x.rows, kRows);
  launch(context, "linear",
         {.x = row_tiles * blocks_for(w.rows, kTiledColumns), .threads = kTiledThreads},
         tiled_kernel<X, W, kHigh>, x, w, y, depth, row_tiles);
}

}  // namespace xlstm::ops::cuda
