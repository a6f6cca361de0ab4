#pragma once
// The kernel of mlstm_fused.cuh. Include it once.

#include "ops/cuda/sm90/mlstm_fused_consumer.cuh"
#include "ops/cuda/sm90/mlstm_fused_producer.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

// Together what 384 threads of 168 registers give: one of the first and two of the second.
template <int kDqk>
constexpr int kProducerRegisters = kDqk == 64 ? 104 : (kDqk == 128 ? 88 : 72);
template <int kDqk>
constexpr int kConsumerRegisters = kDqk == 64 ? 200 : (kDqk == 128 ? 208 : 216);

/// kOutputs false: the pass that makes the states between segments. kSaves: what FusedCell::saved
/// asks for. kParts: of a head.
template <int kDqk, bool kOutputs, bool kSaves = false, int kParts = 1>
__global__ void __launch_bounds__(kFusedThreads, 1)
    mlstm_fused_kernel(const __grid_constant__ CUtensorMap q_map,
                       const __grid_constant__ CUtensorMap k_map,
                       const __grid_constant__ CUtensorMap v_map,
                       const __grid_constant__ CUtensorMap h_map,
                       const __grid_constant__ FusedCell cell) {
  // A base that the compiler knows saves registers.
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  const FusedPlaces<kDqk, kOutputs, kParts> at{shared_bytes, shared_address(shared_bytes)};
  // The kernel of the gates lets others begin when the products are done: q, k, v and records are
  // there, and copies of them and all preparations run beside the kernel before this one.
  if (cell.own_gates && !cell.early) grid_wait();
  {
    const FusedWork work(cell);
    const std::byte* const record = cell.own_gates ? cell.batch.slots[work.s] : nullptr;
    // The blocks of a cluster leave together.
    if (work.chunks == 0 || (!kOutputs && work.last)) {
      if (!cell.own_gates) grid_wait();
      return;
    }
    int first = 0;  // of the states
    if (kOutputs && threadIdx.x < 32) first = first_state(cell, work, work.head / kParts);
    if (threadIdx.x < 2) {
      const int group = static_cast<int>(threadIdx.x), column = work.slice * kColumns + group * 64;
      FusedOutput& to = at.output(group);
      if constexpr (kParts == 1) {
        to.h = cell.h + std::int64_t{work.begin} * cell.h_stride +
               std::int64_t{work.head} * cell.dv + column;
      } else {
        const int chunk = work.first_chunk - cell.first_chunk(work.s);
        const int strip = cell.first_strip(work.s) + chunk * (kChunk / kStrip);
        to.num = cell.num +
                 ((std::int64_t{work.head} * cell.slices + work.slice) * cell.all_strips + strip) *
                     (2 * kGroup);
      }
      to.columns = cell.dv - column;
      to.length = work.length;
      if (group == 0)
        at.tiles() = {work.begin, work.head, work.slice * kColumns, work.first_chunk};
      else
        at.ends() = {cell.first_segment == 0
                         ? cell.first_n + (std::int64_t{work.s} * cell.heads + work.head) * kDqk
                         : cell.n + work.state(cell, first) * kDqk,
                     max(1, work.segment - first), work.last ? 1 : 0};
      if (group == 0) at.limits().first_state = first;
    }
    if (kOutputs && threadIdx.x > 0 && static_cast<int>(threadIdx.x) < work.segment)
      at.segment_factor(threadIdx.x) = segment_factor(cell, work, work.head / kParts, threadIdx.x);
    if (kSaves && threadIdx.x == 0) at.borders() = FusedBorders(cell, work, work.head / kParts);
    // Before any block of the head can write its record: they meet below.
    if (cell.own_gates && threadIdx.x < kGroup) {
      const bool has_record = record != nullptr;
      const double* n =
          cell.record<double>(work.s, cell.offsets.n, std::int64_t{work.head} * cell.dqk);
      for (int key = threadIdx.x; key < kDqk; key += kGroup)
        at.n()[key] = has_record && key < cell.dqk ? static_cast<float>(n[key]) : 0.0F;
      if (threadIdx.x == 0)
        at.own().first_m = has_record && cell.exponential
                               ? *cell.record<double>(work.s, cell.offsets.m, work.head)
                               : 0.0;
    }
  }

  if (threadIdx.x == 0) {
    prefetch_map(&q_map);
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    prefetch_map(&h_map);
    const auto blocks = static_cast<std::uint32_t>(cell.cluster);
    using Shared = FusedShared<kDqk, kOutputs, kParts>;
    // The empty ones of q and k: warps of all blocks, two warpgroups' and the producer's.
    for (int stage = 0; stage < Shared::kStagesQ; ++stage) {
      barrier_init(at.barrier(kFullQ + stage), 1);
      barrier_init(at.barrier(kEmptyQ + stage), 12 * blocks);
    }
    for (int stage = 0; stage < Shared::kStagesK; ++stage) {
      barrier_init(at.barrier(kFullK + stage), 1);
      barrier_init(at.barrier(kEmptyK + stage), 12 * blocks);
    }
    for (int stage = 0; stage < Shared::kStagesV; ++stage) {
      barrier_init(at.barrier(kFullV + stage), 1);
      // Warpgroups whose h takes the place of v, or warps.
      barrier_init(at.barrier(kEmptyV + stage), kOutputs && kParts == 1 ? 2 : 8);
    }
    for (int stage = 0; stage < Shared::kStagesScores; ++stage)
      barrier_init(at.barrier(kFullScores + stage), kGroup);
    barrier_init(at.barrier(kFullTail), kGroup);
    // Warps of two warpgroups and two blocks.
    for (int stage = 0; stage < 2; ++stage) barrier_init(at.barrier(kEmptyScores + stage), 16);
    for (int slot = 0; slot < kGateSlots; ++slot) barrier_init(at.barrier(kFullGates + slot), 1);
    barrier_init(at.barrier(kFullN), 1);
    barrier_init(at.barrier(kLimitsThere), 1);
    at.limits().fine_from = 0;  // where blocks make their gates
    barrier_fence_init();
  }
  __syncwarp();
  __syncthreads();
  cluster_sync();

  if (threadIdx.x < kGroup) {
    fewer_registers<kProducerRegisters<kDqk>>();
    run_producer<kDqk, kOutputs, kSaves, kParts>(cell, at, q_map, k_map, v_map);
  } else {
    more_registers<kConsumerRegisters<kDqk>>();
    run_consumer<kDqk, kOutputs, kSaves, kParts>(cell, at, h_map);
  }
  if (kOutputs) {  // what the other block still reads
    __syncwarp();
    cluster_sync();
    if (cell.beside_states()) grid_wait();
  }
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90
