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
  void* data = nullptr;
  bool is_bf16 = false;  // or float32
  std::int64_t stride = 0, rows = 0, columns = 0;
  const void* bias = nullptr;
  DType bias_dtype = DType::f32;
  bool accumulate = false;

  Output() = default;
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
/// @param before  column tiles of other matrices before those of the block's
struct TilePlace {
  std::int64_t row, column;
  __device__ TilePlace(std::int64_t row_tiles, int rows, int columns, std::int64_t before = 0)
      : row(blockIdx.x % row_tiles * rows), column((blockIdx.x / row_tiles - before) * columns) {}
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

/// What a thread carries of kRows rows of x or W to shared memory, from depth `from` on, as
/// to[depth][row].
template <class Rows, int kRows>
struct TiledTransfer {
  using T = std::remove_const_t<std::remove_pointer_t<decltype(Rows::data)>>;
  static constexpr int kQuads = kTiledDepth / kQuad;
  static constexpr int kPass = kTiledThreads / kQuads;
  Pack<T, kQuad> quads[kRows / kPass];
  float scales[kRows / kPass];

  __device__ void load(const Rows& rows, std::int64_t first, std::int64_t from,
                       std::int64_t depth) {
    const int k = static_cast<int>(threadIdx.x) % kQuads * kQuad;
#pragma unroll
    for (int i = 0; i < kRows / kPass; ++i) {
      const std::int64_t row = first + i * kPass + threadIdx.x / kQuads;
      const std::int64_t count = row < rows.rows ? depth - from - k : 0;
      load_pack(&quads[i], rows.row(row) + from + k, count, rows.aligned);
      scales[i] = scale_of(rows, row, min(from + k, depth - 1));
    }
  }
  __device__ void store(Quad (&to)[kTiledDepth][kRows / kQuad + 1]) const {
    const int k = static_cast<int>(threadIdx.x) % kQuads * kQuad;
#pragma unroll
    for (int i = 0; i < kRows / kPass; ++i) {
      const int row = i * kPass + static_cast<int>(threadIdx.x) / kQuads;
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        to[k + j][row / kQuad].at[row % kQuad] = to_float(quads[i].at(j)) * scales[i];
    }
  }
};

/// Matrices whose outputs lie beside each other.
template <class W>
struct TiledGroup {
  static constexpr int kMost = 4;
  struct Part {
    W w;
    Output y;
    std::int64_t end = 0;  ///< column tiles of this one and of those before
  };
  Part parts[kMost];
  int count = 0;

  void add(const W& w, const Output& y) {
    const std::int64_t before = count > 0 ? parts[count - 1].end : 0;
    parts[count++] = {w, y, before + blocks_for(w.rows, kTiledColumns)};
  }
};

/// A tile of 16 kHigh x 64 outputs, kHigh x 4 a thread. Numbers travel from memory while those of
/// two steps of the depth before are multiplied.
template <class X, class W, int kHigh>
__global__ void __launch_bounds__(kTiledThreads, 2)
    tiled_kernel(const __grid_constant__ X x, const __grid_constant__ TiledGroup<W> group,
                 std::int64_t depth, std::int64_t row_tiles) {
  constexpr int kWide = 4;
  constexpr int kThreadsAcross = kTiledColumns / kWide;
  constexpr int kRows = kTiledThreads / kThreadsAcross * kHigh;
  __shared__ Quad left[2][kTiledDepth][kRows / kQuad + 1];
  __shared__ Quad right[2][kTiledDepth][kTiledColumns / kQuad + 1];
  int which = 0;
  while (blockIdx.x / row_tiles >= group.parts[which].end) ++which;
  const typename TiledGroup<W>::Part& part = group.parts[which];
  const TilePlace place(row_tiles, kRows, kTiledColumns,
                        which > 0 ? group.parts[which - 1].end : 0);
  const int across = static_cast<int>(threadIdx.x) % kThreadsAcross;
  const int down = static_cast<int>(threadIdx.x) / kThreadsAcross;
  float sums[kHigh][kWide] = {};
  struct Transfer {
    TiledTransfer<X, kRows> x;
    TiledTransfer<W, kTiledColumns> w;
  } odd, even;
  const auto load = [&](Transfer& to, std::int64_t from) {
    to.x.load(x, place.row, from, depth);
    to.w.load(part.w, place.column, from, depth);
  };
  // Nobody reads what is in these tiles any more: all have passed the barrier of the last step.
  const auto step = [&](Transfer& next, int tiles, std::int64_t from) {
    next.x.store(left[tiles]);
    next.w.store(right[tiles]);
    __syncthreads();
    load(next, from + 2 * kTiledDepth);
#pragma unroll
    for (int k = 0; k < kTiledDepth; ++k) {
      const Quad b = right[tiles][k][across];
#pragma unroll
      for (int q = 0; q < kHigh / kQuad; ++q) {
        const Quad a = left[tiles][k][down * (kHigh / kQuad) + q];
#pragma unroll
        for (int i = 0; i < kQuad; ++i)
#pragma unroll
          for (int j = 0; j < kWide; ++j)
            sums[q * kQuad + i][j] = fmaf(a.at[i], b.at[j], sums[q * kQuad + i][j]);
      }
    }
  };
  load(even, 0);
  load(odd, kTiledDepth);
  for (std::int64_t from = 0; from < depth; from += 2 * kTiledDepth) {
    step(even, 0, from);
    if (from + kTiledDepth < depth) step(odd, 1, from + kTiledDepth);
  }
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    const std::int64_t n = place.column + across * kWide + j;
    const float b = part.y.bias_of(n);
#pragma unroll
    for (int i = 0; i < kHigh; ++i) part.y.write(place.row + down * kHigh + i, n, sums[i][j], b);
  }
}

/// @param x, group  PackedRows, or rows of another kind that have scale_of()
template <int kHigh, class X, class W>
void tiled(Context& context, const X& x, const TiledGroup<W>& group, std::int64_t depth) {
  constexpr int kRows = 16 * kHigh;
  if (group.count == 0) return;
  const std::int64_t row_tiles = blocks_for(x.rows, kRows);
  launch(context, "linear",
         {.x = row_tiles * group.parts[group.count - 1].end, .threads = kTiledThreads},
         tiled_kernel<X, W, kHigh>, x, group, depth, row_tiles);
}

}  // namespace xlstm::ops::cuda
