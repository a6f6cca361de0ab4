#include "ops/headwise.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
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

constexpr int kTile = 32;
constexpr int kTileThreads = 256;
constexpr int kTileRows = kTileThreads / kTile;  ///< of a tile that are read at once
constexpr int kPerThread = kTile / kTileRows;    ///< tokens, for one output

// kTile tokens and outputs of one block of features, whose inputs come kTile at a time. Each of
// these has a sum of its own: the error stays small.
template <class W>
__global__ void __launch_bounds__(kTileThreads)
    large_blocks_kernel(Matrix<const float> x, const W* w, Weights b, Matrix<float> y,
                        std::int64_t tokens, int out, int in) {
  __shared__ float x_tile[kTile][kTile + 1], w_tile[kTile][kTile + 1];
  const std::int64_t block = blockIdx.z, t0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int o0 = static_cast<int>(blockIdx.y) * kTile;
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
  float sum[kPerThread] = {};
  for (int i0 = 0; i0 < in; i0 += kTile) {
    const int i = i0 + column;
    for (int r = row; r < kTile; r += kTileRows) {
      x_tile[r][column] = t0 + r < tokens && i < in ? x.row(t0 + r)[block * in + i] : 0.0F;
      w_tile[r][column] =
          o0 + r < out && i < in ? to_float(w[(block * out + o0 + r) * in + i]) : 0.0F;
    }
    __syncthreads();
    float part[kPerThread] = {};
    for (int k = 0; k < kTile; ++k) {
      const float weight = w_tile[column][k];
      for (int n = 0; n < kPerThread; ++n)
        part[n] = fmaf(weight, x_tile[row + n * kTileRows][k], part[n]);
    }
    for (int n = 0; n < kPerThread; ++n) sum[n] += part[n];
    __syncthreads();
  }
  const int o = o0 + column;
  if (o >= out) return;
  const float bias = b.at_or(0.0F, block * out + o);
  for (int n = 0; n < kPerThread; ++n) {
    const std::int64_t t = t0 + row + n * kTileRows;
    if (t < tokens) y.row(t)[block * out + o] = sum[n] + bias;
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
      launch(context, kName,
             {.x = blocks_for(tokens, kTile),
              .y = blocks_for(out, kTile),
              .z = blocks,
              .threads = kTileThreads},
             large_blocks_kernel<W>, x, w, b, y, tokens, static_cast<int>(out),
             static_cast<int>(in));
  });
}

}  // namespace xlstm::ops::cuda
