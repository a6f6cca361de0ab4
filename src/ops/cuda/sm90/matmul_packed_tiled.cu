// Many rows and packed weights (ops/packed.hpp): y^T = W x^T, W in registers. Two blocks of a
// cluster multiply the same rows of x, of which each loads one half for both, with 128 rows of W
// each. Two warps copy, two warp groups put the numbers of 64 rows of W together and multiply them;
// blocks stay and take tiles in turn, so that copies for the next tile run while this one is
// written. With stream-K clusters share the depth of some tiles (PackedTiledWork).

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

constexpr int kGroup = 128;  // threads of a warp group
constexpr int kGroups = 2;   // that multiply
constexpr int kThreads = (1 + kGroups) * kGroup;
constexpr int kCluster = kPackedTiledCluster;
constexpr int kTiles = kPackedTiledTiles;  // of a block: rows of W / 8
constexpr int kPiece = kPackedTiledPiece;  // rows of y that are stored at once
constexpr int kBox = kPiece * 128;
constexpr int kStoreBytes = 6 * kBox;  // of a warp group
constexpr int kGiven = 1 + kGroups;    // a barrier

template <int kTokens>
struct Ring {
  // Narrow tiles take stages sooner than memory answers.
  static constexpr int kWStages = kTokens > 192 ? 2 : kTokens > 128 ? 3 : 4;
  static constexpr int kXStages = kTokens == 128 ? 5 : 4;
  static constexpr int kW = kTiles * PackedTile::kBytes, kX = kTokens * 128;
  static constexpr int kBefore = 1024;  // barriers, up to where a box may begin
  static constexpr int kStoresAt = kBefore + kXStages * kX;
  static constexpr int kWAt = kStoresAt + kGroups * kStoreBytes;
  static constexpr std::size_t kBytes = kWAt + kWStages * kW;
  static_assert(kW % 256 == 0 && kBytes <= 227 << 10);
};

__device__ __forceinline__ float4 load_shared_four(SharedAddress at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

/// Sums that clusters make for one another, with stream-K. Those of a block lie as it reads them:
/// kPartStages stages of x.
struct Partials {
  static constexpr int kPartStages = 4;
  static constexpr int kFours = kPackedTiledMostRows / 8;  // of a thread
  static_assert(kCluster * kPackedTiledMostClusters <= Context::kSignals);

  PackedTiledWork work;
  float4* sums;
  unsigned* signals;  // of each block

  __device__ __forceinline__ float4* place(int cluster, int rank) const {
    return sums + (cluster * kCluster + rank) * kFours * (kThreads - kGroup);
  }
  /// Writes what a thread of a warp group has.
  template <int kSums>
  __device__ __forceinline__ void write(const float (&own)[kSums], int cluster, int rank) const {
    float4* const to = place(cluster, rank) + (threadIdx.x - kGroup);
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j)
      to[j * (kThreads - kGroup)] =
          make_float4(own[4 * j], own[4 * j + 1], own[4 * j + 2], own[4 * j + 3]);
  }
  /// What other threads of the block have written, before a barrier, is there.
  __device__ __forceinline__ void give(int cluster, int rank) const {
    asm volatile(
        "fence.proxy.async.global;\n"
        "fence.acq_rel.gpu;\n"
        "st.relaxed.gpu.global.u32 [%0], 1;" ::"l"(signals + cluster * kCluster + rank)
        : "memory");
  }
  /// Waits for that.
  __device__ __forceinline__ void take(int cluster, int rank) const {
    unsigned* const given = signals + cluster * kCluster + rank;
    unsigned ready = 0;
    while (ready == 0)
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(given) : "memory");
    *given = 0;
    asm volatile("fence.proxy.async.global;" ::: "memory");
  }
};

/// What the sums of one of a lane's two rows of W become.
struct RowOutput {
  float scale = 0, bias = 0;
  __device__ __forceinline__ RowOutput(const MatmulArgs& a, const PackedScales& scales, int weight,
                                       std::int64_t n) {
    if (n >= a.outputs[a.swiglu ? 0 : weight]) return;
    scale = __ldg(scales.of[weight] + n);
    bias = bias_of(a.bias[weight], a.bias_dtype, n, a.outputs[a.swiglu ? 0 : weight]);
  }
  __device__ __forceinline__ float of(float sum) const { return sum * scale + bias; }
};

/// Where a warp group's part of y leaves through shared memory: kPieces pieces of kPiece rows.
template <bool kBf16, bool kSwiglu, int kPieces>
struct Stores {
  static constexpr int kColumns = kSwiglu ? 32 : 64;  // of y
  static constexpr int kBoxes = kBf16 || kSwiglu ? 1 : 2;
  static constexpr int kBytes = kBoxes * (kBf16 && kSwiglu ? kBox / 2 : kBox);  // of a piece
  // Pieces that leave together: each time costs a barrier of the warp group.
  static constexpr int kAtOnce = kBoxes == 2 || kPieces % 2 != 0        ? 1
                                 : kBf16 && kSwiglu && kPieces % 4 == 0 ? 4
                                                                        : 2;
  static constexpr int kSteps = kPieces / kAtOnce, kStep = kAtOnce * kBytes;
  static constexpr int kPlaces = kStoreBytes / kStep;
  static_assert(kPieces % kAtOnce == 0 && kPlaces >= 2 && kBytes % 1024 == 0);

  SharedAddress base;
  int group, warp, lane;  // the group's number in the block, the warp's in the group
  int at = 0;             // of the next step
  int columns = 0;        // of y

  __device__ __forceinline__ void put(const float* sums, const RowOutput (&rows)[2],
                                      SharedAddress to) const {
    const int g = lane / 4, t = lane % 4;
    if constexpr (kBf16 && kSwiglu) {  // boxes of 64 bytes a row
      unsigned four[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* s = sums + 4 * j;
        four[j] = bf16_pair(gated(rows[0].of(s[0]), rows[1].of(s[2])),
                            gated(rows[0].of(s[1]), rows[1].of(s[3])));
      }
      store_matrices_transposed(to + lane * 64 + ((warp ^ lane / 2 % 4) * 16), four);
    } else if constexpr (kBf16) {
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        unsigned four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* s = sums + 4 * (j + i / 2) + i % 2 * 2;
          four[i] = bf16_pair(rows[i % 2].of(s[0]), rows[i % 2].of(s[1]));
        }
        const int token = 8 * (j + lane / 16) + lane % 8;
        store_matrices_transposed(to + box_offset(token, 2 * warp + lane / 8 % 2), four);
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float* s = sums + 4 * j + e;
          const float value[2] = {rows[0].of(s[0]), rows[1].of(s[2])};
          const int token = 8 * j + 2 * t + e;
          if constexpr (kSwiglu) {
            store_word(to + box_offset(token, 2 * warp + g / 4) + g % 4 * 4,
                       gated(value[0], value[1]));
          } else {
#pragma unroll
            for (int r = 0; r < 2; ++r)
              store_word(to + warp / 2 * kBox + box_offset(token, warp % 2 * 4 + 2 * r + g / 4) +
                             g % 4 * 4,
                         value[r]);
          }
        }
      }
    }
  }

  /// @param sums  of all pieces; `row` is the first's
  __device__ __forceinline__ void step(int i, const float* sums, const RowOutput (&rows)[2],
                                       const MatmulArgs& a, const CUtensorMap* map, int row,
                                       int column) {
    row += i * kAtOnce * kPiece;
    if (row >= a.rows || column >= columns) return;
    const SharedAddress from = base + at * kStep;
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p)
      put(sums + (i * kAtOnce + p) * (kPiece / 2), rows, from + p * kBytes);
    fence_async();
    // Beyond this barrier the next place is free too.
    if (warp == 0 && lane == 0) wait_stores_read<kPlaces - 2>();
    named_barrier(1 + group, kGroup);
    if (warp == 0 && lane == 0) {
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
#pragma unroll
        for (int b = 0; b < kBoxes; ++b) {
          const SharedAddress box = from + p * kBytes + b * kBox;
          if (a.accumulate)
            add_box(box, map, row + p * kPiece, column + b * 32);
          else
            store_box(box, map, row + p * kPiece, column + b * 32);
        }
      }
      commit_stores();
    }
    if (++at == kPlaces) at = 0;
  }

 private:
  __device__ __forceinline__ static void store_word(SharedAddress to, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
  }
};

template <int kTokens, bool kBf16, bool kSwiglu, bool kStreamK>
__global__ void __launch_bounds__(kThreads, 1)
    packed_tiled_kernel(const __grid_constant__ PackedMaps maps,
                        const __grid_constant__ PackedScales scales,
                        const __grid_constant__ MatmulArgs args,
                        const __grid_constant__ Partials partials) {
  using R = Ring<kTokens>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const SharedAddress base = __shfl_sync(~0U, shared_address(memory), 0);
  const SharedAddress w_full = base, w_empty = w_full + R::kWStages * 8,
                      x_full = w_empty + R::kWStages * 8, x_empty = x_full + R::kXStages * 8,
                      x_base = base + R::kBefore, w_base = base + R::kWAt;
  const int rank = static_cast<int>(cluster_rank());
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  constexpr int kWarps = kGroups * kGroup / kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::kWStages; ++i) {
      barrier_init(w_full + 8 * i, 1);
      barrier_init(w_empty + 8 * i, kWarps);
    }
    for (int i = 0; i < R::kXStages; ++i) {
      barrier_init(x_full + 8 * i, 1);
      barrier_init(x_empty + 8 * i, kWarps * kCluster);
    }
    barrier_fence_init();
  }
  cluster_sync();

  const int cluster = static_cast<int>(blockIdx.x) / kCluster;
  const PackedTiledWork& work = partials.work;
  PackedTiledWork::Turns pieces = work.turns_of(cluster);
  PackedTiledWork::Piece piece = {};
  const auto place_of_piece = [&] {
    return place_of(args, kStreamK ? work.place(piece.tile) : piece.tile);
  };
  // Tiles of W of a block, of each W with SwiGLU.
  constexpr int kHeight = kSwiglu ? kTiles / 2 : kTiles;
  if (warp < kGroup / kWarp) {
    fewer_registers<kStreamK ? 40 : 24>();
    if (warp == 1 && lane == 0) {  // weights do not wait for the kernel before this one
      Turn turn;
      while (work.next<kStreamK>(pieces, piece)) {
        const Place p = place_of_piece();
        const int first = (p.column * kCluster + rank) * kHeight;
        for (int i = piece.begin; i < piece.end; ++i, turn.next(R::kWStages)) {
          const int k = !kStreamK && p.back ? args.depth_stages - 1 - i : i;
          barrier_wait(w_empty + 8 * turn.at, turn.phase ^ 1);
          const SharedAddress full = w_full + 8 * turn.at, to = w_base + turn.at * R::kW;
          barrier_expect(full, R::kW);
          load_box(to, &maps.w[kSwiglu ? 0 : p.weight], first, k * kTileWords, full);
          if (kSwiglu) load_box(to + R::kW / 2, &maps.w[1], first, k * kTileWords, full);
        }
      }
    }
    __syncwarp();
    grid_wait();
    if (kStreamK && warp == 2 && work.gives(cluster)) {
      named_barrier(kGiven, kThreads - kGroup + kWarp);
      if (lane == 0) partials.give(cluster, rank);
      __syncwarp();
    }
    if (warp == 0 && lane == 0) {
      Turn turn;
      while (work.next<kStreamK>(pieces, piece)) {
        const Place p = place_of_piece();
        const int row = p.row * kTokens + rank * (kTokens / kCluster);
        for (int i = 2 * piece.begin; i < 2 * piece.end; ++i, turn.next(R::kXStages)) {
          const int k = kStreamK ? i : stage_of(p, i, 2 * args.depth_stages);
          const SharedAddress full = x_full + 8 * turn.at, to = x_base + turn.at * R::kX;
          barrier_wait(x_empty + 8 * turn.at, turn.phase ^ 1);
          barrier_expect(full, R::kX);
          load_box_to(3, to + rank * (R::kX / kCluster), &maps.x, row, k * kMatmulDepth, full);
        }
        if constexpr (!kStreamK) continue;
        if (piece.begin > 0) continue;
        work.each_giver(piece, cluster, [&](int from) {
          partials.take(from, rank);
          const float4* const sums = partials.place(from, rank);
          for (int i = 0; i < Partials::kPartStages; ++i, turn.next(R::kXStages)) {
            const SharedAddress full = x_full + 8 * turn.at;
            barrier_wait(x_empty + 8 * turn.at, turn.phase ^ 1);
            barrier_expect(full, R::kX);
            load_bytes(x_base + turn.at * R::kX, sums + i * (R::kX / 16), R::kX, full);
          }
        });
      }
      grid_trigger();
    }
  } else {
    more_registers<kStreamK ? 232 : 240>();
    grid_wait();
    const int group = warp / (kGroup / kWarp) - 1, place = warp - kGroup / kWarp;
    // With SwiGLU a warp has a tile of the gate and one of what is gated: both numbers of an output
    // are in one thread.
    const int own = kSwiglu ? place : kTilesOfWarp * place;  // its first tile
    constexpr int kSecond = kSwiglu ? R::kW / 2 : PackedTile::kBytes;
    const SharedAddress own_tiles = w_base + own * PackedTile::kBytes,
                        two_words = own_tiles + Packs::two_words_at(lane),
                        third_words = own_tiles + Packs::third_word_at(lane),
                        list = own_tiles + lane / PackedTile::kMostPatches * kSecond +
                               PackedTile::kPatches + lane % PackedTile::kMostPatches * 4;
    Stores<kBf16, kSwiglu, kTokens / kPiece> stores{base + R::kStoresAt + group * kStoreBytes,
                                                    group, warp % 4, lane};
    float sums[kTokens / 2];
    unsigned low[4][4], high[4][4];  // fragments: one half's are made while the other multiplies
    Packs packs;
    unsigned patch = 0, in_low = 0, in_high = 0;
    Turn w_turn, x_turn;
    bool has_list = false;
    const auto load_packs = [&] {
      const int stage = w_turn.at * R::kW;
      barrier_wait(w_full + 8 * w_turn.at, w_turn.phase);
      patch = has_list ? load_word(list + stage) : PackedTile::kNoPatch;
      packs.load(two_words + stage, third_words + stage, kSecond);
      const bool listed = patch != PackedTile::kNoPatch, upper = (patch >> 22 & 1) != 0;
      in_low = __ballot_sync(~0U, listed && !upper);
      in_high = __ballot_sync(~0U, listed && upper);
    };
    SharedAddress before = 0;  // the stage of x that the products under way read
    const auto release_x = [&] {
      if (before != 0 && lane < kCluster) barrier_arrive_at(before, lane);
    };
    const auto multiply = [&](const unsigned(&a)[4][4], bool add) {
      barrier_wait(x_full + 8 * x_turn.at, x_turn.phase);
      const std::uint64_t b = wgmma_matrix(__shfl_sync(~0U, x_base + x_turn.at * R::kX, 0));
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < 4; ++s) wgmma<kTokens>(sums, a[s], b + s * kWgmmaDepth, s > 0 || add);
      wgmma_commit();
      wgmma_wait<1>();
      release_x();
      before = x_empty + 8 * x_turn.at;
      x_turn.next(R::kXStages);
    };
    const auto release_w = [&] {
      if (lane == 0) barrier_arrive(w_empty + 8 * w_turn.at);
      w_turn.next(R::kWStages);
    };
    while (work.next<kStreamK>(pieces, piece)) {
      const Place p = place_of_piece();
      const int first = (p.column * kCluster + rank) * kHeight + own;
      const auto exists = [&](int t) {
        return (first + (kSwiglu ? 0 : t)) * PackedTile::kRows < args.outputs[p.weight];
      };
      has_list =
          lane / PackedTile::kMostPatches < kTilesOfWarp && exists(lane / PackedTile::kMostPatches);
      const int n = first * PackedTile::kRows + lane / 4;
      const RowOutput rows[kTilesOfWarp] = {
          RowOutput(args, scales, p.weight, n),
          RowOutput(args, scales, kSwiglu ? 1 : p.weight, kSwiglu ? n : n + PackedTile::kRows)};
      const int column =
          ((p.column * kCluster + rank) * kGroups + group) * decltype(stores)::kColumns;
      stores.columns = static_cast<int>(args.outputs[p.weight]);
      before = 0;
#pragma unroll 1
      for (int k = piece.begin; k < piece.end; ++k) {
        load_packs();
        release_w();
        packs.unpack<0>(low);
        if (in_low != 0) mend(in_low, patch, lane, low);
        multiply(low, k > piece.begin);
        packs.unpack<1>(high);
        if (in_high != 0) mend(in_high, patch, lane, high);
        multiply(high, true);
      }
      wgmma_wait<0>();
      release_x();
      if constexpr (kStreamK) {
        if (piece.begin > 0) {
          partials.write(sums, cluster, rank);
          named_barrier_arrive(kGiven, kThreads - kGroup + kWarp);
          continue;
        }
        work.each_giver(piece, cluster, [&](int) {
#pragma unroll
          for (int i = 0; i < Partials::kPartStages; ++i) {
            barrier_wait(x_full + 8 * x_turn.at, x_turn.phase);
            constexpr int kOfStage = kTokens / 8 / Partials::kPartStages;
            const SharedAddress from =
                x_base + x_turn.at * R::kX + (static_cast<int>(threadIdx.x) - kGroup) * 16;
#pragma unroll
            for (int j = 0; j < kOfStage; ++j) {
              const float4 more = load_shared_four(from + j * (kThreads - kGroup) * 16);
              float* const sum = sums + 4 * (i * kOfStage + j);
              sum[0] += more.x;
              sum[1] += more.y;
              sum[2] += more.z;
              sum[3] += more.w;
            }
            __syncwarp();
            before = x_empty + 8 * x_turn.at;
            release_x();
            x_turn.next(R::kXStages);
          }
        });
      }
#pragma unroll
      for (int i = 0; i < decltype(stores)::kSteps; ++i)
        stores.step(i, sums, rows, args, &maps.y[p.weight], p.row * kTokens, column);
    }
    if (warp % 4 == 0 && lane == 0) wait_stores();
  }
  __syncwarp();
  cluster_sync();  // nobody ends while the other still arrives at its barriers or copies to it
}

template <int kTokens, bool kBf16, bool kSwiglu, bool kStreamK>
void run(Context& context, const PackedMaps& maps, const PackedScales& scales,
         const MatmulArgs& args, const Partials& partials) {
  launch(context, "linear",
         {.x = kCluster * std::int64_t{partials.work.clusters},
          .threads = kThreads,
          .shared = Ring<kTokens>::kBytes,
          .cluster = kCluster,
          .overlap = true},
         packed_tiled_kernel<kTokens, kBf16, kSwiglu, kStreamK>, maps, scales, args, partials);
}

template <int kTokens, bool kStreamK = false>
void run(Context& context, const PackedMaps& maps, const PackedScales& scales,
         const MatmulArgs& args, const Partials& partials) {
  if (args.swiglu && args.y_is_bf16)
    return run<kTokens, true, true, kStreamK>(context, maps, scales, args, partials);
  if (args.swiglu)
    return run<kTokens, false, true, kStreamK>(context, maps, scales, args, partials);
  if (args.y_is_bf16)
    return run<kTokens, true, false, kStreamK>(context, maps, scales, args, partials);
  run<kTokens, false, false, kStreamK>(context, maps, scales, args, partials);
}

}  // namespace

void launch_packed_tiled(Context& context, const PackedTiledPlan& plan, const PackedMaps& maps,
                         const PackedScales& scales, const MatmulArgs& args, int multiprocessors) {
  // Without stream-K clusters are those of the order of tiles.
  if (!plan.stream_k) multiprocessors = kPackedTiledCluster * args.order.clusters;
  Partials partials{
      .work = packed_tiled_work(std::int64_t{args.row_tiles} * args.column_tiles, args.depth_stages,
                                plan.stream_k, multiprocessors, args.row_tiles),
      .sums = nullptr,
      .signals = nullptr};
  if (plan.stream_k) {
    const ArenaScope scope(context.arena());
    partials.sums = reinterpret_cast<float4*>(context.arena().take(kPackedTiledPartials));
    partials.signals = context.signals();
    switch (plan.rows) {
      case 160: return run<160, true>(context, maps, scales, args, partials);
      case 192: return run<192, true>(context, maps, scales, args, partials);
      case 224: return run<224, true>(context, maps, scales, args, partials);
      default: return run<256, true>(context, maps, scales, args, partials);
    }
  }
  switch (plan.rows) {
    case 128: return run<128>(context, maps, scales, args, partials);
    case 192: return run<192>(context, maps, scales, args, partials);
    default: return run<256>(context, maps, scales, args, partials);
  }
}

}  // namespace xlstm::ops::cuda
