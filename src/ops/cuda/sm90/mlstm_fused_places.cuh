#pragma once
// Where a block of the fused mLSTM kernel has its tiles, and the copies of them.

#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/device/matrices.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/device/wgmma.cuh"
#include "ops/cuda/sm90/mlstm_fused.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

/// threadIdx.x, asked for anew: what comes from it is not kept in registers over a loop.
__device__ __forceinline__ int thread_index() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// Where a block's shared memory lies. Chunks have the numbers of their turns.
template <int kDqk, bool kOutputs, int kParts>
struct FusedPlaces {
  using Shared = FusedShared<kDqk, kOutputs, kParts>;
  unsigned char* bytes;
  std::uint32_t base;

  __device__ std::uint32_t barrier(int number) const {
    return base + Shared::kBarriers + 8 * number;
  }
  // Of the chunk's stage.
  __device__ std::uint32_t q(int chunk) const {
    return base + Shared::kQ + chunk % 2 * Shared::kTile;
  }
  __device__ std::uint32_t k(int chunk) const {
    return base + Shared::kK + chunk % Shared::kStagesK * Shared::kTile;
  }
  __device__ std::uint32_t v(int chunk) const {
    return base + Shared::kV + chunk % Shared::kStagesV * Shared::kTileV;
  }
  __device__ std::uint32_t scores(int chunk) const {
    return base + Shared::kScores + chunk % 2 * Shared::kTileScores;
  }
  __device__ std::uint32_t barrier_q(int kind, int chunk) const {
    return barrier(kind + chunk % 2);
  }
  __device__ std::uint32_t barrier_k(int kind, int chunk) const {
    return barrier(kind + chunk % Shared::kStagesK);
  }
  __device__ std::uint32_t barrier_v(int kind, int chunk) const {
    return barrier(kind + chunk % Shared::kStagesV);
  }
  __device__ void wait_q(int kind, int chunk) const {
    barrier_wait(barrier_q(kind, chunk), chunk / 2 % 2);
  }
  /// Of two blocks the one that makes a chunk's scores. In a cluster of four two do, and the first
  /// of them copies q for all.
  __device__ unsigned maker(const FusedCell& cell, int chunk) const {
    return cell.cluster == 1 ? 0 : chunk % 2;
  }
  /// By warps that have read q, to the block that copies the next one to its place.
  __device__ void release_q(const FusedCell& cell, int chunk, int chunks) const {
    __syncwarp();
    if (chunk + 2 < chunks && thread_index() % 32 == 0)
      barrier_arrive_at(barrier_q(kEmptyQ, chunk), maker(cell, chunk));
  }
  __device__ void wait_k(int kind, int chunk) const {
    barrier_wait(barrier_k(kind, chunk), chunk / Shared::kStagesK % 2);
  }
  __device__ void wait_v(int kind, int chunk) const {
    barrier_wait(barrier_v(kind, chunk), chunk / Shared::kStagesV % 2);
  }
  __device__ std::uint32_t full_scores(int chunk) const {
    return barrier(kFullScores + chunk % Shared::kStagesScores);
  }
  __device__ void wait_scores(int chunk) const {
    barrier_wait(full_scores(chunk), chunk / Shared::kStagesScores % 2);
  }
  __device__ void wait_gates(int chunk) const {
    barrier_wait(barrier(kFullGates + chunk % kGateSlots), chunk / kGateSlots % 2);
  }
  __device__ const ChunkGates& gates(int chunk) const {
    return *reinterpret_cast<const ChunkGates*>(bytes + Shared::kGates +
                                                chunk % kGateSlots * Shared::kGateSlot);
  }
  __device__ ChunkGates& own_gates(int chunk) const {
    return *reinterpret_cast<ChunkGates*>(bytes + Shared::kGates + chunk * Shared::kGateSlot);
  }
  __device__ FusedOwnGates& own() const {
    return *reinterpret_cast<FusedOwnGates*>(bytes + Shared::kOwnGates);
  }
  /// Where nobody makes own gates.
  __device__ FusedBorders& borders() const {
    static_assert(sizeof(FusedBorders) <= sizeof(FusedOwnGates));
    return *reinterpret_cast<FusedBorders*>(bytes + Shared::kOwnGates);
  }
  /// segment_factor() of those before the block's.
  __device__ float& segment_factor(int segment) const {
    return reinterpret_cast<float*>(bytes + Shared::kSegmentFactors)[segment];
  }
  __device__ float* n() const { return reinterpret_cast<float*>(bytes + Shared::kN); }
  __device__ FusedEnds& ends() const {
    return *reinterpret_cast<FusedEnds*>(bytes + Shared::kOutputPlaces + 3 * 16);
  }
  __device__ FusedLimits& limits() const {
    static_assert(sizeof(FusedLimits) <= 16);
    return *reinterpret_cast<FusedLimits*>(bytes + Shared::kLimits);
  }
  /// Where n of the record or of states arrives; later gates of chunks do.
  __device__ std::uint32_t staged_n(int stage) const {
    return base + Shared::kGates + Shared::kGatesAhead * Shared::kGateSlot + stage * (kDqk * 4);
  }
  __device__ float staged_n(int stage, int key) const {
    return reinterpret_cast<const float*>(bytes + (staged_n(stage) - base))[key];
  }
  /// n as the sum of three bf16 in three rows of a tile of wgmma.
  __device__ void set_parts_of_n(int key, float value) const {
    unsigned char* to = bytes + Shared::kTileN + key / 64 * 1024;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      const unsigned packed = pack_bf16(value, 0);
      *reinterpret_cast<std::uint16_t*>(to + part * 128 + ((key % 64 * 2) ^ part << 4)) =
          static_cast<std::uint16_t>(packed);
      value -= first_of(packed);
    }
  }
  __device__ FusedTiles& tiles() const {
    return *reinterpret_cast<FusedTiles*>(bytes + Shared::kOutputPlaces + 2 * sizeof(FusedOutput));
  }
  __device__ FusedOutput& output(int group) const {
    return reinterpret_cast<FusedOutput*>(bytes + Shared::kOutputPlaces)[group];
  }
  __device__ int chunks() const { return (output(0).length + kChunk - 1) / kChunk; }
  /// Which of the block's chunks, in the order of its tokens, comes at a turn. Without outputs the
  /// last is the first: what comes before is gone where the gates say so.
  __device__ int at_turn(int turn) const { return kOutputs ? turn : chunks() - 1 - turn; }
  __device__ float* factors(int chunk) const {
    return reinterpret_cast<float*>(bytes + Shared::kFactors) + chunk % 2 * kChunk;
  }
};

/// Orders the copies of tiles. The blocks of a cluster copy a part of q and k each, to all.
template <int kDqk, bool kOutputs, int kParts>
struct FusedCopies {
  using Shared = FusedShared<kDqk, kOutputs, kParts>;
  const FusedPlaces<kDqk, kOutputs, kParts>& at;
  const CUtensorMap &q_map, &k_map, &v_map;
  const FusedCell& cell;

  __device__ void copy_box(std::uint32_t tile, const CUtensorMap& map, int chunk, int box,
                           std::uint32_t barrier) const {
    const FusedTiles tiles = at.tiles();
    const int token = tiles.begin + at.at_turn(chunk) * kChunk;
    if (cell.cluster == 1)
      load_head_box(tile + box * Shared::kBox, &map, token, tiles.head, box * 64, barrier);
    else
      load_head_box_to((1U << cell.cluster) - 1, tile + box * Shared::kBox, &map, token, tiles.head,
                       box * 64, barrier);
  }
  __device__ void share(std::uint32_t tile, const CUtensorMap& map, int chunk,
                        std::uint32_t barrier) const {
    barrier_expect(barrier, Shared::kTile);
#pragma unroll 1
    for (int box = static_cast<int>(cluster_rank()); box < Shared::kBoxes; box += cell.cluster)
      copy_box(tile, map, chunk, box, barrier);
  }
  __device__ void q(int chunk) const {
    share(at.q(chunk), q_map, chunk, at.barrier_q(kFullQ, chunk));
  }
  /// Where one block of the cluster copies all of a chunk's q.
  __device__ void whole_q(int chunk, bool here) const {
    const std::uint32_t barrier = at.barrier_q(kFullQ, chunk);
    barrier_expect(barrier, Shared::kTile);
    if (!here) return;
#pragma unroll 1
    for (int box = 0; box < Shared::kBoxes; ++box)
      copy_box(at.q(chunk), q_map, chunk, box, barrier);
  }
  __device__ void k(int chunk) const {
    share(at.k(chunk), k_map, chunk, at.barrier_k(kFullK, chunk));
  }
  __device__ void v(int chunk) const {
    const std::uint32_t barrier = at.barrier_v(kFullV, chunk);
    barrier_expect(barrier, Shared::kTileV);
    const FusedTiles tiles = at.tiles();
#pragma unroll
    for (int box = 0; box < 2; ++box)
      load_head_box(at.v(chunk) + box * Shared::kBox, &v_map,
                    tiles.begin + at.at_turn(chunk) * kChunk, tiles.head / kParts,
                    tiles.column + box * 64, barrier);
  }
  /// Into the second-level cache: for a copy that comes late.
  __device__ void prefetch_v(int chunk) const {
    const FusedTiles tiles = at.tiles();
#pragma unroll
    for (int box = 0; box < 2; ++box)
      prefetch_head_box(&v_map, tiles.begin + chunk * kChunk, tiles.head / kParts,
                        tiles.column + box * 64);
  }
  /// Some of the n that FusedEnds names.
  __device__ void n(int first, int count) const {
    const std::uint32_t barrier = at.barrier(kFullN);
    barrier_expect(barrier, count * kDqk * 4);
    const float* from = at.ends().n + first * (cell.heads * kDqk);
#pragma unroll 1
    for (int stage = 0; stage < count; ++stage, from += cell.heads * kDqk)
      load_bytes(at.staged_n(stage), from, kDqk * 4, barrier);
  }
  __device__ void gates(int chunk) const {
    const int slot = chunk % kGateSlots;
    const std::uint32_t barrier = at.barrier(kFullGates + slot);
    barrier_expect(barrier, sizeof(ChunkGates));
    const FusedTiles tiles = at.tiles();
    load_bytes(
        at.base + Shared::kGates + slot * Shared::kGateSlot,
        cell.gates + tiles.head / kParts * cell.all_chunks + tiles.first_chunk + at.at_turn(chunk),
        sizeof(ChunkGates), barrier);
  }
};

/// Sets the rows from `row` on of some boxes to zero: there lies another sequence.
template <int kDqk, bool kOutputs, int kParts>
__device__ void clear_rows(const FusedPlaces<kDqk, kOutputs, kParts>& at, std::uint32_t tile,
                           int boxes, int row) {
  using Shared = FusedShared<kDqk, kOutputs, kParts>;
  const int count = (kChunk - row) * 8;
#pragma unroll 1
  for (int box = 0; box < boxes; ++box)
#pragma unroll 1
    for (int x = thread_index(); x < count; x += kGroup)
      *reinterpret_cast<uint4*>(at.bytes + (tile + box * Shared::kBox - at.base) + row * 128 +
                                x * 16) = make_uint4(0, 0, 0, 0);
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90
