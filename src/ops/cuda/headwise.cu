#include "ops/headwise.hpp"

#include <algorithm>
#include <type_traits>

#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/device/tile.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRun = 8;  ///< tokens of a thread, where there are kMany
constexpr std::int64_t kMany = 512;
constexpr std::int64_t kSmallBlock = 8;  ///< inputs of a block that a thread reads by itself

// A thread an output.
template <class W, class Y>
__global__ void small_blocks_kernel(Matrix<const float> x, const W* w, Weights b, Matrix<Y> y,
                                    std::int64_t features, int out, int in) {
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (j >= features) return;
  const float* from = x.row(blockIdx.x) + j / out * in;
  float sum = b.at_or(0.0F, j);
  for (int i = 0; i < in; ++i) sum = fmaf(to_float(w[j * in + i]), from[i], sum);
  store(y.row(blockIdx.x) + j, sum);
}

// Blocks of 4 by 4: a thread takes one for kRun tokens and keeps its weights.
template <class W, class Y, int kRun>
__global__ void blocks_of_four_kernel(Matrix<const float> x, const W* w, Weights b, Matrix<Y> y,
                                      std::int64_t tokens, std::int64_t blocks) {
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (block >= blocks) return;
  const std::int64_t t0 = static_cast<std::int64_t>(blockIdx.x) * kRun;
  Pack<float, 4> in[kRun] = {};
#pragma unroll
  for (int t = 0; t < kRun; ++t)
    if (t0 + t < tokens) load_pack(&in[t], x.row(t0 + t) + 4 * block, 4, true);
  float weight[4][4], bias[4];
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    Pack<W, 4> row;
    load_pack(&row, w + (4 * block + o) * 4, 4, true);
#pragma unroll
    for (int i = 0; i < 4; ++i) weight[o][i] = to_float(row.at(i));
    bias[o] = b.at_or(0.0F, 4 * block + o);
  }
#pragma unroll
  for (int t = 0; t < kRun; ++t) {
    if (t0 + t >= tokens) break;
    float sum[4];
#pragma unroll
    for (int o = 0; o < 4; ++o) {
      sum[o] = bias[o];
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[o] = fmaf(weight[o][i], in[t].at(i), sum[o]);
    }
    store_four(y.row(t0 + t) + 4 * block, sum, 4);
  }
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
template <class W, class Y>
__global__ void __launch_bounds__(kTileThreads)
    large_blocks_kernel(Matrix<const float> x, const W* w, Weights b, Matrix<Y> y,
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

/// ThreeParts of four numbers: parts[p][0] has the first two.
__device__ inline void split(unsigned (&parts)[3][2], const Pack<float, 4>& four) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const ThreeParts two(four.at(2 * i), four.at(2 * i + 1));
#pragma unroll
    for (int p = 0; p < 3; ++p) parts[p][i] = two.pairs[p];
  }
}

constexpr int kOutputs = 64, kTokens = 64;  // of a block of kThreads at a time
constexpr int kDepthAtOnce = 64;            // inputs that a lane reads its share of at once
constexpr int kMostSlice = 320;             // inputs whose weights are in shared memory
constexpr int kFullCard = 132;              // multiprocessors, or about that
constexpr int kMostRuns = 4;                // of kTokens, of a block
constexpr int kPadding = 16;                // numbers: four rows begin in different banks

template <class Y>
struct TensorBlocks {
  Matrix<const float> x;
  const Bf16* w;
  Weights b;
  Matrix<Y> y;
  std::int64_t tokens;
  int out, in, chunks, slice, runs;
  bool aligned;
};

// The same on tensor cores, for weights of bf16: a warp takes 16 tokens. A lane's inputs of a
// product are four neighbours, because any order of them will do that the weights have too. The
// sums of the inputs' first parts are apart from those of the small rest, which keeps the error
// small. Weights are read once where a slice has them all.
template <class Y>
__global__ void __launch_bounds__(kThreads) tensor_blocks_kernel(TensorBlocks<Y> a) {
  XLSTM_DYNAMIC_SHARED(Bf16, weights);  // [kOutputs][a.slice + kPadding]
  constexpr int kTiles = kOutputs / 8, kSteps = kDepthAtOnce / 16;
  const std::int64_t block = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const int o0 = static_cast<int>(blockIdx.x) % a.chunks * kOutputs;
  const int padded = a.slice + kPadding;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) / a.chunks * a.runs * kTokens;
  for (int run = 0; run < a.runs; ++run) {
    const std::int64_t t0 = first + run * kTokens + static_cast<int>(threadIdx.x) / kWarp * 16 + g;
    float high[kTiles][4] = {}, low[kTiles][4] = {};
    for (int slice0 = 0; slice0 < a.in; slice0 += a.slice) {
      if (run == 0 || a.slice < a.in) {
        __syncthreads();
        for (int at = static_cast<int>(threadIdx.x); at < kOutputs * a.slice / 4; at += kThreads) {
          const int o = at / (a.slice / 4), i = at % (a.slice / 4) * 4;
          Pack<Bf16, 4> four = {};
          if (o0 + o < a.out && slice0 + i < a.in)
            load_pack(&four, a.w + (block * a.out + o0 + o) * a.in + slice0 + i, a.in - slice0 - i,
                      a.aligned);
          *reinterpret_cast<Pack<Bf16, 4>*>(weights + o * padded + i) = four;
        }
        __syncthreads();
      }
      for (int i0 = slice0; i0 < min(slice0 + a.slice, a.in); i0 += kDepthAtOnce) {
        Pack<float, 4> inputs[kSteps][2];
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int i = i0 + step * 16 + 4 * t;
            inputs[step][half] = {};
            if (t0 + 8 * half < a.tokens && i < a.in)
              load_pack(&inputs[step][half], a.x.row(t0 + 8 * half) + block * a.in + i, a.in - i,
                        a.aligned);
          }
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          if (i0 + step * 16 >= a.in) break;
          unsigned upper[3][2], lower[3][2];
          split(upper, inputs[step][0]);
          split(lower, inputs[step][1]);
          unsigned columns[kTiles][2];
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            const auto four = *reinterpret_cast<const Pack<Bf16, 4>*>(
                weights + (tile * 8 + g) * padded + i0 - slice0 + step * 16 + 4 * t);
            columns[tile][0] = four.words[0];
            columns[tile][1] = four.words[1];
          }
#pragma unroll
          for (int p = 2; p >= 0; --p) {
            const unsigned rows[4] = {upper[p][0], lower[p][0], upper[p][1], lower[p][1]};
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile)
              mma_bf16(p == 0 ? high[tile] : low[tile], rows, columns[tile]);
          }
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int o = o0 + tile * 8 + 2 * t;
      if (o >= a.out) break;
      const std::int64_t column = block * a.out + o;
      const bool two = o + 1 < a.out;
      const float bias[2] = {a.b.at_or(0.0F, column), two ? a.b.at_or(0.0F, column + 1) : 0.0F};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (t0 + 8 * half >= a.tokens) break;
        Y* to = a.y.row(t0 + 8 * half) + column;
        const float sum[2] = {high[tile][2 * half] + low[tile][2 * half] + bias[0],
                              high[tile][2 * half + 1] + low[tile][2 * half + 1] + bias[1]};
        if (two && reinterpret_cast<std::uintptr_t>(to) % sizeof(Pack<Y, 2>) == 0) {
          Y numbers[2];
          store(numbers, sum[0]);
          store(numbers + 1, sum[1]);
          Pack<Y, 2> pair;
          std::memcpy(pair.words, numbers, sizeof(numbers));
          *reinterpret_cast<Pack<Y, 2>*>(to) = pair;
        } else {
          store(to, sum[0]);
          if (two) store(to + 1, sum[1]);
        }
      }
    }
  }
}

template <class W, class Y>
void multiply_blocks(Context& context, const HeadwiseLinearArgs& a) {
  constexpr const char* kName = "headwise_linear";
  const std::int64_t tokens = a.x.dim(0), blocks = a.w.dim(0), out = a.w.dim(1), in = a.w.dim(2);
  const auto* w = static_cast<const W*>(a.w.data);
  const Matrix<const float> x(a.x);
  const Matrix<Y> y(a.y);
  const Weights b(a.b);
  const bool aligned = in % 4 == 0 && x.stride % 4 == 0 &&
                       reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 &&
                       reinterpret_cast<std::uintptr_t>(w) % sizeof(Pack<W, 4>) == 0;
  if (in == 4 && out == 4 && aligned) {
    const bool many = tokens >= kMany;
    launch(context, kName,
           {.x = blocks_for(tokens, many ? kRun : 1),
            .y = blocks_for(blocks, kThreads),
            .threads = kThreads},
           many ? blocks_of_four_kernel<W, Y, kRun> : blocks_of_four_kernel<W, Y, 1>, x, w, b, y,
           tokens, blocks);
  } else if (in <= kSmallBlock) {
    launch(context, kName,
           {.x = tokens, .y = blocks_for(blocks * out, kThreads), .threads = kThreads},
           small_blocks_kernel<W, Y>, x, w, b, y, blocks * out, static_cast<int>(out),
           static_cast<int>(in));
  } else if constexpr (std::is_same_v<W, Bf16>) {
    const std::int64_t chunks = blocks_for(out, kOutputs), least = 3 * kFullCard;
    const auto slice = static_cast<int>(
        std::min<std::int64_t>(blocks_for(in, kDepthAtOnce) * kDepthAtOnce, kMostSlice));
    const auto runs = static_cast<int>(std::clamp<std::int64_t>(
        blocks_for(tokens, kTokens) * chunks * blocks / least, 1, kMostRuns));
    launch(context, kName,
           {.x = blocks_for(tokens, std::int64_t{runs} * kTokens) * chunks,
            .y = blocks,
            .threads = kThreads,
            .shared = kOutputs * (slice + kPadding) * sizeof(Bf16)},
           tensor_blocks_kernel<Y>,
           TensorBlocks<Y>{x, w, b, y, tokens, static_cast<int>(out), static_cast<int>(in),
                           static_cast<int>(chunks), slice, runs, aligned});
  } else {
    launch(context, kName,
           {.x = blocks_for(tokens, kTile),
            .y = blocks_for(out, kTile),
            .z = blocks,
            .threads = kTileThreads},
           large_blocks_kernel<W, Y>, x, w, b, y, tokens, static_cast<int>(out),
           static_cast<int>(in), aligned);
  }
}

}  // namespace

void headwise_linear(Context& context, const HeadwiseLinearArgs& a) {
  if (a.y.count() == 0) return;
  with_type(a.w.dtype, [&](auto w) {
    if (a.y.dtype == DType::f32)
      multiply_blocks<decltype(w), float>(context, a);
    else
      multiply_blocks<decltype(w), Bf16>(context, a);
  });
}

}  // namespace xlstm::ops::cuda
