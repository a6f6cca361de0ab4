// Few rows: W streams from memory once, and every multiprocessor has its share of it. A block
// multiplies some rows of W, or a piece of their depth, with all rows of x. Blocks that share the
// depth of a tile add their sums in one order, each for some of the rows, through the shared memory
// of their cluster.

#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/device/wgmma.cuh"
#include "ops/cuda/sm90/matmul_kernels.cuh"
#include "ops/cuda/sm90/matmul_output.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kGroup = 128;      // threads of a warp group
constexpr int kMostStages = 12;  // barriers that there is room for
constexpr int kBefore = 1024;    // barriers, up to where a box may begin
constexpr std::size_t kMostShared = 227 << 10;
constexpr std::size_t kMostRing = 208 << 10;  // a block of a norm fits beside: W begins meanwhile

template <int kRows, int kColumns>
struct Tile {
  static constexpr int kGroups = kRows == 64 ? 1 : 2;  // that multiply
  static constexpr int kHigh = kRows / 64 / kGroups;   // products of 64 rows of each
  // Registers move between whole warp groups alone; the others need none.
  static constexpr bool kManySums = kHigh * kColumns > 256;
  static constexpr int kThreads = kGroups * kGroup + (kManySums ? kGroup : kWarp);
  static constexpr int kX = kRows * 128, kW = kColumns * 128, kStage = kX + kW;
  // Of a row of sums in shared memory, in floats: pairs of 4 rows lie in different banks.
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kSums = kRows * kPitch * 4;
  // Four sums each of a thread, where two blocks share the depth.
  static constexpr int kUnits = kColumns / 4, kShare = kRows / 2 * kUnits / (kGroups * kGroup);
};

/// Four columns of a row of a tile.
struct Share {
  int t, n;
};

struct Place {
  int weight;
  int row;  // of this W
};

__device__ __forceinline__ Place place_of(const MatmulArgs& a, int tile) {
  Place p = {0, 0};
  int first = 0;
#pragma unroll
  for (int i = 0; i < kMostProducts - 1; ++i) {
    if (i < a.weights - 1 && tile >= a.tile_end[i]) {
      p.weight = i + 1;
      first = a.tile_end[i];
    }
  }
  p.row = (tile - first) * a.height;
  return p;
}

template <int kRows, int kColumns>
__global__ void __launch_bounds__(Tile<kRows, kColumns>::kThreads, 1)
    streamed_kernel(const __grid_constant__ MatmulMaps maps,
                    const __grid_constant__ MatmulArgs args) {
  using T = Tile<kRows, kColumns>;
  constexpr int kWarps = T::kGroups * kGroup / kWarp;
  extern __shared__ __align__(1024) unsigned char memory[];
  const SharedAddress full = shared_address(memory);
  const SharedAddress empty = full + kMostStages * 8, base = full + kBefore;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int piece = static_cast<int>(cluster_rank());  // of the depth
  const int tile = static_cast<int>(blockIdx.x) / args.split;
  const Place place = place_of(args, tile);
  const int begin = args.depth_stages * piece / args.split;
  const int end = args.depth_stages * (piece + 1) / args.split;
  const int ring = args.ring;

  if (threadIdx.x == 0) {
    for (int i = 0; i < ring; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, kWarps);
    }
    barrier_fence_init();
  }
  __syncthreads();

  int slot = 0;
  unsigned phase = 0;
  const auto advance = [&] {
    if (++slot == ring) {
      slot = 0;
      phase ^= 1;
    }
  };
  if (warp >= kWarps) {
    if constexpr (T::kManySums) fewer_registers<40>();
    const bool copies = warp == kWarps && lane == 0;
    const std::uint64_t policy = evict_first();
    constexpr int kUp = kColumns / 2;  // first row of what is gated, in a tile
    const auto load_w = [&](int at, int k) {
      const SharedAddress to = base + at * T::kStage + T::kX, bar = full + 8 * at;
      barrier_expect(bar, T::kX + (args.swiglu ? 2 : 1) * args.height * 128);
      load_box(to, &maps.w[place.weight], place.row, k * kMatmulDepth, bar, policy);
      if (args.swiglu)
        load_box(to + kUp * 128, &maps.w[1], place.row, k * kMatmulDepth, bar, policy);
    };
    const auto load_x = [&](int at, int k) {
      load_box(base + at * T::kStage, &maps.x, 0, k * kMatmulDepth, full + 8 * at);
    };
    // Weights do not wait for the kernel before this one.
    const int filled = min(ring, end - begin);
    if (copies)
      for (int i = 0; i < filled; ++i) load_w(i, begin + i);
    __syncwarp();
    grid_wait();
    grid_trigger();
    if (copies) {
      for (int i = 0; i < filled; ++i) load_x(i, begin + i);
      for (int k = begin; k < end; ++k, advance()) {
        if (k - begin < ring) continue;
        barrier_wait(empty + 8 * slot, phase ^ 1);
        load_w(slot, k);
        load_x(slot, k);
      }
    }
    __syncwarp();
    if (args.split > 1) cluster_sync();
  } else {
    if constexpr (T::kManySums) more_registers<232>();
    grid_wait();
    const int group = warp / (kGroup / kWarp);
    const Target target{args, place.weight};
    // What is added to, before it is needed; where there are registers for it.
    constexpr bool kHolds = T::kShare <= 8;
    float4 held[kHolds ? T::kShare : 1];
    const bool holds = kHolds && args.split > 1 && args.accumulate;
    const auto share = [&](int i) {  // of a tile's rows and columns
      const int at = threadIdx.x + i * (kWarps * kWarp);
      return Share{piece * (kRows / 2) + at / T::kUnits, at % T::kUnits * 4};
    };
    if (holds)
#pragma unroll
      for (int i = 0; i < (kHolds ? T::kShare : 1); ++i) {
        const Share at = share(i);
        held[i] = {};
        if (target.has_four(at.t, place.row + at.n) && at.n < args.height)
          held[i] = *target.four(at.t, place.row + at.n);
      }
    float sums[T::kHigh][kColumns / 2];
    SharedAddress before = 0;
    for (int k = begin; k < end; ++k, advance()) {
      const SharedAddress x_at = base + slot * T::kStage + group * T::kHigh * (64 * 128),
                          w_at = base + slot * T::kStage + T::kX;
      barrier_wait(full + 8 * slot, phase);
      wgmma_fence();
      const std::uint64_t a = wgmma_matrix(x_at), b = wgmma_matrix(w_at);
#pragma unroll
      for (int i = 0; i < kMatmulDepth / 16; ++i)
#pragma unroll
        for (int m = 0; m < T::kHigh; ++m)
          wgmma<kColumns>(sums[m], a + m * (64 * 128 >> 4) + i * kWgmmaDepth, b + i * kWgmmaDepth,
                          k > begin || i > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (k > begin && lane == 0) barrier_arrive(before);
      before = empty + 8 * slot;
    }
    wgmma_wait<0>();
    // The last stages are not used again: nobody waits for their arrivals.

    const int row = group * T::kHigh * 64 + warp % 4 * 16 + lane / 4, column = lane % 4 * 2;
    if (args.split > 1) {
      named_barrier(1, T::kGroups * kGroup);  // all stages have been read
#pragma unroll
      for (int m = 0; m < T::kHigh; ++m)
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) {
          const SharedAddress at =
              base + ((row + m * 64 + i % 2 * 8) * T::kPitch + i / 2 * 8 + column) * 4;
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(sums[m][2 * i]),
                       "f"(sums[m][2 * i + 1])
                       : "memory");
        }
    } else if (args.swiglu) {
      const Target up{args, 1};
#pragma unroll
      for (int m = 0; m < T::kHigh; ++m)
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
          const int n = 8 * j + column;
          if (n >= args.height) continue;
          const std::int64_t at = place.row + n;
          const float g0 = target.bias(at), g1 = target.bias(at + 1);
          const float u0 = up.bias(at), u1 = up.bias(at + 1);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int t = row + m * 64 + half * 8;
            const float* g = &sums[m][4 * j + 2 * half];
            const float* u = g + kColumns / 4;
            if (t < args.rows)
              target.two(t, at, gated(g[0] + g0, u[0] + u0), gated(g[1] + g1, u[1] + u1));
          }
        }
    } else {
#pragma unroll
      for (int m = 0; m < T::kHigh; ++m)
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) {
          const int n = 8 * j + column;
          const std::int64_t at = place.row + n;
          if (n >= args.height || at >= args.outputs[place.weight]) continue;
          const float b0 = target.bias(at), b1 = target.bias(at + 1);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int t = row + m * 64 + half * 8;
            const float* s = &sums[m][4 * j + 2 * half];
            if (t < args.rows) target.two(t, at, s[0] + b0, s[1] + b1);
          }
        }
    }
    if (args.split > 1) {
      cluster_sync();
#pragma unroll
      for (int i = 0; i < T::kShare; ++i) {
        const auto [t, n] = share(i);
        if (t >= args.rows || n >= args.height) continue;
        const SharedAddress at = base + (t * T::kPitch + n) * 4;
        const float4 one = load_cluster(cluster_address(at, 0)),
                     two = load_cluster(cluster_address(at, 1));
        const std::int64_t to = place.row + n;
        const float4 sum = {one.x + two.x + target.bias(to), one.y + two.y + target.bias(to + 1),
                            one.z + two.z + target.bias(to + 2),
                            one.w + two.w + target.bias(to + 3)};
        if (holds && target.has_four(t, to)) {
          const float4 old = held[kHolds ? i : 0];
          *target.four(t, to) = {old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w};
          continue;
        }
        if (to >= args.outputs[place.weight]) continue;
        target.two(t, to, sum.x, sum.y);
        if (to + 2 < args.outputs[place.weight]) target.two(t, to + 2, sum.z, sum.w);
      }
    }
  }
  if (args.split > 1) {  // nobody ends while others read its memory; what is stored need not wait
    cluster_arrive_relaxed();
    cluster_wait();
  }
}

template <int kRows, int kColumns>
void run(Context& context, const MatmulPlan& plan, const MatmulMaps& maps, MatmulArgs args) {
  using T = Tile<kRows, kColumns>;
  static_assert(kColumns > 128 || kBefore + T::kSums <= kMostShared);
  constexpr int kFit = static_cast<int>(kMostRing / T::kStage);
  const int most = plan.stages > 0 && plan.stages < kFit ? plan.stages : kFit;
  args.ring = most < kMostStages ? most : kMostStages;
  std::size_t bytes = static_cast<std::size_t>(args.ring) * T::kStage;
  if (plan.split > 1 && bytes < T::kSums) bytes = T::kSums;
  launch(context, "linear",
         {.x = std::int64_t{args.column_tiles} * plan.split,
          .threads = T::kThreads,
          .shared = kBefore + bytes,
          .cluster = plan.split,
          .overlap = true},
         streamed_kernel<kRows, kColumns>, maps, args);
}

template <int kRows>
void run(Context& context, const MatmulPlan& plan, const MatmulMaps& maps, const MatmulArgs& args) {
  switch (plan.columns) {
    case 32: return run<kRows, 32>(context, plan, maps, args);
    case 64: return run<kRows, 64>(context, plan, maps, args);
    case 96: return run<kRows, 96>(context, plan, maps, args);
    case 128: return run<kRows, 128>(context, plan, maps, args);
    default: return run<kRows, 176>(context, plan, maps, args);
  }
}

}  // namespace

void launch_streamed(Context& context, const MatmulPlan& plan, const MatmulMaps& maps,
                     const MatmulArgs& args) {
  switch (plan.rows) {
    case 64: return run<64>(context, plan, maps, args);
    case 128: return run<128>(context, plan, maps, args);
    default: return run<256>(context, plan, maps, args);
  }
}

}  // namespace xlstm::ops::cuda
