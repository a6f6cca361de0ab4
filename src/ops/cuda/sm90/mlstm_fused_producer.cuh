#pragma once
// Warpgroup 0 of the fused mLSTM kernel (mlstm_fused.cuh).

#include "ops/cuda/sm90/mlstm_fused_places.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

/// Adds up what the lanes have of kCount numbers each: halves of them go to the lane kWidth away,
/// then quarters, ... while there are such lanes down to kLeast away. Returns the first of this
/// lane's numbers, which then are the next kCount / (lanes that took part), but at least one.
template <int kCount, int kWidth, int kLeast>
__device__ __forceinline__ int share_sums(float* sums, int lane) {
  if constexpr (kWidth < kLeast) {
    return 0;
  } else if constexpr (kCount == 1) {
    sums[0] += __shfl_xor_sync(~0U, sums[0], kWidth);
    return share_sums<1, kWidth / 2, kLeast>(sums, lane);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = (lane & kWidth) != 0;
#pragma unroll
    for (int x = 0; x < kHalf; ++x) {
      const float given = upper ? sums[x] : sums[x + kHalf];
      const float kept = upper ? sums[x + kHalf] : sums[x];
      sums[x] = kept + __shfl_xor_sync(~0U, given, kWidth);
    }
    return (upper ? kHalf : 0) + share_sums<kHalf, kWidth / 2, kLeast>(sums, lane);
  }
}

/// n q of the tokens lane / 4 and lane / 4 + 8 of a warp's 16, in float but for the products'
/// parts.
template <int kDqk, bool kOutputs>
__device__ __forceinline__ void multiply_n(const FusedPlaces<kDqk, kOutputs>& at, int chunk,
                                           float (&products)[2]) {
  using Shared = FusedShared<kDqk, kOutputs>;
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  const int part = lane / 4;
  const std::uint16_t* n = at.parts_of_n(chunk) + part * Shared::kPitchN + lane % 4 * 4;
  const int row = 16 * warp + a_row_of(lane);
  float sums[2][4] = {};
#pragma unroll
  for (int step = 0; step < kDqk / 16; ++step) {
    unsigned q[4];
    load_matrices(
        q, at.q(chunk) + step / 4 * Shared::kBox + box_offset(row, step % 4 * 2 + a_half_of(lane)));
    uint2 keys = make_uint2(0, 0);
    if (part < 3) keys = *reinterpret_cast<const uint2*>(n + step * 16);
    const unsigned b[2] = {keys.x, keys.y};
    mma_bf16(sums[step % 2], q, b);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = (sums[0][2 * r] + sums[1][2 * r]) + (sums[0][2 * r + 1] + sums[1][2 * r + 1]);
    sum += __shfl_xor_sync(~0U, sum, 1);
    products[r] = sum + __shfl_xor_sync(~0U, sum, 2);
  }
}

/// n after a chunk, a quarter of it by each warp.
template <int kDqk, bool kOutputs>
__device__ __forceinline__ void update_n(const FusedPlaces<kDqk, kOutputs>& at, int chunk) {
  using Shared = FusedShared<kDqk, kOutputs>;
  constexpr int kTiles = kDqk / 32 < 4 ? kDqk / 32 : 4;  // of 8 keys, at a time
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  const ChunkGates& gates = at.gates(chunk);
  const int part = lane / 4;
  const std::uint16_t* weights = gates.parts[part < 3 ? part : 0] + lane % 4 * 2;
#pragma unroll 1
  for (int first = warp * (kDqk / 32); first < (warp + 1) * (kDqk / 32); first += kTiles) {
    const std::uint32_t box = at.k(chunk) + first / 8 * Shared::kBox;
    float sums[kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      unsigned a[4] = {0, 0, 0, 0};
      if (part < 3) {
        a[0] = *reinterpret_cast<const unsigned*>(weights + step * 16);
        a[2] = *reinterpret_cast<const unsigned*>(weights + step * 16 + 8);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; tile += 2) {
        unsigned keys[4];
        load_matrices_transposed(keys, box + box_offset(16 * step + b_depth_of(lane),
                                                        first % 8 + tile + b_eight_of(lane)));
        const unsigned b[2][2] = {{keys[0], keys[1]}, {keys[2], keys[3]}};
        mma_bf16(sums[tile], a, b[0]);
        mma_bf16(sums[tile + 1], a, b[1]);
      }
    }
    float all[2 * kTiles];
#pragma unroll
    for (int x = 0; x < 2 * kTiles; ++x) all[x] = sums[x / 2][x % 2];
    const int which = share_sums<2 * kTiles, 16, 4>(all, lane);
    const int key = 8 * (first + which / 2) + lane % 4 * 2 + which % 2;
    at.set_n(chunk + 1, key, fmaf(gates.decay, at.n(chunk)[key], all[0]));
  }
}

/// Masked scores of a warp's 16 tokens for the products with v, and s / N of the tokens.
/// @param state_l  q n of two tokens
__device__ __forceinline__ void finish_scores(const FusedCell& cell, const ChunkGates& gates,
                                              float (&s)[32], const float (&state_l)[2],
                                              std::uint32_t scores, float* factors) {
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  const int row = 16 * warp + lane / 4, pair = 2 * (lane % 4);
  float l[2] = {0, 0};
  if (gates.guard != 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int t = row + 8 * r;
      const float mu_high = gates.mu_high[t], mu_low = gates.mu_low[t];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const int from = 8 * j + pair + x;
          float& score = s[4 * j + 2 * r + x];
          const float exponent =
              (gates.beta_high[from] - mu_high) + (gates.beta_low[from] - mu_low);
          score = from <= t ? score * __expf(exponent) : 0.0F;
          l[r] += score;
        }
        asm volatile("" ::: "memory");  // not all exponentials at once: registers
      }
    }
  } else {
    float odd[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 weight = *reinterpret_cast<const float2*>(gates.weight + 8 * j + pair);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int before = row + 8 * r - 8 * j - pair;
        float &first = s[4 * j + 2 * r], &second = s[4 * j + 2 * r + 1];
        first = before >= 0 ? first : 0.0F;
        second = before >= 1 ? second : 0.0F;
        l[r] = fmaf(first, weight.x, l[r]);
        odd[r] = fmaf(second, weight.y, odd[r]);
      }
    }
    l[0] += odd[0];
    l[1] += odd[1];
  }
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    std::uint32_t packed[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) packed[x] = pack_bf16(s[4 * j + 2 * x], s[4 * j + 2 * x + 1]);
    const int t = 16 * warp + lane % 16;
    store_matrices(scores + box_offset(t, j + lane / 16), packed);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(~0U, l[r], 1);
    l[r] += __shfl_xor_sync(~0U, l[r], 2);
    const int t = row + 8 * r;
    l[r] = fmaf(gates.guard != 0 ? gates.carried[t] : gates.decay, state_l[r], l[r]);
    const float floor = gates.floor[t], magnitude = fabsf(cell.scale * l[r]);
    const float denominator = (magnitude <= floor ? floor : magnitude) + gates.eps[t];
    if (lane % 4 == 0) factors[t] = __fdividef(cell.scale, cell.normalise ? denominator : floor);
  }
}

template <int kDqk, bool kOutputs>
__device__ void run_producer(const FusedCell& cell, const FusedPlaces<kDqk, kOutputs>& at,
                             const CUtensorMap& q_map, const CUtensorMap& k_map,
                             const CUtensorMap& v_map) {
  using Shared = FusedShared<kDqk, kOutputs>;
  const FusedWork work(cell);
  const int chunks = work.chunks;
  const FusedCopies<kDqk, kOutputs> copies{at, q_map, k_map, v_map, cell};
  if (threadIdx.x == 32) {
    for (int chunk = 0; chunk < min(Shared::kStagesK, chunks); ++chunk) {
      if (chunk < Shared::kGatesAhead) copies.gates(chunk);
      copies.k(chunk);
      if (chunk < Shared::kStagesQ) copies.q(chunk);
      if (chunk < Shared::kStagesV) copies.v(chunk);
    }
  }

  // n lies in shared memory.
  const auto each_key = [&](int chunk, auto&& body) {
    for (int key = thread_index(); key < kDqk; key += kGroup) body(at.n(chunk)[key], key);
  };
  // Sets them to body(n, key).
  const auto make_n = [&](auto&& body) {
    for (int key = thread_index(); key < kDqk; key += kGroup)
      at.set_n(0, key, body(at.n(0)[key], key));
  };
  const auto load_n = [&](FusedSource source, int slot) {
    const float* from = source == FusedSource::record
                            ? cell.first_n + (std::int64_t{work.s} * cell.heads + work.head) * kDqk
                            : cell.n + work.state(cell, slot) * kDqk;
    make_n([&](float n, int key) { return source != FusedSource::none ? from[key] : 0.0F; });
  };
  const auto add_n = [&](int slot, float factor) {
    const float* from = cell.n + work.state(cell, slot) * kDqk;
    make_n([&](float n, int key) { return from[key] + factor * n; });
  };
  begin_state(cell, work, !kOutputs, load_n, add_n);
  const auto keep = [&](const FusedWork& work, int slot, int chunk) {  // in scratch memory
    float* to = cell.n + work.state(cell, slot) * kDqk;
    if (work.slice == 0) each_key(chunk, [&](float n, int key) { to[key] = n; });
  };
  if (!kOutputs && work.segment == 0) keep(work, 0, 0);
  named_barrier(1, kGroup);

  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int thread = thread_index(), lane = thread % 32;
    // Copies are ordered by three warps: of q, of v and gates, and of k.

    const int rows = min(kChunk, at.output(0).length - chunk * kChunk);
    const ChunkGates& gates = at.gates(chunk);
    at.wait_k(kFullK, chunk);
    if (kOutputs) at.wait_q(kFullQ, chunk);
    if (rows < kChunk) {
      at.wait_v(kFullV, chunk);
      clear_rows(at, chunk, rows);
      fence_async();
      named_barrier(1, kGroup);
    }

    float s[32], state_l[2];
    if (kOutputs) multiply_n(at, chunk, state_l);
    at.wait_gates(chunk);
    update_n(at, chunk);
    if (kOutputs) {
      wgmma_fence();
      const std::uint64_t q_tile = wgmma_matrix(at.q(chunk)), k_tile = wgmma_matrix(at.k(chunk));
#pragma unroll
      for (int step = 0; step < kDqk / 16; ++step) {
        const int offset = step / 4 * Shared::kBox + step % 4 * 32;
        wgmma<64>(s, moved(q_tile, offset), moved(k_tile, offset), step > 0);
      }
      wgmma_commit();
    } else {
      barrier_arrive(at.barrier_v(kFullScores, chunk));  // k and v are clear
    }
    if (kOutputs && thread == 32 && chunk >= 1 && chunk + 1 < chunks) {
      at.wait_q(kEmptyQ, chunk - 1);
      copies.q(chunk + 1);
    }
    __syncwarp();
    if (kOutputs) {
      wgmma_wait<0>();
      if (chunk + 2 < chunks && lane < cell.cluster)
        barrier_arrive_at(at.barrier_q(kEmptyQ, chunk), lane);
      if (chunk + Shared::kStagesK < chunks && lane < cell.cluster)
        barrier_arrive_at(at.barrier_k(kEmptyK, chunk), lane);
      finish_scores(cell, gates, s, state_l, at.scores(chunk), at.factors(chunk));
      fence_async();
      barrier_arrive(at.barrier_v(kFullScores, chunk));
    } else if (chunk + Shared::kStagesK < chunks && lane < cell.cluster) {
      barrier_arrive_at(at.barrier_k(kEmptyK, chunk), lane);
    }
    // Scores and gates whose place is taken from here on were read when v was given back.
    if (thread == 64) {
      if (chunk >= 1 && chunk + Shared::kStagesV - 1 < chunks) {
        at.wait_v(kEmptyV, chunk - 1);
        copies.v(chunk + Shared::kStagesV - 1);
      }
      if (chunk + Shared::kGatesAhead < chunks) copies.gates(chunk + Shared::kGatesAhead);
    }
    if (thread == 96 && chunk >= 1 && chunk + Shared::kStagesK - 1 < chunks) {
      at.wait_k(kEmptyK, chunk - 1);
      copies.k(chunk + Shared::kStagesK - 1);
    }
    __syncwarp();
    named_barrier(1, kGroup);  // n after the chunk is there, that before it has been read
  }

  const FusedWork done(cell);
  if (!kOutputs) {
    keep(done, done.segment + 1, chunks);
  } else if (done.last && done.slice == 0 && cell.batch.slots[done.s] != nullptr) {
    float* record = cell.record(done.s, cell.offsets.n, std::int64_t{done.head} * cell.dqk);
    const float factor = last_factor(cell, done);
    each_key(chunks, [&](float n, int key) {
      if (key < cell.dqk) record[key] = factor * n;
    });
    if (thread_index() == 0) {
      const int all =
          (cell.batch.offsets[done.s + 1] - cell.batch.offsets[done.s] + kChunk - 1) / kChunk;
      *cell.record(done.s, cell.offsets.m, done.head) =
          cell.exponential ? static_cast<float>(cell.frame(done.s, done.head)[all].m) : 0.0F;
    }
  }
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90
