#pragma once
// The kernel of sm90/few_rows.hpp: up to 16 rows of bf16 times bf16 weights, each read once, from
// where they are or from where they are packed (few_rows_packed.cuh), to the same bits.
//
// A block takes tiles of 16 rows of W, and each of its warps a slice of the depth, of which it
// fills a ring of its own in shared memory: no warp waits for another while weights travel. (Bulk
// copies of a row each are slower: a warp starts them one after the other.) Tensor cores multiply
// (A = weights, B = tokens); the warps' sums are added in their order, so a token's bits do not
// depend on how many there are.
//
// The ring is filled before grid_wait(), and a block takes more than half of a multiprocessor's
// shared memory: the next kernel's blocks begin one by one, each where one of this kernel has
// ended. So memory is busy from one kernel to the next, and no multiprocessor gets two blocks.

#include "ops/cuda/device/gate.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/few_rows_feed.cuh"
#include "ops/cuda/sm90/few_rows_packed.cuh"

namespace xlstm::ops::cuda::sm90 {

constexpr int kMostHeld = 4;   // stages' depth of a warp's tokens that fit into its registers
constexpr int kSumPitch = 20;  // floats from token to token: writes meet in no bank

template <class W, int kTokenTiles, bool kNormed>
struct FewShared {
  static constexpr int kStages = W::template kStages<kTokenTiles>;
  alignas(128) unsigned char ring[kFewWarps][kStages][W::kStageBytes];
  float sums[2][kFewWarps][kTokenTiles * kTileTokens][kSumPitch];
  float squares[kFewWarps][kTokenTiles * kTileTokens];
  float gates[2][kFewWarps];
  float4 staging[kNormed ? kFewWarps : 1][kNormed ? kMostHeld * kStageDepth / 4 : 1];
};

__device__ __forceinline__ float4 four_of(const Weights& w, std::int64_t i) {
  return FourWeights(w, i).floats();
}

// --- what is multiplied ---

/// Rows of bf16. Short ones stay in registers.
template <bool kHold>
struct Rows {
  static constexpr bool kHeld = kHold, kNormed = false;
  Matrix<const Bf16> x;
  int width;

  /// Numbers [at, at + 8) of a row of which `tokens` exist; rows lie on 16 bytes.
  __device__ uint4 load(int token, int tokens, int at) const {
    if (token >= tokens || at >= width) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(x.row(token) + at);
  }
};

/// x w, rounded; what is missing, 1 / rms(x), comes after the product.
struct Normed {
  static constexpr bool kHeld = true, kNormed = true;
  Matrix<const float> x;
  Weights w;
  float eps;
  int width;
};

struct Products {
  uint4 packed;
  float squares;
  __device__ Products(const float4& a, const float4& b, const float4& w, const float4& v) {
    packed = {pack_bf16(a.x * w.x, a.y * w.y), pack_bf16(a.z * w.z, a.w * w.w),
              pack_bf16(b.x * v.x, b.y * v.y), pack_bf16(b.z * v.z, b.w * v.w)};
    float s = a.x * a.x;
    s = fmaf(a.y, a.y, s);
    s = fmaf(a.z, a.z, s);
    s = fmaf(a.w, a.w, s);
    s = fmaf(b.x, b.x, s);
    s = fmaf(b.y, b.y, s);
    s = fmaf(b.z, b.z, s);
    squares = fmaf(b.w, b.w, s);
  }
};

// --- what becomes of a sum ---

/// before() is read while the weights travel, and comes back in finish().
struct Plain {
  static constexpr bool kPairs = false, kGates = false;
  Matrix<float> y;
  bool accumulate;
  __device__ float before(std::int64_t t, std::int64_t n) const {
    return accumulate ? y.row(t)[n] : 0.0F;
  }
  __device__ void finish(std::int64_t t, std::int64_t n, float value, float before) const {
    y.row(t)[n] = accumulate ? before + value : value;
  }
};

/// The same, and the gates of every head from the row before it is rounded.
struct WithGates : Plain {
  static constexpr bool kGates = true;
  Gate input, forget;
  int heads;  ///< 0: no gates
  float cap;
};

struct Gated {
  static constexpr bool kPairs = true, kGates = false;
  Matrix<Bf16> y;
  __device__ void finish(std::int64_t t, std::int64_t n, float gate, float up) const {
    store(y.row(t) + n, gate / (1.0F + expf(-gate)) * up);
  }
};

/// By the whole blocks, the last first: where tiles are not as many for each, those have fewer.
__device__ inline void make_gates(const Normed& x, const WithGates& after, int tokens,
                                  float (&partial)[2][kFewWarps]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int items = 2 * after.heads * tokens;
  for (int i = gridDim.x - 1 - blockIdx.x; i < items; i += gridDim.x) {
    const int which = i / tokens, token = i % tokens, head = which % after.heads;
    const Gate& gate = which < after.heads ? after.input : after.forget;
    const float* row = x.x.row(token);
    float dot = 0, squares = 0;
#pragma unroll 4
    for (int d = threadIdx.x * 4; d < x.width; d += kFewThreads * 4) {
      const float4 a = *reinterpret_cast<const float4*>(row + d);
      const float4 n = four_of(x.w, d), w = four_of(gate.w, head * gate.stride + d);
      squares = fmaf(a.x, a.x, squares);
      squares = fmaf(a.y, a.y, squares);
      squares = fmaf(a.z, a.z, squares);
      squares = fmaf(a.w, a.w, squares);
      dot = fmaf(a.x * n.x, w.x, dot);
      dot = fmaf(a.y * n.y, w.y, dot);
      dot = fmaf(a.z * n.z, w.z, dot);
      dot = fmaf(a.w * n.w, w.w, dot);
    }
    dot = warp_sum(dot);
    squares = warp_sum(squares);
    if (lane == 0) {
      partial[0][warp] = dot;
      partial[1][warp] = squares;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      dot = squares = 0;
      for (int v = 0; v < kFewWarps; ++v) {
        dot += partial[0][v];
        squares += partial[1][v];
      }
      const float scale = reciprocal_root(squares / static_cast<float>(x.width), x.eps);
      finish_gate(gate, token, head, dot * scale, after.cap);
    }
    __syncthreads();
  }
}

template <class W, class Before, class After, int kTokenTiles>
__global__ void __maxnreg__((Before::kHeld && !Before::kNormed && kTokenTiles == 1 ? 136 : 255))
    few_rows_kernel(Before before, W w, After after, int tokens) {
  constexpr int kTilesAtOnce = Before::kHeld ? 1 : 2;
  // With few registers a block of the cell's kernel has room beside one of the product after it.
  constexpr int kUnitsAtOnce = Before::kHeld && !Before::kNormed ? kStageUnits / 2 : kStageUnits;
  constexpr int kHalvesAtOnce = kUnitsAtOnce == kStageUnits ? 2 : 1;  // of packed numbers
  using Shared = FewShared<W, kTokenTiles, Before::kNormed>;
  constexpr int kStages = Shared::kStages, kStageBytes = W::kStageBytes;
  // Stages that are asked for before the tokens, which then do not come behind all of them.
  constexpr int kFirst = !Before::kHeld ? kStages : W::kPacked && Before::kNormed ? 6 : 4;
  XLSTM_DYNAMIC_SHARED(Shared, shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = before.width;
  const int group = lane / 4, quarter = lane % 4;  // row or token of an operand; place in a unit
  const Slice slice(width, warp);
  const int outputs = static_cast<int>(After::kPairs ? w.rows / 2 : w.rows);
  constexpr int kJobOutputs = kTilesAtOnce * kTileRows / (After::kPairs ? 2 : 1);
  const int jobs = (outputs + kJobOutputs - 1) / kJobOutputs;

  // Numbers 8 quarter to 8 quarter + 7 of each unit are this lane's, of weights and of tokens.
  const auto place = [&](int stage, int unit) {
    return (slice.begin + stage) * kStageDepth + unit * kUnit + quarter * 8;
  };
  constexpr int kOwn = Before::kNormed ? kMostHeld * kStageUnits / 8 : 1;
  [[maybe_unused]] float4 norm[kOwn][2];
  [[maybe_unused]] int at[kOwn];
  [[maybe_unused]] bool exists[kOwn];
  if constexpr (Before::kNormed) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int unit = group + i * 8;
      at[i] = place(unit / kStageUnits, unit % kStageUnits);
      exists[i] = unit / kStageUnits < slice.count && at[i] < width;
      if (!exists[i]) at[i] = 0;
      norm[i][0] = four_of(before.w, at[i]);
      norm[i][1] = four_of(before.w, at[i] + 4);
    }
  }

  const std::uint32_t ring = shared_address(shared->ring[warp]);
  typename W::template Feed<kTilesAtOnce, After::kPairs> feed(w, slice, width, outputs, jobs);
  const auto fill = [&](int from, int to) {
#pragma unroll 1
    for (int s = from; s < to; ++s) {
      if constexpr (!W::kPacked)
        feed.copy(ring + s * kStageBytes);
      else if (feed.copy(ring + s * kStageBytes, s % kTilesAtOnce))
        feed.find_next();
    }
  };
  fill(0, kFirst);

  unsigned b[Before::kHeld ? kMostHeld : 1][kStageUnits][kTokenTiles][4];
  if constexpr (!Before::kNormed) {
    grid_wait();
    if constexpr (Before::kHeld) {
#pragma unroll
      for (int s = 0; s < kMostHeld; ++s)
#pragma unroll
        for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
            uint4 loaded = {0, 0, 0, 0};
            if (s < slice.count) loaded = before.load(i * kTileTokens + group, tokens, place(s, u));
            b[s][u][i][0] = loaded.x;
            b[s][u][i][1] = loaded.y;
            b[s][u][i][2] = loaded.z;
            b[s][u][i][3] = loaded.w;
          }
      fill(kFirst, kStages);
    }
  } else {
    constexpr int kUnits = kMostHeld * kStageUnits;
    constexpr int kFewest = 2;  // tokens
    const bool by_token = kTokenTiles == 1 && tokens <= kFewest;
    if (by_token) {
      // The warp makes one token after the other: a lane 8 numbers of two units, which go to the
      // lanes of that token by way of shared memory.
#pragma unroll
      for (int s = 0; s < kMostHeld; ++s)
#pragma unroll
        for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
          for (int j = 0; j < 4; ++j) b[s][u][0][j] = 0;
      grid_wait();
      float4 x[kFewest][kOwn][2];
#pragma unroll
      for (int t = 0; t < kFewest; ++t)
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const float* const from = before.x.row(min(t, tokens - 1)) + at[i];
          x[t][i][0] = *reinterpret_cast<const float4*>(from);
          x[t][i][1] = *reinterpret_cast<const float4*>(from + 4);
        }
      fill(kFirst, kStages);
      auto* const staging = reinterpret_cast<uint4*>(shared->staging[warp]);
#pragma unroll
      for (int t = 0; t < kFewest; ++t) {
        if (t == tokens) break;
        float squares = 0;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const Products p(x[t][i][0], x[t][i][1], norm[i][0], norm[i][1]);
          staging[(group + i * 8) * 4 + quarter] = exists[i] ? p.packed : uint4{0, 0, 0, 0};
          squares += exists[i] ? p.squares : 0.0F;
        }
        squares = warp_sum(squares);
        if (lane == 0) shared->squares[warp][t] = squares;
        __syncwarp();
        if (group != t) continue;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          const uint4 mine = staging[u * 4 + quarter];
          unsigned(&to)[4] = b[u / kStageUnits][u % kStageUnits][0];
          to[0] = mine.x;
          to[1] = mine.y;
          to[2] = mine.z;
          to[3] = mine.w;
        }
      }
    } else {
      // A lane makes what it multiplies itself; the norm's weights are the same for all tokens.
      float4* const weights = shared->staging[warp];
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) weights[((group + i * 8) * 4 + quarter) * 2 + j] = norm[i][j];
      __syncwarp();
      grid_wait();
      constexpr int kChunk = kTokenTiles == 1 ? 8 : 4, kChunks = kTokenTiles * kUnits / kChunk;
      float4 x[2][kChunk][2];
      const auto load = [&](int chunk) {
        const int tile = chunk * kChunk / kUnits;
        const float* const row = before.x.row(min(tile * kTileTokens + group, tokens - 1));
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          const int u = (chunk * kChunk + i) % kUnits;
          const int from = place(u / kStageUnits, u % kStageUnits);
          const float* const source =
              row + (u / kStageUnits < slice.count && from < width ? from : 0);
          x[chunk % 2][i][0] = *reinterpret_cast<const float4*>(source);
          x[chunk % 2][i][1] = *reinterpret_cast<const float4*>(source + 4);
        }
      };
      load(0);
      fill(kFirst, kStages);
      float squares[8];  // as the lanes of one token have them above: the sum has one order
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        if (chunk + 1 < kChunks) load(chunk + 1);
        const int tile = chunk * kChunk / kUnits, token = tile * kTileTokens + group;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          const int u = (chunk * kChunk + i) % kUnits, s = u / kStageUnits;
          const bool lives = token < tokens && s < slice.count && place(s, u % kStageUnits) < width;
          const Products p(x[chunk % 2][i][0], x[chunk % 2][i][1], weights[(u * 4 + quarter) * 2],
                           weights[(u * 4 + quarter) * 2 + 1]);
          unsigned(&to)[4] = b[s][u % kStageUnits][tile];
          to[0] = lives ? p.packed.x : 0;
          to[1] = lives ? p.packed.y : 0;
          to[2] = lives ? p.packed.z : 0;
          to[3] = lives ? p.packed.w : 0;
          const float square = lives ? p.squares : 0.0F;
          squares[u % 8] = u < 8 ? square : squares[u % 8] + square;
        }
        if ((chunk + 1) * kChunk % kUnits != 0) continue;
        float sum = ((squares[0] + squares[4]) + (squares[2] + squares[6])) +
                    ((squares[1] + squares[5]) + (squares[3] + squares[7]));
        sum += __shfl_xor_sync(~0U, sum, 2);
        sum += __shfl_xor_sync(~0U, sum, 1);
        if (quarter == 0) shared->squares[warp][token] = sum;
      }
      __syncwarp();
    }
  }
  grid_trigger();

  int stage = 0;
  int buffer = 0;
  for (int job = blockIdx.x; job < jobs; job += gridDim.x) {
    // The output of this thread.
    const int token = static_cast<int>(threadIdx.x) / kTileRows, r = threadIdx.x % kTileRows;
    float old[kTilesAtOnce] = {};
    const auto output = [&](int i) {
      return (job * kTilesAtOnce + i) * (After::kPairs ? kTileRows / 2 : kTileRows) + r;
    };
    const auto lives = [&](int i) {
      return token < tokens && output(i) < outputs && (!After::kPairs || r < kTileRows / 2);
    };
    if constexpr (!After::kPairs) {
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i)
        if (lives(i)) old[i] = after.before(token, output(i));
    }

    // Two sums, or each product would wait for the one before.
    float acc[kTilesAtOnce][kTokenTiles][2][4] = {};
    [[maybe_unused]] float scales[kTilesAtOnce][2] = {};  // of packed rows; 0: nothing to add up
    const auto take = [&](const unsigned(&tokens_b)[kStageUnits][kTokenTiles][4]) {
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) {
        wait_for_copies<kStages - 1>();
        __syncwarp();
        if constexpr (W::kPacked) {
          const PackedStage packed(shared->ring[warp][stage], group, quarter);
          const auto multiply = [&]<int kHalf>() {
            unsigned a[kHalvesAtOnce][kStageUnits][4];
            packed.template read<kHalf>(a);
            if constexpr (kHalf + kHalvesAtOnce == 2) {
              scales[i][0] = packed.scale(0);
              scales[i][1] = packed.scale(1);
              __syncwarp();
              feed.copy(ring + stage * kStageBytes, (i + kStages) % kTilesAtOnce);
            } else {
              __syncwarp();
            }
#pragma unroll
            for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
              for (int c = 0; c < kTokenTiles; ++c)
#pragma unroll
                for (int h = 0; h < kHalvesAtOnce; ++h) {
                  const int j = (kHalf + h) * 2;
                  mma_bf16(acc[i][c][kHalf + h], a[h][u],
                           {tokens_b[u][c][j], tokens_b[u][c][j + 1]});
                }
          };
          multiply.template operator()<0>();
          if constexpr (kHalvesAtOnce == 1) multiply.template operator()<1>();
        } else {
          const unsigned char* const at =
              shared->ring[warp][stage] + stage_offset(group) + quarter * 16;
          // What lies beyond the width is zero. The place is filled again before the last products.
#pragma unroll
          for (int first = 0; first < kStageUnits; first += kUnitsAtOnce) {
            uint4 low[kUnitsAtOnce], high[kUnitsAtOnce];
#pragma unroll
            for (int u = 0; u < kUnitsAtOnce; ++u) {
              const unsigned char* const unit = at + (first + u) * kUnit * 2;
              low[u] = *reinterpret_cast<const uint4*>(unit);
              high[u] = *reinterpret_cast<const uint4*>(unit + 4 * kStageDepth * 2);
            }
            if (first + kUnitsAtOnce == kStageUnits) {
              __syncwarp();
              feed.copy(ring + stage * kStageBytes);
            }
#pragma unroll
            for (int u = 0; u < kUnitsAtOnce; ++u) {
              const unsigned a0[4] = {low[u].x, high[u].x, low[u].y, high[u].y};
              const unsigned a1[4] = {low[u].z, high[u].z, low[u].w, high[u].w};
              const unsigned(&tokens_u)[kTokenTiles][4] = tokens_b[first + u];
#pragma unroll
              for (int c = 0; c < kTokenTiles; ++c) {
                mma_bf16(acc[i][c][0], a0, {tokens_u[c][0], tokens_u[c][1]});
                mma_bf16(acc[i][c][1], a1, {tokens_u[c][2], tokens_u[c][3]});
              }
            }
          }
        }
        if (++stage == kStages) stage = 0;
      }
    };
    if constexpr (Before::kHeld) {
      // Tokens go round: registers have no index at run time, and unrolled code is read from memory
      // for every kernel. Packed weights leave no time for that: 64 moves more to a stage.
      constexpr int kTurn = W::kPacked ? kMostHeld : 1;
#pragma unroll 1
      for (int s = 0; s < kMostHeld; s += kTurn) {
#pragma unroll
        for (int v = 0; v < kTurn; ++v)
          if (s + v < slice.count) take(b[v]);
        if constexpr (kTurn < kMostHeld) {
#pragma unroll
          for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
            for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                const unsigned first = b[0][u][i][j];
#pragma unroll
                for (int v = 0; v + 1 < kMostHeld; ++v) b[v][u][i][j] = b[v + 1][u][i][j];
                b[kMostHeld - 1][u][i][j] = first;
              }
        }
      }
    } else {
      unsigned next[kStageUnits][kTokenTiles][4];
      const auto load = [&](int s) {
#pragma unroll
        for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
            const uint4 loaded = before.load(i * kTileTokens + group, tokens, place(s, u));
            next[u][i][0] = loaded.x;
            next[u][i][1] = loaded.y;
            next[u][i][2] = loaded.z;
            next[u][i][3] = loaded.w;
          }
      };
      if (slice.count > 0) load(0);
#pragma unroll 1
      for (int s = 0; s < slice.count; ++s) {
#pragma unroll
        for (int u = 0; u < kStageUnits; ++u)
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) b[0][u][i][j] = next[u][i][j];
        if (s + 1 < slice.count) load(s + 1);
        take(b[0]);
      }
    }

#pragma unroll
    for (int i = 0; i < kTilesAtOnce; ++i)
#pragma unroll
      for (int c = 0; c < kTokenTiles; ++c)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float sum = acc[i][c][0][j] + acc[i][c][1][j];
          if constexpr (W::kPacked) sum *= scales[i][j / 2];
          shared->sums[buffer ^ i][warp][c * kTileTokens + quarter * 2 + j % 2][group + j / 2 * 8] =
              sum;
        }
    __syncthreads();
    if (token < tokens) {
      float scale = 1;
      if constexpr (Before::kNormed) {
        float squares = 0;
        for (int v = 0; v < kFewWarps; ++v) squares += shared->squares[v][token];
        scale = reciprocal_root(squares / static_cast<float>(width), before.eps);
      }
#pragma unroll
      for (int i = 0; i < kTilesAtOnce; ++i) {
        if (!lives(i)) continue;
        const auto sum = [&](int row) {
          float total = 0;
#pragma unroll
          for (int v = 0; v < kFewWarps; ++v) total += shared->sums[buffer ^ i][v][token][row];
          return total * scale;
        };
        const int n = output(i);
        if constexpr (After::kPairs)
          after.finish(token, n, sum(r) + w.bias_of(n),
                       sum(r + kTileRows / 2) + w.bias_of(outputs + n));
        else
          after.finish(token, n, sum(r) + w.bias_of(n), old[i]);
      }
    }
    if constexpr (kTilesAtOnce > 1)
      __syncthreads();  // both buffers are read
    else
      buffer ^= 1;
    if constexpr (W::kPacked)
      if (job + static_cast<int>(gridDim.x) < jobs) feed.find_next();
  }
  if constexpr (After::kGates) make_gates(before, after, tokens, shared->gates);
}

}  // namespace xlstm::ops::cuda::sm90
