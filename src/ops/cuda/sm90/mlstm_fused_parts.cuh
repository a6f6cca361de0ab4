#pragma once
// What goes before and after the fused mLSTM kernel where heads are in parts (mlstm_fused.cuh): the
// scores of all keys, and h from the sums of all parts. Include it once.

#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/sm90/device/matrices.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/device/wgmma.cuh"
#include "ops/cuda/sm90/mlstm_fused_producer.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

/// Where a block that makes scores has its tiles, from the beginning on 1024 bytes.
struct ScoresShared {
  static constexpr int kStages = 4;
  static constexpr int kBox = kChunk * 128;  // 64 keys
  static constexpr int kGates = kStages * 2 * kBox;
  static constexpr int kBarriers = kGates + sizeof(ChunkGates);
  static constexpr int kBytes = kBarriers + (kStages + 1) * 8;
};

/// Masked scores of a chunk and head for the fused kernel, as the sum of kParts bf16, and what l
/// has of them. A block each.
template <int kParts>
__global__ void __launch_bounds__(kGroup)
    mlstm_fused_scores_kernel(const __grid_constant__ CUtensorMap q_map,
                              const __grid_constant__ CUtensorMap k_map,
                              const __grid_constant__ FusedCell cell) {
  using Shared = ScoresShared;
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  const std::uint32_t base = shared_address(shared_bytes);
  const int heads = cell.heads / kParts, block = static_cast<int>(blockIdx.x);
  const int head = block % heads, place = block / heads, thread = static_cast<int>(threadIdx.x);
  const FusedChunk chunk(cell, place);
  if (chunk.tokens <= 0) {
    grid_wait();
    return;
  }
  const int part_boxes = (cell.dqk + 63) / 64, boxes = kParts * part_boxes;
  const auto tile = [&](int box) { return base + box % Shared::kStages * (2 * Shared::kBox); };
  const auto barrier = [&](int box) {
    return base + Shared::kBarriers + box % Shared::kStages * 8;
  };
  const std::uint32_t full_gates = base + Shared::kBarriers + Shared::kStages * 8;
  const auto copy = [&](int box) {
    const int part_head = head * kParts + box / part_boxes, key = box % part_boxes * 64;
    barrier_expect(barrier(box), 2 * Shared::kBox);
    load_head_box(tile(box), &q_map, chunk.begin, part_head, key, barrier(box));
    load_head_box(tile(box) + Shared::kBox, &k_map, chunk.begin, part_head, key, barrier(box));
  };
  if (thread == 0) {
    for (int stage = 0; stage < Shared::kStages; ++stage) barrier_init(barrier(stage), 1);
    barrier_init(full_gates, 1);
    barrier_fence_init();
    for (int box = 0; box < min(Shared::kStages, boxes); ++box) copy(box);
  }
  __syncthreads();
  float s[32];
  for (int box = 0; box < boxes; ++box) {
    barrier_wait(barrier(box), box / Shared::kStages % 2);
    const std::uint64_t q_tile = wgmma_matrix(tile(box));
    const std::uint64_t k_tile = wgmma_matrix(tile(box) + Shared::kBox);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma<64>(s, moved(q_tile, step * 32), moved(k_tile, step * 32), box > 0 || step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    if (box + Shared::kStages < boxes) {
      __syncthreads();  // all have read it
      if (thread == 0) copy(box + Shared::kStages);
    }
  }

  grid_wait();  // for the gates alone
  grid_trigger();
  if (thread == 0) {
    barrier_expect(full_gates, sizeof(ChunkGates));
    load_bytes(base + Shared::kGates, cell.gates + head * cell.all_chunks + place,
               sizeof(ChunkGates), full_gates);
  }
  __syncthreads();  // the first tile's place is free
  barrier_wait(full_gates, 0);
  const float no_n[4] = {0, 0, 0, 0};
  float* const l = cell.l + ((head * (kParts + 1) + kParts) * cell.all_chunks + place) * kChunk;
  finish_scores<false>(cell, *reinterpret_cast<const ChunkGates*>(shared_bytes + Shared::kGates), s,
                       no_n, base, nullptr, [l](int t, float own) { l[t] = own; });
  // What rounding left out of them, once for each further part.
#pragma unroll
  for (int part = 1; part < kParts; ++part)
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      std::uint32_t packed[4];
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        float &first = s[4 * j + 2 * x], &second = s[4 * j + 2 * x + 1];
        const std::uint32_t before = pack_bf16(first, second);
        first -= first_of(before);
        second -= second_of(before);
        packed[x] = pack_bf16(first, second);
      }
      store_matrices(base + part * Shared::kBox +
                         box_offset(16 * (thread / 32) + thread % 16, j + thread % 32 / 16),
                     packed);
    }
  __syncthreads();
  static_assert(kParts <= 2 * Shared::kStages);
  const auto* const from = reinterpret_cast<const uint4*>(shared_bytes);
  auto* const to = reinterpret_cast<uint4*>(cell.score_tile<kParts>(head, place, 0));
#pragma unroll
  for (int x = thread; x < kParts * Shared::kBox / 16; x += kGroup) to[x] = from[x];
}

constexpr int kPartsThreads = 2 * kGroup;

/// h of one chunk and the columns of a slice of a head. A block each, of which a thread has what
/// one of the fused kernel had.
template <int kParts>
__global__ void __launch_bounds__(kPartsThreads)
    mlstm_fused_parts_kernel(const __grid_constant__ FusedCell cell) {
  constexpr int kStrips = kChunk / kStrip, kBox = kChunk * 128;
  __shared__ __align__(16) unsigned char boxes[2 * kBox];
  __shared__ __align__(8) float factors[kChunk];
  grid_wait();
  grid_trigger();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int heads = cell.heads / kParts;
  int block = static_cast<int>(blockIdx.x);
  const int slice = block % cell.slices;
  block /= cell.slices;
  const int head = block % heads, place = block / heads;
  const FusedChunk chunk(cell, place);
  if (chunk.tokens <= 0) return;

  float4 num[kStrips];
  const std::int64_t strip = cell.first_strip(chunk.s) + chunk.number * kStrips;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const float4* const from =
        cell.num +
        ((std::int64_t{head * kParts + part} * cell.slices + slice) * cell.all_strips + strip) *
            kPartsThreads +
        thread;
#pragma unroll
    for (int j = 0; j < kStrips; ++j) {
      float4 own = make_float4(0, 0, 0, 0);
      if (j * kStrip < chunk.tokens) own = __ldcs(from + j * kPartsThreads);
      num[j] = part == 0 ? own
                         : make_float4(num[j].x + own.x, num[j].y + own.y, num[j].z + own.z,
                                       num[j].w + own.w);
    }
  }
  if (thread < kChunk) {
    float l = 0;
#pragma unroll
    for (int part = 0; part <= kParts; ++part)
      l += cell.l[((head * (kParts + 1) + part) * cell.all_chunks + place) * kChunk + thread];
    const ChunkGates& gates = cell.gates[head * cell.all_chunks + place];
    const float floor = gates.floor[thread], magnitude = fabsf(l);
    const float denominator = (magnitude <= floor ? floor : magnitude) + gates.eps[thread];
    factors[thread] = __fdividef(cell.scale, cell.normalise ? denominator : floor);
    if (cell.saved.any() && slice == 0 && thread < chunk.tokens)
      cell.saved.l_of(chunk.begin + thread, head) = l * saved_factor(cell, gates, thread);
  }
  __syncthreads();
  // As the other kernel does it with whole heads.
  const SharedAddress out = shared_address(boxes) + warp / 4 * kBox;
#pragma unroll
  for (int j = 0; j < kStrips; j += 2) {
    std::uint32_t packed[4];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const float2 factor =
          *reinterpret_cast<const float2*>(factors + kStrip * (j + x) + 2 * (lane % 4));
      packed[2 * x] = pack_bf16(num[j + x].x * factor.x, num[j + x].y * factor.y);
      packed[2 * x + 1] = pack_bf16(num[j + x].z * factor.x, num[j + x].w * factor.y);
    }
    store_matrices_transposed(
        out + box_offset(kStrip * (j + lane / 16) + lane % 8, 2 * (warp % 4) + lane / 8 % 2),
        packed);
  }
  __syncthreads();
  constexpr int kUnits = kColumns / 8, kRows = kPartsThreads / kUnits;
  const int unit = thread % kUnits, column = slice * kColumns + 8 * unit;
  if (column >= cell.dv) return;
  std::uint16_t* const h =
      cell.h + chunk.begin * cell.h_stride + std::int64_t{head} * cell.dv + column;
#pragma unroll
  for (int row = thread / kUnits; row < kChunk; row += kRows)
    if (row < chunk.tokens)
      *reinterpret_cast<uint4*>(h + row * cell.h_stride) =
          *reinterpret_cast<const uint4*>(boxes + unit / 8 * kBox + box_offset(row, unit % 8));
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90
