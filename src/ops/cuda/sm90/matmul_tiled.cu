// Many rows: two blocks of a cluster multiply 128 rows of x each with the same rows of W, of which
// each loads one half for both. One warp copies, two warp groups multiply 64 rows each; blocks stay
// and take tiles in turn, so that copies for the next tile run while this one is written.

#include <type_traits>

#include "ops/cuda/device/e4m3.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/device/wgmma.cuh"
#include "ops/cuda/sm90/matmul_kernels.cuh"
#include "ops/cuda/sm90/matmul_output.cuh"
#include "ops/cuda/sm90/matmul_places.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kGroup = 128;  // threads of a warp group
constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr int kBlockRows = 128;
constexpr int kCluster = 2;
constexpr int kStoreBytes = 2048;  // 16 rows of a warp
constexpr int kWarps = kConsumers * kGroup / kWarp;
constexpr int kStores = 2;  // of a warp at once

template <int kColumns>
struct Ring {
  static constexpr int kStages = kColumns == 128 ? 6 : 4;
  static constexpr int kX = kBlockRows * 128, kW = kColumns * 128;
  static constexpr int kStage = kX + kW;
  static constexpr int kStoresAt = kStages * kStage;
  static constexpr int kBarriersAt = kStoresAt + kWarps * kStores * kStoreBytes;
  static constexpr std::size_t kBytes = 1024 + kBarriersAt + 2 * kStages * 8;
  static_assert(kBytes <= 227 << 10);
};

// sums += bias, for columns [0, 2 kCount) of this thread's rows
template <int kCount>
__device__ __forceinline__ void add_bias(float* sums, const void* bias, DType dtype,
                                         std::int64_t first, std::int64_t count) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const float low = bias_of(bias, dtype, first + 8 * j + 2 * t, count);
    const float high = bias_of(bias, dtype, first + 8 * j + 2 * t + 1, count);
    sums[4 * j] += low;
    sums[4 * j + 1] += high;
    sums[4 * j + 2] += low;
    sums[4 * j + 3] += high;
  }
}

// The scales of a warp's 16 rows of x and of the columns of its tile: asked for while the last
// products run, and handed round through the warp's part of shared memory.
template <int kColumns, bool kSwiglu>
struct TileScales {
  float upper, lower;  // of this thread's two rows
  float columns[kColumns / kWarp];

  __device__ __forceinline__ TileScales(const MatmulArgs& a, const Place& p, int row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, t = row + lane / 4;
    upper = t < a.rows ? __ldcg(a.x_scales + t) : 0.0F;
    lower = t + 8 < a.rows ? __ldcg(a.x_scales + t + 8) : 0.0F;
#pragma unroll
    for (int i = 0; i < kColumns / kWarp; ++i) {
      constexpr int kOfWeight = kSwiglu ? kColumns / 2 : kColumns;
      const int column = i * kWarp + lane;
      const bool second = column >= kOfWeight;
      const int n = p.column * kOfWeight + column - (second ? kOfWeight : 0);
      const int weight = kSwiglu ? (second ? 1 : 0) : p.weight;
      columns[i] = n < a.outputs[p.weight] ? __ldg(a.w_scales[weight] + n) : 0.0F;
    }
  }
  __device__ __forceinline__ void apply(float (&sums)[kColumns / 2], SharedAddress stores) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane == 0) wait_stores_read<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kColumns / kWarp; ++i)
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(stores + (i * kWarp + lane) * 4), "f"(columns[i])
                   : "memory");
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      float low = 0, high = 0;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(low), "=f"(high)
                   : "r"(stores + (8 * j + lane % 4 * 2) * 4)
                   : "memory");
      sums[4 * j] *= upper * low;
      sums[4 * j + 1] *= upper * high;
      sums[4 * j + 2] *= lower * low;
      sums[4 * j + 3] *= lower * high;
    }
    __syncwarp();
  }
};

/// e4m3 numbers of which runs and blocks have scales.
struct E4m3Blocks {
  std::uint8_t bits;
};

// Of one stage: the scales of a thread's two rows of x times that of each 128 columns of W.
template <int kColumns, bool kSwiglu>
struct StageScales {
  static constexpr int kBlock = 128;
  static constexpr int kBlocks = kColumns / kBlock;
  const float* x[2];
  const float* w[kBlocks];
  float upper, lower, blocks[kBlocks];  // of the next stage

  __device__ __forceinline__ StageScales(const MatmulArgs& a, const Place& p, int row) {
    const int t = row + static_cast<int>(threadIdx.x) % kWarp / 4;
    x[0] = a.x_scales + min(t, a.rows - 1);
    x[1] = a.x_scales + min(t + 8, a.rows - 1);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int n = kSwiglu ? p.column : p.column * kBlocks + i;  // in blocks
      const auto last = static_cast<int>((a.outputs[p.weight] - 1) / kBlock);
      w[i] = a.w_scales[kSwiglu ? i : p.weight] +
             static_cast<std::int64_t>(min(n, last)) * a.depth_stages;
    }
    load(a, 0);
  }
  __device__ __forceinline__ void load(const MatmulArgs& a, int stage) {
    upper = __ldcg(x[0] + stage * a.run_step);
    lower = __ldcg(x[1] + stage * a.run_step);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) blocks[i] = __ldg(w[i] + stage);
  }
};

template <class Y>
constexpr int kBox = 128 / static_cast<int>(sizeof(Y));  // columns

// A warp's 16 rows leave through its part of shared memory, whole boxes of them.
template <class Y, int kCount>
__device__ __forceinline__ void store_rows(const float* sums, SharedAddress stores,
                                           const CUtensorMap* map, int row, int column,
                                           bool accumulate) {
  constexpr int kSums = kBox<Y> / 2;  // of a thread
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int c = 0; c < kCount / kSums; ++c) {
    const SharedAddress to = stores + (c % kStores) * kStoreBytes;
    if (lane == 0) wait_stores_read<kStores - 1>();
    __syncwarp();
    if constexpr (sizeof(Y) == 4) {
#pragma unroll
      for (int j = 0; j < kSums / 4; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const SharedAddress at =
              to + box_offset(lane / 4 + 8 * half, 2 * j + lane % 4 / 2) + lane % 2 * 8;
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at),
                       "f"(sums[c * kSums + 4 * j + 2 * half]),
                       "f"(sums[c * kSums + 4 * j + 2 * half + 1])
                       : "memory");
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kSums / 4; j += 2) {
        const float* s = &sums[c * kSums + 4 * j];
        const SharedAddress at = to + box_offset(lane % 16, j + lane / 16);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                     "r"(bf16_pair(s[0], s[1])), "r"(bf16_pair(s[2], s[3])),
                     "r"(bf16_pair(s[4], s[5])), "r"(bf16_pair(s[6], s[7]))
                     : "memory");
      }
    }
    fence_async();
    __syncwarp();
    if (lane == 0) {
      if (accumulate)
        add_box(to, map, row, column + c * kBox<Y>);
      else
        store_box(to, map, row, column + c * kBox<Y>);
      commit_stores();
    }
  }
}

// The same of e4m3 numbers, one box of them: sums are 128 columns, a run, of this thread's two
// rows.
__device__ __forceinline__ void store_run(const float* sums, SharedAddress stores,
                                          const MatmulArgs& a, const CUtensorMap* map, int row,
                                          int column) {
  constexpr int kSums = 64;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float most[2] = {};
#pragma unroll
  for (int i = 0; i < kSums; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], fabsf(sums[i]));
#pragma unroll
  for (float& m : most) {
    m = fmaxf(m, __shfl_xor_sync(~0U, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0U, m, 2));
  }
  const E4m3Scale scales[2] = {E4m3Scale(most[0]), E4m3Scale(most[1])};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = row + lane / 4 + 8 * half;
    if (lane % 4 == 0 && t < a.rows)
      a.y_scales[column / 128 * a.y_run_step + t] = scales[half].scale;
  }
  if (lane == 0) wait_stores_read<0>();
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* s = &sums[4 * j + 2 * half];
      const SharedAddress at =
          stores + box_offset(lane / 4 + 8 * half, j / 2) + j % 2 * 8 + lane % 4 * 2;
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(at),
                   "h"(e4m3_pair(s[0] * scales[half].factor, s[1] * scales[half].factor))
                   : "memory");
    }
  }
  fence_async();
  __syncwarp();
  if (lane == 0) {
    store_box(stores, map, row, column);
    commit_stores();
  }
}

template <class X, int kColumns, bool kSwiglu, class Y>
__global__ void __launch_bounds__(kThreads, 1)
    tiled_kernel(const __grid_constant__ MatmulMaps maps, const __grid_constant__ MatmulArgs args) {
  using R = Ring<kColumns>;
  constexpr bool kE4m3 = sizeof(X) == 1;
  constexpr bool kBlocks = std::is_same_v<X, E4m3Blocks>;
  constexpr int kDepth = 128 / static_cast<int>(sizeof(X));  // of a stage
  constexpr int kStages = R::kStages;
  XLSTM_DYNAMIC_SHARED(unsigned char, memory);
  const SharedAddress base = (shared_address(memory) + 1023) & ~1023U;
  const SharedAddress full = base + R::kBarriersAt, empty = full + kStages * 8;
  const unsigned rank = cluster_rank();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, kWarps * kCluster);
    }
    barrier_fence_init();
    prefetch_map(&maps.x);
    prefetch_map(&maps.w[0]);
  }
  grid_wait();
  cluster_sync();

  const int tiles = args.row_tiles * args.column_tiles;
  const int first_tile = static_cast<int>(blockIdx.x) / kCluster;
  const int step = static_cast<int>(gridDim.x) / kCluster;
  int slot = 0;
  unsigned phase = 0;
  const auto advance = [&] {
    if (++slot == kStages) {
      slot = 0;
      phase ^= 1;
    }
  };
  if (warp < kGroup / kWarp) {
    fewer_registers<40>();
    if (warp == 0 && lane == 0) {
      for (int tile = first_tile; tile < tiles; tile += step) {
        const Place p = place_of(args, tile);
        const int row = (p.row * kCluster + static_cast<int>(rank)) * kBlockRows;
        // With SwiGLU one half of the tile is of the gate, the other of what it gates.
        const CUtensorMap* w = &maps.w[kSwiglu ? rank : p.weight];
        const int w_row = kSwiglu ? p.column * (kColumns / 2)
                                  : p.column * kColumns + static_cast<int>(rank) * (kColumns / 2);
        for (int i = 0; i < args.depth_stages; ++i, advance()) {
          const int k = kE4m3 ? i : stage_of(p, i, args.depth_stages);
          barrier_wait(empty + 8 * slot, phase ^ 1);
          const SharedAddress x_at = base + slot * R::kStage, w_at = x_at + R::kX;
          barrier_expect(full + 8 * slot, R::kStage);
          load_box(x_at, &maps.x, row, k * kDepth, full + 8 * slot);
          load_box_to(3, w_at + rank * (R::kW / 2), w, w_row, k * kDepth, full + 8 * slot);
        }
      }
      grid_trigger();
    }
  } else {
    more_registers<232>();
    const int consumer = warp / (kGroup / kWarp) - 1;
    const SharedAddress stores =
        base + R::kStoresAt + (warp - kGroup / kWarp) * kStores * kStoreBytes;
    for (int tile = first_tile; tile < tiles; tile += step) {
      const Place p = place_of(args, tile);
      const int row =
          (p.row * kCluster + static_cast<int>(rank)) * kBlockRows + consumer * 64 + warp % 4 * 16;
      float sums[kColumns / 2];
      if constexpr (kBlocks) {
        // Sums of a stage, 128 columns at a time, leave the tensor cores for those in float32.
        // While one warp group adds, the other's products run.
        constexpr int kOfBlock = 64;
#pragma unroll
        for (float& sum : sums) sum = 0;
        StageScales<kColumns, kSwiglu> scales(args, p, row);
        for (int k = 0; k < args.depth_stages; ++k, advance()) {
          const SharedAddress x_at = base + slot * R::kStage + consumer * (64 * 128),
                              w_at = base + slot * R::kStage + R::kX;
          const StageScales<kColumns, kSwiglu> now = scales;
          scales.load(args, min(k + 1, args.depth_stages - 1));
          barrier_wait(full + 8 * slot, phase);
          const std::uint64_t a = wgmma_matrix(x_at), b = wgmma_matrix(w_at);
#pragma unroll
          for (int h = 0; h < kColumns / 128; ++h) {
            float part[kOfBlock];
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; ++i)
              wgmma_e4m3<128>(part, a + i * kWgmmaDepth, moved(b, h * 128 * 128) + i * kWgmmaDepth,
                              i > 0);
            wgmma_commit();
            wgmma_wait<0>();
            if (h == kColumns / 128 - 1 && lane < kCluster)
              barrier_arrive_at(empty + 8 * slot, lane);
            const float upper = now.upper * now.blocks[h], lower = now.lower * now.blocks[h];
#pragma unroll
            for (int i = 0; i < kOfBlock; ++i)
              sums[h * kOfBlock + i] =
                  fmaf(part[i], i % 4 < 2 ? upper : lower, sums[h * kOfBlock + i]);
          }
        }
      } else {
        SharedAddress before = 0;
        for (int k = 0; k < args.depth_stages; ++k, advance()) {
          const SharedAddress x_at = base + slot * R::kStage + consumer * (64 * 128),
                              w_at = base + slot * R::kStage + R::kX;
          barrier_wait(full + 8 * slot, phase);
          wgmma_fence();
          const std::uint64_t a = wgmma_matrix(x_at), b = wgmma_matrix(w_at);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if constexpr (kE4m3)
              wgmma_e4m3<kColumns>(sums, a + i * kWgmmaDepth, b + i * kWgmmaDepth, k > 0 || i > 0);
            else
              wgmma<kColumns>(sums, a + i * kWgmmaDepth, b + i * kWgmmaDepth, k > 0 || i > 0);
          }
          wgmma_commit();
          wgmma_wait<1>();
          if (k > 0 && lane < kCluster) barrier_arrive_at(before, lane);
          before = empty + 8 * slot;
        }
        const auto finish_products = [&] {
          wgmma_wait<0>();
          if (lane < kCluster) barrier_arrive_at(before, lane);
        };
        if constexpr (kE4m3) {
          const TileScales<kColumns, kSwiglu> scales(args, p, row);
          finish_products();
          scales.apply(sums, stores);
        } else {
          finish_products();
        }
      }
      if constexpr (kSwiglu) {
        const int column = p.column * (kColumns / 2);
        if (args.bias[0] != nullptr) {
          add_bias<kColumns / 4>(sums, args.bias[0], args.bias_dtype, column, args.outputs[0]);
          add_bias<kColumns / 4>(sums + kColumns / 4, args.bias[1], args.bias_dtype, column,
                                 args.outputs[0]);
        }
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) sums[i] = gated(sums[i], sums[i + kColumns / 4]);
        if constexpr (sizeof(Y) == 1) {
          store_run(sums, stores, args, &maps.y[0], row, column);
          continue;
        }
        store_rows<Y, kColumns / 4>(sums, stores, &maps.y[0], row, column, false);
        // What is not whole boxes.
        constexpr int kBoxes = kColumns / 2 / kBox<Y> * kBox<Y>;
        const Target target{args, 0};
#pragma unroll
        for (int i = kBoxes / 2; i < kColumns / 4; i += 2) {
          const int t = row + lane / 4 + i / 2 % 2 * 8, n = column + i / 4 * 8 + lane % 4 * 2;
          if (t < args.rows) target.two(t, n, sums[i], sums[i + 1]);
        }
      } else {
        const int column = p.column * kColumns;
        if (args.bias[0] != nullptr)
          add_bias<kColumns / 2>(sums, args.bias[p.weight], args.bias_dtype, column,
                                 args.outputs[p.weight]);
        store_rows<Y, kColumns / 2>(sums, stores, &maps.y[p.weight], row, column, args.accumulate);
      }
    }
    if (lane == 0) wait_stores();
  }
  __syncwarp();
  cluster_sync();  // nobody ends while the other still arrives at its barriers or copies to it
}

template <class X, int kColumns, bool kSwiglu, class Y>
void run(Context& context, const MatmulMaps& maps, const MatmulArgs& args) {
  launch(context, "linear",
         {.x = kCluster * std::int64_t{args.order.clusters},
          .threads = kThreads,
          .shared = Ring<kColumns>::kBytes,
          .cluster = kCluster,
          .overlap = true},
         tiled_kernel<X, kColumns, kSwiglu, Y>, maps, args);
}

template <class X, int kColumns>
void run(Context& context, const MatmulMaps& maps, const MatmulArgs& args) {
  // With SwiGLU a tile has whole blocks of both weights.
  constexpr bool kBlocks = std::is_same_v<X, E4m3Blocks>;
  if constexpr (kBlocks && kColumns == 256)
    if (args.y_scales != nullptr) return run<X, kColumns, true, E4m3>(context, maps, args);
  if constexpr (!kBlocks || kColumns == 256) {
    if (args.swiglu && args.y_is_bf16) return run<X, kColumns, true, Bf16>(context, maps, args);
    if (args.swiglu) return run<X, kColumns, true, float>(context, maps, args);
  }
  if (args.y_is_bf16)
    run<X, kColumns, false, Bf16>(context, maps, args);
  else
    run<X, kColumns, false, float>(context, maps, args);
}

template <int kColumns>
void run(Context& context, const MatmulMaps& maps, const MatmulArgs& args) {
  if (args.run_step > 0) {
    if constexpr (kColumns % 128 == 0) run<E4m3Blocks, kColumns>(context, maps, args);
  } else if (args.x_scales != nullptr)
    run<E4m3, kColumns>(context, maps, args);
  else
    run<Bf16, kColumns>(context, maps, args);
}

}  // namespace

void launch_tiled(Context& context, const MatmulPlan& plan, const MatmulMaps& maps,
                  const MatmulArgs& args) {
  switch (plan.columns) {
    case 128: return run<128>(context, maps, args);
    case 192: return run<192>(context, maps, args);
    default: return run<256>(context, maps, args);
  }
}

}  // namespace xlstm::ops::cuda
