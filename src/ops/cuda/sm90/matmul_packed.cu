// Few rows and packed weights (ops/packed.hpp): y^T = W x^T, W in registers. A warp has two tiles
// of 8 rows of W, puts their numbers together and multiplies them with all rows of x, or with 128
// of them. Copies of W and of x have rings of their own: a stage of W is free as soon as it is in
// registers.

#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/device/matrices.cuh"
#include "ops/cuda/sm90/device/packed_fragments.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/device/wgmma.cuh"
#include "ops/cuda/sm90/matmul_kernels.cuh"
#include "ops/cuda/sm90/matmul_output.cuh"
#include "ops/cuda/sm90/matmul_places.cuh"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {
namespace {

using Tile = PackedTile;
constexpr int kGroup = 128;    // threads of a warp group
constexpr int kBefore = 1024;  // barriers, up to where a box may begin
constexpr int kStages = kPackedMostStages;

/// What a launch makes of its plan.
struct Ring {
  int x_stages, w_stages;
  int w_bytes;  // of a stage
};

/// Tiles of a job: of W `weight`, or of gate and up with SwiGLU; and its rows of x. Jobs with the
/// same tiles follow one another: one of them finds W in the second-level cache.
struct Job {
  int weight = 0, first, count, row;
  __device__ __forceinline__ Job(const MatmulArgs& a, int index, int rows) {
    int job = index, before = 0;
    row = 0;
    if (a.row_tiles > 1) {
      job = index / a.row_tiles;
      row = (index - job * a.row_tiles) * rows;
    }
#pragma unroll
    for (int i = 0; i < kMostProducts - 1; ++i) {
      if (i < a.weights - 1 && job >= a.tile_end[i]) {
        weight = i + 1;
        before = a.tile_end[i];
      }
    }
    first = (job - before) * a.height;
    count = min(a.height, static_cast<int>(a.outputs[weight]) / Tile::kRows - first);
  }
};

/// Where the sums of a tile's row go.
struct Column {
  unsigned at = 0;  // in y, of the lane's first token
  float scale = 0, bias = 0;
  bool exists = false;
};

/// @tparam kTurns  warp groups that have the same tiles, and stages in turn
template <int kRows, int kGroups, int kTurns>
struct Block {
  static constexpr int kWarps = kGroups * kGroup / kWarp;  // that multiply
  static constexpr int kWarpsOfStage = kWarps / kTurns;
  // Registers move between whole warp groups alone; the others need none, and leave some to a
  // block of a norm.
  static constexpr bool kManySums = kRows == 128 && kGroups == 3;
  static constexpr int kThreads = kGroups * kGroup + (kManySums ? kGroup : 2 * kWarp);
  // Where registers are left, they hold what the end needs.
  static constexpr bool kAsksEarly = kGroups == 2;
};

template <int kRows, int kGroups, int kTurns>
__global__ void __launch_bounds__(Block<kRows, kGroups, kTurns>::kThreads, 1)
    packed_kernel(const __grid_constant__ PackedMaps maps,
                  const __grid_constant__ PackedScales scales,
                  const __grid_constant__ MatmulArgs args, const Ring ring) {
  using B = Block<kRows, kGroups, kTurns>;
  constexpr int kWarps = B::kWarps;
  constexpr int kBox = kRows * 128, kXBytes = 2 * kBox;
  extern __shared__ __align__(1024) unsigned char memory[];
  // Of all lanes: it is not made anew each time that it is needed.
  const SharedAddress w_full = __shfl_sync(~0U, shared_address(memory), 0);
  const SharedAddress w_empty = w_full + kStages * 8, x_full = w_empty + kStages * 8,
                      x_empty = x_full + kStages * 8, x_base = w_full + kBefore,
                      w_base = x_base + ring.x_stages * kXBytes;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int piece = static_cast<int>(cluster_rank());  // of the depth
  const int begin = args.depth_stages * piece / args.split;
  const int end = args.depth_stages * (piece + 1) / args.split;
  const int first_job = static_cast<int>(blockIdx.x) / args.split,
            step = static_cast<int>(gridDim.x) / args.split,
            jobs = args.column_tiles * args.row_tiles;

  if (threadIdx.x == 0) {
    for (int i = 0; i < ring.w_stages; ++i) {
      barrier_init(w_full + 8 * i, 1);
      barrier_init(w_empty + 8 * i, B::kWarpsOfStage);
    }
    for (int i = 0; i < ring.x_stages; ++i) {
      barrier_init(x_full + 8 * i, 1);
      barrier_init(x_empty + 8 * i, B::kWarpsOfStage);
    }
    barrier_fence_init();
  }
  __syncthreads();

  Turn w_turn, x_turn;
  if (warp >= kWarps) {
    if constexpr (B::kManySums) fewer_registers<40>();
    if (warp == kWarps) {
      const std::uint64_t policy = evict_first();
      const unsigned bytes = (args.swiglu ? 2 : 1) * args.height * Tile::kBytes;
      int job = first_job, k = begin;
      const auto load = [&] {  // the next of all stages
        const Job tiles(args, job, kRows);
        const SharedAddress full = w_full + 8 * w_turn.at, to = w_base + w_turn.at * ring.w_bytes;
        barrier_expect(full, bytes);
        load_box(to, &maps.w[tiles.weight], tiles.first, k * kTileWords, full, policy);
        if (args.swiglu)
          load_box(to + PackedRing::of_w(args.height), &maps.w[1], tiles.first, k * kTileWords,
                   full, policy);
        w_turn.next(ring.w_stages);
        if (++k < end) return;
        k = begin;
        job += step;
      };
      // Weights do not wait for the kernel before this one.
      if (lane == 0)
        for (int i = 0; i < ring.w_stages && job < jobs; ++i) load();
      __syncwarp();
      grid_wait();
      grid_trigger();
      if (lane == 0)
        while (job < jobs) {
          barrier_wait(w_empty + 8 * w_turn.at, w_turn.phase ^ 1);
          load();
        }
      __syncwarp();
    } else {
      if (!B::kAsksEarly && warp == kWarps + 1 && first_job < jobs) {
        // Those who multiply have no registers for the scales until the end.
        const Job tiles(args, first_job, kRows);
        if (lane < tiles.count) {
          prefetch_first(scales.of[tiles.weight] + (tiles.first + lane) * Tile::kRows);
          if (args.swiglu) prefetch_first(scales.of[1] + (tiles.first + lane) * Tile::kRows);
        }
      }
      grid_wait();
      if (warp == kWarps + 1 && lane == 0) {
        for (int job = first_job; job < jobs; job += step) {
          const int row = Job(args, job, kRows).row;
          for (int k = begin; k < end; ++k, x_turn.next(ring.x_stages)) {
            barrier_wait(x_empty + 8 * x_turn.at, x_turn.phase ^ 1);
            const SharedAddress full = x_full + 8 * x_turn.at, to = x_base + x_turn.at * kXBytes;
            barrier_expect(full, kXBytes);
            load_box(to, &maps.x, row, k * Tile::kColumns, full);
            load_box(to + kBox, &maps.x, row, k * Tile::kColumns + kMatmulDepth, full);
          }
        }
      }
      __syncwarp();
    }
    if (args.split > 1) cluster_sync();
  } else {
    if constexpr (B::kManySums) more_registers<152>();
    float sums[kRows / 2];
    unsigned low[4][4], high[4][4];  // fragments: one half's are made while the other multiplies
    // With SwiGLU a warp has a tile of the gate and one of what is gated: both numbers of an output
    // are in one thread.
    const int turn = warp / B::kWarpsOfStage, place = warp % B::kWarpsOfStage,
              own = args.swiglu ? place : kTilesOfWarp * place,  // its first tile
        second = args.swiglu ? PackedRing::of_w(args.height) : Tile::kBytes;
    const SharedAddress own_tiles = w_base + own * Tile::kBytes,
                        two_words = own_tiles + Packs::two_words_at(lane),
                        third_words = own_tiles + Packs::third_word_at(lane),
                        list = own_tiles + lane / Tile::kMostPatches * second + Tile::kPatches +
                               lane % Tile::kMostPatches * 4;
    w_turn.next(ring.w_stages, turn);
    x_turn.next(ring.x_stages, turn);
    for (int job = first_job; job < jobs; job += step) {
      const Job tiles(args, job, kRows);
      const auto exists = [&](int t) { return own + (args.swiglu ? 0 : t) < tiles.count; };
      const bool has_list =
          lane / Tile::kMostPatches < kTilesOfWarp && exists(lane / Tile::kMostPatches);
      // A lane has tokens 8 j + 2 (lane % 4) and the next of row lane / 4 of both tiles. What the
      // end needs is asked for before the products.
      const auto weight_of = [&](int t) { return args.swiglu ? t : tiles.weight; };
      const auto row_of = [&](int t) {
        return (tiles.first + own + (args.swiglu ? 0 : t)) * Tile::kRows + lane / 4;
      };
      Column columns[kTilesOfWarp];
      const auto find_columns = [&] {
#pragma unroll
        for (int t = 0; t < kTilesOfWarp; ++t) {
          if (!exists(t)) continue;
          const int weight = weight_of(t), n = row_of(t);
          columns[t] = {
              .at = static_cast<unsigned>((args.swiglu ? 0 : args.first[weight]) + n +
                                          (tiles.row + lane % 4 * 2) * args.y_stride),
              .scale = scales.of[weight][n],
              .bias = bias_of(args.bias[weight], args.bias_dtype, n, args.outputs[weight]),
              .exists = true};
        }
      };
      const int token = tiles.row + lane % 4 * 2;
      constexpr int kEights = kRows / 8, kAtOnce = 2;
      const auto stride = static_cast<unsigned>(args.y_stride);
      const auto add_old = [&](int j, float(&old)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int t = 8 * j + i % 2;
          const Column& to = columns[i / 2];
          old[i] = 0;
          if (args.accumulate && to.exists && t + token < args.rows)
            old[i] = static_cast<const float*>(args.y)[to.at + t * stride];
        }
      };
      // Who have sums of pieces of the depth share the tokens.
      constexpr int kShare = kTurns == 1 ? 4 : 2, kShares = kEights / kShare;  // at once
      const auto first_share = [&](int next = 0) {
        return kShares * (piece * kTurns + turn + next) / (args.split * kTurns);
      };
      constexpr int kEarly = kTurns == 2 && kRows == 64 ? 1 : 0;  // shares whose y is read early
      float early[kEarly > 0 ? kEarly : 1][kShare][4];
      if constexpr (B::kAsksEarly) find_columns();
      if constexpr (kEarly > 0) {
        grid_wait();
#pragma unroll
        for (int s = 0; s < kEarly; ++s)
#pragma unroll
          for (int i = 0; i < kShare; ++i)
            if (first_share() + s < first_share(1))
              add_old((first_share() + s) * kShare + i, early[s][i]);
      }
      SharedAddress before = 0;
      const auto multiply = [&](const unsigned(&a)[4][4], std::uint64_t b, bool add) {
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; ++s) wgmma<kRows>(sums, a[s], b + s * kWgmmaDepth, s > 0 || add);
        wgmma_commit();
      };
#pragma unroll 1
      for (int k = begin + turn; k < end; k += kTurns) {
        const int stage = w_turn.at * ring.w_bytes;
        barrier_wait(w_full + 8 * w_turn.at, w_turn.phase);
        const unsigned patch = has_list ? load_word(list + stage) : Tile::kNoPatch;
        Packs packs;
        packs.load(two_words + stage, third_words + stage, second);
        const bool listed = patch != Tile::kNoPatch, upper = (patch >> 22 & 1) != 0;
        const unsigned in_low = __ballot_sync(~0U, listed && !upper),
                       in_high = __ballot_sync(~0U, listed && upper);
        if (lane == 0) barrier_arrive(w_empty + 8 * w_turn.at);
        w_turn.next(ring.w_stages, kTurns);
        packs.unpack<0>(low);
        if (in_low != 0) mend(in_low, patch, lane, low);
        if constexpr (kTurns > 1) {  // the stage that this group waits for may need the place
          wgmma_wait<0>();
          if (before != 0 && lane == 0) barrier_arrive(before);
        }
        barrier_wait(x_full + 8 * x_turn.at, x_turn.phase);
        const std::uint64_t b = wgmma_matrix(__shfl_sync(~0U, x_base + x_turn.at * kXBytes, 0));
        multiply(low, b, before != 0);
        if constexpr (kTurns == 1) {
          wgmma_wait<1>();
          if (before != 0 && lane == 0) barrier_arrive(before);
        }
        before = x_empty + 8 * x_turn.at;
        x_turn.next(ring.x_stages, kTurns);
        packs.unpack<1>(high);
        if (in_high != 0) mend(in_high, patch, lane, high);
        multiply(high, moved(b, kBox), true);
        wgmma_wait<1>();
      }
      wgmma_wait<0>();
      if (before == 0)  // no stage for this group
#pragma unroll
        for (float& sum : sums) sum = 0;
      if (before != 0 && lane == 0) barrier_arrive(before);
      if constexpr (kEarly == 0) grid_wait();
      if constexpr (!B::kAsksEarly) find_columns();
      // Of bf16, a lane stores two columns of token 8 j + lane / 4.
      const auto put_pairs = [&](int j, const float* sum) {
        const int ahead = lane / 4 - lane % 4 * 2;  // in tokens
        const unsigned turned = static_cast<unsigned>(ahead) * (stride - 1);
#pragma unroll
        for (int i = 0; i < kTilesOfWarp; ++i) {
          if (!columns[i].exists || (i > 0 && args.swiglu)) continue;  // of the whole warp
          float value[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            value[e] = sum[2 * i + e] * columns[i].scale + columns[i].bias;
            if (args.swiglu)
              value[e] = gated(value[e], sum[2 + e] * columns[1].scale + columns[1].bias);
          }
          const unsigned pair = transposed(bf16_pair(value[0], value[1]));
          const unsigned at = columns[i].at + turned + 8 * j * stride;
          if (8 * j + token + ahead < args.rows)
            *reinterpret_cast<unsigned*>(static_cast<Bf16*>(args.y) + at) = pair;
        }
      };
      const auto put = [&](int j, const float* sum, const float(&old)[4]) {
        if (!B::kManySums && args.y_is_bf16) return put_pairs(j, sum);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int t = 8 * j + e;
          if (t + token >= args.rows) continue;
          float value[2] = {sum[e] * columns[0].scale + columns[0].bias,
                            sum[2 + e] * columns[1].scale + columns[1].bias};
          if (args.swiglu) value[0] = gated(value[0], value[1]);
#pragma unroll
          for (int i = 0; i < kTilesOfWarp; ++i) {
            if (!columns[i].exists || (i > 0 && args.swiglu)) continue;
            const unsigned at = columns[i].at + t * stride;
            if (B::kManySums && args.y_is_bf16)
              store(static_cast<Bf16*>(args.y) + at, value[i]);
            else
              static_cast<float*>(args.y)[at] =
                  args.accumulate ? old[2 * i + e] + value[i] : value[i];
          }
        }
      };
      if (kTurns == 1 && args.split == 1) {
#pragma unroll
        for (int j = 0; j < kEights; j += kAtOnce) {
          float old[kAtOnce][4];
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) add_old(j + i, old[i]);
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) put(j + i, sums + 4 * (j + i), old[i]);
        }
        continue;
      }
      constexpr int kThreads = kGroups * kGroup, kOwners = kThreads / kTurns;  // of different sums
      const int owner = static_cast<int>(threadIdx.x) % kOwners, first = first_share(),
                last = first_share(1);
      named_barrier(1, kThreads);  // all stages have been read
      const auto sums_of = [&](int depth, int j) {
        return x_base + ((depth * kEights + j) * kOwners + owner) * 16;
      };
#pragma unroll
      for (int j = 0; j < kEights; ++j)
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(sums_of(turn, j)),
                     "f"(sums[4 * j]), "f"(sums[4 * j + 1]), "f"(sums[4 * j + 2]),
                     "f"(sums[4 * j + 3])
                     : "memory");
      float next_old[kShare][4] = {};
      const auto add_olds = [&](int j) {
#pragma unroll
        for (int i = 0; i < kShare; ++i) add_old(j + i, next_old[i]);
      };
      if (kEarly == 0 && first < last) add_olds(first * kShare);
      if (args.split > 1)
        cluster_sync();
      else
        named_barrier(1, kThreads);
      const auto add_up = [&](int s, const float(&old)[kShare][4]) {
        const int j = s * kShare;
        float sum[kShare][4] = {};
#pragma unroll 1
        for (int p = 0; p < args.split; p += 2) {
          float4 one[2][kTurns][kShare] = {};
#pragma unroll
          for (int q = 0; q < 2; ++q)
            if (p + q < args.split)
#pragma unroll
              for (int d = 0; d < kTurns; ++d)
#pragma unroll
                for (int i = 0; i < kShare; ++i)
                  one[q][d][i] = load_cluster(cluster_address(sums_of(d, j + i), p + q));
#pragma unroll
          for (int q = 0; q < 2; ++q)
#pragma unroll
            for (int d = 0; d < kTurns; ++d)
#pragma unroll
              for (int i = 0; i < kShare; ++i) {
                sum[i][0] += one[q][d][i].x;
                sum[i][1] += one[q][d][i].y;
                sum[i][2] += one[q][d][i].z;
                sum[i][3] += one[q][d][i].w;
              }
        }
#pragma unroll
        for (int i = 0; i < kShare; ++i) put(j + i, sum[i], old[i]);
      };
      if constexpr (kEarly > 0) {
#pragma unroll
        for (int s = 0; s < kEarly; ++s)
          if (first + s < last) add_up(first + s, early[s]);
      }
#pragma unroll 1
      for (int s = first + kEarly; s < last; ++s) {
        if (kEarly > 0 || s > first) add_olds(s * kShare);
        add_up(s, next_old);
      }
    }
  }
  if (args.split > 1) {  // nobody ends while others read its memory; what is stored need not wait
    cluster_arrive_relaxed();
    cluster_wait();
  }
}

template <int kRows, int kGroups, int kTurns>
void run(Context& context, const PackedPlan& plan, const PackedMaps& maps,
         const PackedScales& scales, const MatmulArgs& args, int places) {
  const PackedRing ring(plan, args.swiglu);
  launch(context, "linear",
         {.x = std::min(args.column_tiles * args.row_tiles, places / plan.split) * plan.split,
          .threads = Block<kRows, kGroups, kTurns>::kThreads,
          .shared = kBefore + ring.bytes,
          .cluster = plan.split,
          .overlap = true},
         packed_kernel<kRows, kGroups, kTurns>, maps, scales, args,
         Ring{ring.x_stages, ring.w_stages, ring.w_bytes});
}

template <int kRows>
void run(Context& context, const PackedPlan& plan, const PackedMaps& maps,
         const PackedScales& scales, const MatmulArgs& args, int places) {
  switch (plan.groups(args.swiglu)) {
    case 1: return run<kRows, 2, 2>(context, plan, maps, scales, args, places);
    case 2: return run<kRows, 2, 1>(context, plan, maps, scales, args, places);
    default: return run<kRows, 3, 1>(context, plan, maps, scales, args, places);
  }
}

}  // namespace

void launch_packed(Context& context, const PackedPlan& plan, const PackedMaps& maps,
                   const PackedScales& scales, const MatmulArgs& args, int multiprocessors) {
  if (plan.rows == 64) return run<64>(context, plan, maps, scales, args, multiprocessors);
  run<128>(context, plan, maps, scales, args, multiprocessors);
}

}  // namespace xlstm::ops::cuda
