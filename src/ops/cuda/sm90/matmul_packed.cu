// Few rows and packed weights (ops/packed.hpp): y^T = W x^T, W in registers. A warp has two tiles
// of 8 rows of W, puts their numbers together and multiplies them with all rows of x. Copies of W
// and of x have rings of their own: a stage of W is free as soon as it is in registers.

#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/device/wgmma.cuh"
#include "ops/cuda/sm90/matmul_kernels.cuh"
#include "ops/cuda/sm90/matmul_output.cuh"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {
namespace {

using Tile = PackedTile;
constexpr int kGroup = 128;      // threads of a warp group
constexpr int kTilesOfWarp = 2;  // rows 0 to 7 of its 16, and 8 to 15
constexpr int kBefore = 1024;    // barriers, up to where a box may begin
constexpr int kStages = kPackedMostStages;

/// What a launch makes of its plan.
struct Ring {
  int x_stages, w_stages;
  int w_bytes;  // of a stage
  int jobs;
};

/// Units of a job: tiles, or pairs of them with SwiGLU.
struct Job {
  int first, count;
  __device__ __forceinline__ Job(const MatmulArgs& a, int job, int jobs)
      : first(static_cast<int>(std::int64_t{a.column_tiles} * job / jobs)),
        count(static_cast<int>(std::int64_t{a.column_tiles} * (job + 1) / jobs) - first) {}
};

/// A tile's rows: of which W, and from which row of it.
struct Place {
  int weight, tile;
  __device__ __forceinline__ Place(const MatmulArgs& a, const Job& job, int slot) : weight(0) {
    if (a.swiglu) {
      weight = slot % 2;
      tile = job.first + slot / 2;
      return;
    }
    tile = job.first + slot;
    int before = 0;
#pragma unroll
    for (int i = 0; i < kMostProducts - 1; ++i) {
      if (i < a.weights - 1 && tile >= a.tile_end[i]) {
        weight = i + 1;
        before = a.tile_end[i];
      }
    }
    tile -= before;
  }
};

/// A stage of a ring and the parity of its barriers.
struct Turn {
  int at = 0;
  unsigned phase = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++at == stages) {
      at = 0;
      phase ^= 1;
    }
  }
};

/// A lane's part of 128 columns of two rows.
struct Packs {
  uint2 fractions[kTilesOfWarp][4];  // of each a
  unsigned exponents[kTilesOfWarp][4];

  /// @param tile  the first; the other follows
  __device__ __forceinline__ void load(SharedAddress tile, int row, int i) {
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      const SharedAddress f = tile + Tile::fractions_at(row, a, i),
                          e = tile + Tile::exponents_at(row, a, i);
#pragma unroll
      for (int t = 0; t < kTilesOfWarp; ++t) {
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                     : "=r"(fractions[t][a].x), "=r"(fractions[t][a].y)
                     : "r"(f + t * Tile::kBytes)
                     : "memory");
        asm volatile("ld.shared.u32 %0, [%1];"
                     : "=r"(exponents[t][a])
                     : "r"(e + t * Tile::kBytes)
                     : "memory");
      }
    }
  }
};

/// Columns 64 kHalf .. 64 kHalf + 63 as four fragments of a product.
template <int kHalf>
__device__ __forceinline__ void unpack(const Packs& packs, unsigned (&to)[4][4]) {
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int t = r % 2, a = s % 2 * 2 + r / 2;
      const uint2 f = packs.fractions[t][a];
      const unsigned e = kHalf == 0 ? packs.exponents[t][a] : packs.exponents[t][a] >> 8;
      const unsigned p = __byte_perm(kHalf == 0 ? f.x : f.y, 0, s / 2 == 0 ? 0x1100 : 0x3322);
      to[s][r] = ((p & 0x807F807FU) | 0x38003800U) +
                 (s / 2 == 0 ? (e & 0x000F000FU) * 128 : (e & 0x00F000F0U) * 8);
    }
  }
}

/// Puts listed weights into their places: the lanes whose bits are set in `mask` have one each, of
/// the first tile (lanes 0 to 7) or of the second.
template <int kHalf>
__device__ __forceinline__ void mend(unsigned mask, unsigned patch, int lane,
                                     unsigned (&to)[4][4]) {
#pragma unroll 1
  for (; mask != 0; mask &= mask - 1) {
    const int from = __ffs(static_cast<int>(mask)) - 1;
    const unsigned word = __shfl_sync(~0U, patch, from);
    const int column = static_cast<int>(word >> 16) % Tile::kColumns;
    if (column / 64 != kHalf) continue;
    const int row = static_cast<int>(word >> 16) / Tile::kColumns;
    const bool mine = row == lane / 4 && column / 2 % 4 == lane % 4;
    const int place =
        mine ? column / 16 % 4 * 4 + column / 8 % 2 * 2 + from / Tile::kMostPatches : -1;
    const unsigned take = column % 2 == 0 ? 0x3254 : 0x5410;
#pragma unroll
    for (int n = 0; n < 16; ++n)
      if (place == n) to[n / 4][n % 4] = __byte_perm(to[n / 4][n % 4], word, take);
  }
}

/// Where the sums of a tile's row go.
struct Column {
  unsigned at = 0;  // in y, of the lane's first token
  float scale = 0, bias = 0;
  bool exists = false;
};

template <int kRows, int kGroups>
struct Block {
  static constexpr int kWarps = kGroups * kGroup / kWarp;  // that multiply
  // Registers move between whole warp groups alone; the others need none.
  static constexpr bool kManySums = kRows == 128 && kGroups == 3;
  static constexpr int kThreads = kGroups * kGroup + (kManySums ? kGroup : 2 * kWarp);
};

template <int kRows, int kGroups>
__global__ void __launch_bounds__(Block<kRows, kGroups>::kThreads, 1)
    packed_kernel(const __grid_constant__ CUtensorMap x,
                  const __grid_constant__ PackedSource source,
                  const __grid_constant__ MatmulArgs args, const Ring ring) {
  using B = Block<kRows, kGroups>;
  constexpr int kWarps = B::kWarps;
  constexpr int kXBytes = kRows * 128;
  extern __shared__ __align__(1024) unsigned char memory[];
  const SharedAddress w_full = shared_address(memory);
  const SharedAddress w_empty = w_full + kStages * 8, x_full = w_empty + kStages * 8,
                      x_empty = x_full + kStages * 8, x_base = w_full + kBefore,
                      w_base = x_base + ring.x_stages * kXBytes;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int piece = static_cast<int>(cluster_rank());  // of the depth
  const int begin = args.depth_stages * piece / args.split;
  const int end = args.depth_stages * (piece + 1) / args.split;
  const int first_job = static_cast<int>(blockIdx.x) / args.split,
            step = static_cast<int>(gridDim.x) / args.split;

  if (threadIdx.x == 0) {
    for (int i = 0; i < ring.w_stages; ++i) {
      barrier_init(w_full + 8 * i, 1);
      barrier_init(w_empty + 8 * i, kWarps);
    }
    for (int i = 0; i < ring.x_stages; ++i) {
      barrier_init(x_full + 8 * i, 1);
      barrier_init(x_empty + 8 * i, kWarps);
    }
    barrier_fence_init();
  }
  __syncthreads();

  Turn w_turn, x_turn;
  if (warp >= kWarps) {
    if constexpr (B::kManySums) fewer_registers<40>();
    if (warp == kWarps) {
      const std::uint64_t policy = evict_first();
      int ahead = ring.w_stages;  // weights do not wait for the kernel before this one
      for (int job = first_job; job < ring.jobs; job += step) {
        const Job units(args, job, ring.jobs);
        const int slots = args.swiglu ? 2 * units.count : units.count;
        const unsigned char* from = nullptr;
        if (lane < slots) {
          const Place place(args, units, lane);
          from = source.tiles[place.weight] + place.tile * source.steps[place.weight] +
                 std::int64_t{begin} * Tile::kBytes;
        }
        const SharedAddress to = w_base + lane * Tile::kBytes;
        for (int k = begin; k < end; ++k, w_turn.next(ring.w_stages)) {
          if (ahead-- == 0) {
            grid_wait();
            grid_trigger();
          }
          if (ahead < 0) barrier_wait(w_empty + 8 * w_turn.at, w_turn.phase ^ 1);
          const SharedAddress full = w_full + 8 * w_turn.at;
          if (lane == 0) barrier_expect(full, slots * Tile::kBytes);
          __syncwarp();
          if (lane < slots) {
            load_bytes(to + w_turn.at * ring.w_bytes, from, Tile::kBytes, full, policy);
            from += Tile::kBytes;
          }
        }
      }
      if (ahead >= 0) {
        grid_wait();
        grid_trigger();
      }
    } else {
      grid_wait();
      if (warp == kWarps + 1 && lane == 0) {
        for (int job = first_job; job < ring.jobs; job += step)
          for (int k = 2 * begin; k < 2 * end; ++k, x_turn.next(ring.x_stages)) {
            barrier_wait(x_empty + 8 * x_turn.at, x_turn.phase ^ 1);
            const SharedAddress full = x_full + 8 * x_turn.at;
            barrier_expect(full, kXBytes);
            load_box(x_base + x_turn.at * kXBytes, &x, 0, k * kMatmulDepth, full);
          }
      }
      __syncwarp();
    }
    if (args.split > 1) cluster_sync();
  } else {
    if constexpr (B::kManySums) more_registers<152>();
    grid_wait();
    float sums[kRows / 2];
    unsigned even[4][4], odd[4][4];  // fragments: one half's are made while the other multiplies
    for (int job = first_job; job < ring.jobs; job += step) {
      const Job units(args, job, ring.jobs);
      const int slots = args.swiglu ? 2 * units.count : units.count;
      const int own = slots - warp * kTilesOfWarp;  // tiles of this warp, and of those after it
      SharedAddress before = 0;
      const auto multiply = [&](const unsigned(&a)[4][4], bool first) {
        barrier_wait(x_full + 8 * x_turn.at, x_turn.phase);
        const std::uint64_t b = wgmma_matrix(x_base + x_turn.at * kXBytes);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; ++s) wgmma<kRows>(sums, a[s], b + s * kWgmmaDepth, s > 0 || !first);
        wgmma_commit();
        wgmma_wait<1>();
        if (!first && lane == 0) barrier_arrive(before);
        before = x_empty + 8 * x_turn.at;
        x_turn.next(ring.x_stages);
      };
#pragma unroll 1
      for (int k = begin; k < end; ++k) {
        const SharedAddress tile =
            w_base + w_turn.at * ring.w_bytes + warp * (kTilesOfWarp * Tile::kBytes);
        barrier_wait(w_full + 8 * w_turn.at, w_turn.phase);
        Packs packs;
        packs.load(tile, lane / 4, lane % 4);
        unsigned patch = Tile::kNoPatch;
        if (lane / Tile::kMostPatches < min(own, kTilesOfWarp))
          asm volatile("ld.shared.u32 %0, [%1];"
                       : "=r"(patch)
                       : "r"(tile + lane / Tile::kMostPatches * Tile::kBytes + Tile::kPatches +
                             lane % Tile::kMostPatches * 4)
                       : "memory");
        const unsigned patches = __ballot_sync(~0U, patch != Tile::kNoPatch);
        if (lane == 0) barrier_arrive(w_empty + 8 * w_turn.at);
        w_turn.next(ring.w_stages);
        unpack<0>(packs, even);
        if (patches != 0) mend<0>(patches, patch, lane, even);
        multiply(even, k == begin);
        unpack<1>(packs, odd);
        if (patches != 0) mend<1>(patches, patch, lane, odd);
        multiply(odd, false);
      }
      wgmma_wait<0>();
      if (lane == 0) barrier_arrive(before);

      // A lane has tokens 8 j + 2 (lane % 4) and the next of row lane / 4 of both tiles.
      Column columns[kTilesOfWarp];
#pragma unroll
      for (int t = 0; t < kTilesOfWarp; ++t) {
        if (t >= own) continue;
        const Place place(args, units, warp * kTilesOfWarp + t);
        const int n = place.tile * Tile::kRows + lane / 4;
        columns[t] = {.at = static_cast<unsigned>((args.swiglu ? 0 : args.first[place.weight]) + n +
                                                  lane % 4 * 2 * args.y_stride),
                      .scale = source.scales[place.weight][n],
                      .bias = bias_of(args.bias[place.weight], args.bias_dtype, n,
                                      args.outputs[place.weight]),
                      .exists = true};
      }
      const int token = lane % 4 * 2;
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
      const auto put = [&](int j, const float* sum, const float(&old)[4]) {
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
            if (args.y_is_bf16)
              store(static_cast<Bf16*>(args.y) + at, value[i]);
            else
              static_cast<float*>(args.y)[at] =
                  args.accumulate ? old[2 * i + e] + value[i] : value[i];
          }
        }
      };
      if (args.split == 1) {
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
      // Each block of the cluster adds those of its share of the tokens.
      named_barrier(1, kGroups * kGroup);  // all stages have been read
      const auto sums_of = [&](int j) {
        return x_base + (j * (kGroups * kGroup) + static_cast<int>(threadIdx.x)) * 16;
      };
#pragma unroll
      for (int j = 0; j < kEights; ++j)
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(sums_of(j)), "f"(sums[4 * j]),
                     "f"(sums[4 * j + 1]), "f"(sums[4 * j + 2]), "f"(sums[4 * j + 3])
                     : "memory");
      const int share = kEights / args.split;
      float old[kAtOnce][4];
      const auto add_olds = [&](int j) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) add_old(j + i, old[i]);
      };
      add_olds(piece * share);
      cluster_sync();
#pragma unroll 1
      for (int j = piece * share; j < (piece + 1) * share; j += kAtOnce) {
        if (j > piece * share) add_olds(j);
        float sum[kAtOnce][4] = {};
#pragma unroll
        for (int p = 0; p < kPackedMostSplit; ++p) {
          if (p >= args.split) break;
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const float4 one = load_cluster(cluster_address(sums_of(j + i), p));
            sum[i][0] += one.x;
            sum[i][1] += one.y;
            sum[i][2] += one.z;
            sum[i][3] += one.w;
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) put(j + i, sum[i], old[i]);
      }
    }
  }
  if (args.split > 1) {  // nobody ends while others read its memory; what is stored need not wait
    cluster_arrive_relaxed();
    cluster_wait();
  }
}

template <int kRows, int kGroups>
void run(Context& context, const PackedPlan& plan, const CUtensorMap& x, const PackedSource& source,
         const MatmulArgs& args, int places) {
  const int units = args.column_tiles;
  const int tiles = static_cast<int>(pieces_of(units, plan.jobs)) * (args.swiglu ? 2 : 1);
  const PackedRing ring(plan, tiles);
  const int blocks = std::min(plan.jobs * plan.split, places / plan.split * plan.split);
  launch(context, "linear",
         {.x = blocks,
          .threads = Block<kRows, kGroups>::kThreads,
          .shared = kBefore + ring.bytes,
          .cluster = plan.split,
          .overlap = true},
         packed_kernel<kRows, kGroups>, x, source, args,
         Ring{ring.x_stages, ring.w_stages, ring.w_bytes, plan.jobs});
}

template <int kRows>
void run(Context& context, const PackedPlan& plan, const CUtensorMap& x, const PackedSource& source,
         const MatmulArgs& args, int places) {
  switch (plan.groups) {
    case 1: return run<kRows, 1>(context, plan, x, source, args, places);
    case 2: return run<kRows, 2>(context, plan, x, source, args, places);
    default: return run<kRows, 3>(context, plan, x, source, args, places);
  }
}

}  // namespace

void launch_packed(Context& context, const PackedPlan& plan, const CUtensorMap& x,
                   const PackedSource& source, const MatmulArgs& args, int multiprocessors) {
  if (plan.rows == 64) return run<64>(context, plan, x, source, args, multiprocessors);
  run<128>(context, plan, x, source, args, multiprocessors);
}

}  // namespace xlstm::ops::cuda
