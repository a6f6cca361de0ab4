#include "ops/headwise.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/device/tile.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kSmallBlock = 8;  ///< inputs of a block that a thread reads by itself

// A thread an output.
template <class W>
__global__ void small_blocks_kernel(Matrix<const float> x, const W* w, Weights b, Matrix<float> y,
                                    std::int64_t features, int out, int in) {
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (j >= features) return;
  const float* from = x.row(blockIdx.x) + j / out * in;
  float sum = b.at_or(0.0F, j);
  for (int i = 0; i < in; ++i) sum = fmaf(to_float(w[j * in + i]), from[i], sum);
  y.row(blockIdx.x)[j] = sum;
}

/// to[r][x] = from[x][r], zero from row `rows` and column `columns` on. A warp takes four columns
/// of all rows, so that what it stores lies in different banks.
template <class T>
__device__ inline void load_tile(float (*to)[kTile + 4], const T* from, std::int64_t stride,
                                 std::int64_t rows, int columns, bool aligned) {
  constexpr int kCount = 4;
  static_assert(kTileThreads / kWarp * kCount == kDepth);
  const int first = static_cast<int>(threadIdx.x) / kWarp * kCount;
#pragma unroll
  for (int row = static_cast<int>(threadIdx.x) % kWarp; row < kTile; row += kWarp) {
    Pack<T, kCount> pack = {};
    if (row < rows) load_pack(&pack, from + row * stride + first, max(0, columns - first), aligned);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[first + i][row] = to_float(pack.at(i));
  }
}

// kTile tokens and outputs of one block of features, whose inputs come kDepth at a time. Each of
// these has a sum of its own: the error stays small.
template <class W>
__global__ void __launch_bounds__(kTileThreads)
    large_blocks_kernel(Matrix<const float> x, const W* w, Weights b, Matrix<float> y,
                        std::int64_t tokens, int out, int in, bool aligned) {
  __shared__ Tiles tiles;
  const std::int64_t block = blockIdx.z, t0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int o0 = static_cast<int>(blockIdx.y) * kTile;
  const int column = static_cast<int>(threadIdx.x) % kSide * 4;
  const int row = static_cast<int>(threadIdx.x) / kSide * 4;
  float sum[4][4] = {};
  for (int i0 = 0; i0 < in; i0 += kDepth) {
    load_tile(tiles.a, x.row(t0) + block * in + i0, x.stride, tokens - t0, in - i0, aligned);
    load_tile(tiles.b, w + (block * out + o0) * in + i0, std::int64_t{in}, std::int64_t{out} - o0,
              in - i0, aligned);
    __syncthreads();
    float part[4][4] = {};
    multiply(tiles, kDepth, row, column, part);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j];
    __syncthreads();
  }
  const int o = o0 + column;
  if (o >= out) return;
  for (int i = 0; i < 4 && t0 + row + i < tokens; ++i) {
    for (int j = 0; j < 4; ++j)
      if (o + j < out) sum[i][j] += b.at_or(0.0F, block * out + o + j);
    store_four(y.row(t0 + row + i) + block * out + o, sum[i], out - o);
  }
}

}  // namespace

void headwise_linear(Context& context, const HeadwiseLinearArgs& a) {
  if (a.y.count() == 0) return;
  constexpr const char* kName = "headwise_linear";
  const std::int64_t tokens = a.x.dim(0), blocks = a.w.dim(0), out = a.w.dim(1), in = a.w.dim(2);
  with_type(a.w.dtype, [&](auto type) {
    using W = decltype(type);
    const auto* w = static_cast<const W*>(a.w.data);
    const Matrix<const float> x(a.x);
    const Matrix<float> y(a.y);
    const Weights b(a.b);
    if (in <= kSmallBlock)
      launch(context, kName,
             {.x = tokens, .y = blocks_for(blocks * out, kThreads), .threads = kThreads},
             small_blocks_kernel<W>, x, w, b, y, blocks * out, static_cast<int>(out),
             static_cast<int>(in));
    else
      launch(
          context, kName,
          {.x = blocks_for(tokens, kTile),
           .y = blocks_for(out, kTile),
           .z = blocks,
           .threads = kTileThreads},
          large_blocks_kernel<W>, x, w, b, y, tokens, static_cast<int>(out), static_cast<int>(in),
          in % 4 == 0 && x.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 &&
              reinterpret_cast<std::uintptr_t>(w) % sizeof(Pack<W, 4>) == 0);
  });
}

}  // namespace xlstm::ops::cuda
