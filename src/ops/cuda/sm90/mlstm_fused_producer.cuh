#pragma once
// Warpgroup 0 of the fused mLSTM kernel (mlstm_fused.cuh).

#include "ops/cuda/sm90/mlstm_fused_gates.cuh"
#include "ops/cuda/sm90/mlstm_fused_places.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

/// Of the results in columns 2 (lane % 4) and the next, those of the three parts.
__device__ __forceinline__ float sum_of_parts(float first, float second, int lane) {
  return lane % 4 == 0 ? first + second : (lane % 4 == 1 ? first : 0.0F);
}

/// Adds up what the lanes have of kCount numbers each: halves of them go to the lane kWidth away,
/// then quarters, ... down to the lane 1 away. Returns the first of this lane's numbers, which then
/// are the next kCount / (lanes that took part), but at least one.
template <int kCount, int kWidth>
__device__ __forceinline__ int share_sums(float* sums, int lane) {
  if constexpr (kWidth == 0) {
    return 0;
  } else if constexpr (kCount == 1) {
    sums[0] += __shfl_xor_sync(~0U, sums[0], kWidth);
    return share_sums<1, kWidth / 2>(sums, lane);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = (lane & kWidth) != 0;
#pragma unroll
    for (int x = 0; x < kHalf; ++x) {
      const float given = upper ? sums[x] : sums[x + kHalf];
      const float kept = upper ? sums[x + kHalf] : sums[x];
      sums[x] = kept + __shfl_xor_sync(~0U, given, kWidth);
    }
    return (upper ? kHalf : 0) + share_sums<kHalf, kWidth / 2>(sums, lane);
  }
}

/// Adds the products of kTiles tiles of keys with the three parts of the weights to n.
/// @param decay  of n, or without outputs of what is added
/// @param parts  whether the next chunk's scores, which want them, are made here
template <int kTiles, int kDqk, bool kOutputs, int kParts>
__device__ __forceinline__ void add_to_n(const FusedPlaces<kDqk, kOutputs, kParts>& at, float decay,
                                         const float (&sums)[kTiles][4], int first_tile,
                                         bool parts) {
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  float all[2 * kTiles];
#pragma unroll
  for (int x = 0; x < 2 * kTiles; ++x)
    all[x] = sum_of_parts(sums[x / 2][x % 2 * 2], sums[x / 2][x % 2 * 2 + 1], lane);
  const int which = share_sums<2 * kTiles, 2>(all, lane);
  constexpr int kLeft = kTiles < 2 ? 1 : kTiles / 2;
#pragma unroll
  for (int x = 0; x < kLeft; ++x) {
    const int key =
        64 * (first_tile + (which + x) / 2) + 16 * warp + lane / 4 + (which + x) % 2 * 8;
    const float n = kOutputs ? fmaf(decay, at.n()[key], all[x]) : fmaf(decay, all[x], at.n()[key]);
    __syncwarp();  // two lanes may have the same one
    at.n()[key] = n;
    if (parts) at.set_parts_of_n(key, n);
  }
}

/// Masked scores of a warp's 16 tokens for the products with v, and s / N of the tokens.
/// @tparam kWhole  false: of a part of the keys; in place of s / N, which does not follow from
///                 them, there is s l
/// @tparam kScoreParts  whose sum a score is
/// @param q_n   what products with the three parts of n gave
/// @param save  called with each token and its s l, relative to the frame, by one lane
template <bool kWhole, int kScoreParts, class Save>
__device__ __forceinline__ void finish_scores(const FusedCell& cell, const ChunkGates& gates,
                                              float (&s)[32], const float (&q_n)[4],
                                              std::uint32_t scores, float* factors, Save&& save) {
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  const int row = 16 * warp + lane / 4, pair = 2 * (lane % 4);
  const float carried[2] = {sum_of_parts(q_n[0], q_n[1], lane), sum_of_parts(q_n[2], q_n[3], lane)};
  float l[2];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    l[r] = carried[r] * (gates.guard != 0 ? gates.carried[row + 8 * r] : gates.decay);
  if (gates.guard != 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int t = row + 8 * r;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const int from = 8 * j + pair + x;
          float& score = s[4 * j + 2 * r + x];
          const float exponent =
              (gates.beta_high[from] - gates.mu_high[t]) + (gates.beta_low[from] - gates.mu_low[t]);
          score = from <= t ? score * __expf(exponent) : 0.0F;
          l[r] += score;
          asm volatile("" ::: "memory");  // not all exponentials at once: registers
        }
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
    if constexpr (kScoreParts > 1) {
#pragma unroll
      for (int x = 0; x < 4; ++x)
        packed[x] = pack_bf16(s[4 * j + 2 * x] - first_of(packed[x]),
                              s[4 * j + 2 * x + 1] - second_of(packed[x]));
      store_matrices(scores + kChunk * 128 + box_offset(t, j + lane / 16), packed);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(~0U, l[r], 1);
    l[r] += __shfl_xor_sync(~0U, l[r], 2);
    const int t = row + 8 * r;
    const float floor = gates.floor[t], magnitude = fabsf(cell.scale * l[r]);
    const float denominator = (magnitude <= floor ? floor : magnitude) + gates.eps[t];
    if (lane % 4 == 0)
      factors[t] =
          kWhole ? __fdividef(cell.scale, cell.normalise ? denominator : floor) : cell.scale * l[r];
    if (lane % 4 == 0) save(t, cell.scale * l[r]);
  }
}

/// The gates of all chunks into shared memory, each by a warp. The first m is there.
template <int kDqk, bool kOutputs, int kParts>
__device__ __forceinline__ void make_own_gates(const FusedCell& cell, const FusedWork& work,
                                               const FusedPlaces<kDqk, kOutputs, kParts>& at) {
  const int lane = thread_index() % 32, chunk = thread_index() / 32;
  FusedOwnGates& own = at.own();
  const LaneScan scan(
      LaneGates(cell, work.begin + chunk * kChunk, work.length - chunk * kChunk, work.head, lane),
      lane);
  const FusedTotals totals = scan.totals();
  if (lane == 0) own.totals[chunk] = totals;
  named_barrier(1, kGroup);
  if (chunk >= work.chunks) return;
  double sum_before = 0;
  AloneToken before{own.first_m, 0}, record = before;
  if (cell.batch.slots[work.s] != nullptr) record = AloneToken::of_record(own.first_m);
  for (int i = 0; i < chunk; ++i) {
    before.add(own.totals[i].top - sum_before, own.totals[i].squares);
    sum_before += own.totals[i].log_f;
  }
  const ChunkTops tops(own.first_m, before, record, totals, sum_before, alone_below(kDqk));
  if (chunk + 1 == work.chunks && lane == 0) own.last = tops.frame_after();
  write_gates(cell, at.own_gates(chunk), scan, tops, lane);
  fence_async();  // wgmma reads some of it
  __syncwarp();
  if (lane == 0) barrier_arrive(at.barrier(kFullGates + chunk));
}

/// Of chunks whose gates another kernel has made. By a warp.
template <int kDqk, bool kOutputs, int kParts>
__device__ __forceinline__ void find_limits(const FusedCell& cell, const FusedWork& work,
                                            const FusedPlaces<kDqk, kOutputs, kParts>& at) {
  const int head = work.head / kParts;
  const FusedFrame* const frames = cell.frame(work.s, head) + cell.cuts.begin_of(work.segment);
  const FusedFrame last = last_frame(cell, work, head, at.own());
  const int lane = thread_index() % 32;
  int forgotten = 0, gone = 0;  // which all are that come before one that is
#pragma unroll 1
  for (int chunk = lane; chunk < work.chunks; chunk += 32) {
    const FusedFrame end = frames[chunk + 1];
    forgotten += is_forgotten(end, last) ? 1 : 0;
    if (!kOutputs) gone += is_gone(end, frames[work.chunks]) ? 1 : 0;
  }
  forgotten = __reduce_add_sync(~0U, forgotten);
  if (!kOutputs) gone = __reduce_add_sync(~0U, gone);
  if (lane > 0) return;
  at.limits().fine_from = forgotten;
  // Some are on their way before anybody knows.
  constexpr int kLeast = FusedShared<kDqk, kOutputs, kParts>::kStagesK;
  if (!kOutputs) at.limits().chunks = max(work.chunks - gone, min(work.chunks, kLeast));
  barrier_arrive(at.barrier(kLimitsThere));
}

template <int kDqk, bool kOutputs, bool kSaves, int kParts>
__device__ void run_producer(const FusedCell& cell, const FusedPlaces<kDqk, kOutputs, kParts>& at,
                             const CUtensorMap& q_map, const CUtensorMap& k_map,
                             const CUtensorMap& v_map) {
  using Shared = FusedShared<kDqk, kOutputs, kParts>;
  int chunks = at.chunks();
  const FusedCopies<kDqk, kOutputs, kParts> copies{at, q_map, k_map, v_map, cell};
  if (threadIdx.x / 32 == 3) {  // has gates to make only where there are four chunks
    if (cell.early) grid_wait();
    if (cell.own_gates) grid_trigger();
  }
  // Copies come in the order in which they are asked for: first what the first chunk needs.
  const bool has_gates = kOutputs && cell.segments > 1;  // those of the pass of states
  if (threadIdx.x == 96) {
    const auto copy_tiles = [&](int chunk) {
      copies.k(chunk);
      if (chunk < Shared::kStagesQ) copies.q(chunk);
      if (chunk < Shared::kStagesV) copies.v(chunk);
    };
    const auto copy_gates = [&] {
      for (int chunk = 0; chunk < min(Shared::kGatesAhead, chunks); ++chunk) copies.gates(chunk);
    };
    if (has_gates) copy_gates();
    copy_tiles(0);
    if (!cell.own_gates && !has_gates) {
      grid_wait();
      copy_gates();
    }
    for (int chunk = 1; chunk < min(Shared::kStagesK, chunks); ++chunk) copy_tiles(chunk);
  }
  if (!cell.own_gates) {
    __syncwarp();
    if (!kOutputs || !cell.beside_states()) grid_wait();
    grid_trigger();
    if (thread_index() / 32 == 1) find_limits(cell, FusedWork(cell), at);
  }

  if constexpr (!kOutputs) {
    barrier_wait(at.barrier(kLimitsThere), 0);
    chunks = at.limits().chunks;
  }

  // n lies in shared memory.
  const auto each_key = [&](auto&& body) {
    for (int key = thread_index(); key < kDqk; key += kGroup) body(at.n()[key], key);
  };
  if (cell.own_gates) {
    __syncwarp();
    if constexpr (kOutputs) make_own_gates(cell, FusedWork(cell), at);
  } else if (!kOutputs) {
    each_key([](float& n, int) { n = 0; });
  } else {
    // As C is added up. By copies: what threads load themselves would wait for all loads of C.
    int slot = 0;
#pragma unroll 1
    for (int turn = 0; slot < at.ends().states; ++turn) {
      const int count = min(at.ends().states - slot, Shared::kStagesN);
      if (thread_index() == 64) copies.n(slot, count);
      __syncwarp();
      barrier_wait(at.barrier(kFullN), turn % 2);
#pragma unroll 1
      for (int stage = 0; stage < count; ++stage, ++slot)
        each_key([&](float& n, int key) {
          const float here = at.staged_n(stage, key);
          n = slot == 0 ? here : here + at.segment_factor(at.limits().first_state + slot) * n;
        });
      named_barrier(1, kGroup);
    }
  }
  const auto keep = [&](const FusedWork& work, int slot) {  // this slice's, in scratch memory
    float* to = cell.n + work.state(cell, slot) * kDqk;
    each_key([&](float n, int key) {
      if (key / 64 % cell.slices == work.slice) to[key] = n;
    });
  };
  if (kOutputs) {
    each_key([&](float n, int key) { at.set_parts_of_n(key, n); });
    fence_async();
  }
  constexpr int kTiles = kDqk / 64;  // of keys
  // Whether this block makes the scores of a chunk.
  const auto makes_scores = [&](int chunk) {
    return kOutputs && (cluster_rank() % 2 == at.maker(cell, chunk));
  };
  // For a backward pass: n before a chunk at a border, and l of a chunk's token. All columns have
  // the same.
  const auto save_n = [&](int chunk) {
    if (at.tiles().column > 0 || chunk >= chunks) return;
    at.borders().at(chunk, [&](int border, const FusedFrame& frame) {
      named_barrier(1, kGroup);  // n is there
      const float factor = record_factor(cell, frame);
      float* to = at.borders().n + border * (cell.heads * cell.dqk);
#pragma unroll 1
      for (int key = thread_index(); key < cell.dqk; key += kGroup)
        to[key] = factor * (factor * at.n()[key]);
    });
  };
  const auto save_l = [&](int chunk, int t, float l) {
    const FusedTiles tiles = at.tiles();
    const int token = chunk * kChunk + t;
    if (tiles.column >= cell.cluster * kColumns || token >= at.output(0).length) return;
    cell.saved.l_of(tiles.begin + token, tiles.head) = l * saved_factor(cell, at.gates(chunk), t);
  };
  // For what adds up the parts of a head.
  const auto leave_l = [&](int chunk) {
    const FusedTiles tiles = at.tiles();
    if (tiles.column >= cell.cluster * kColumns || thread_index() >= kChunk) return;
    cell.l[(tiles.head * cell.all_chunks + tiles.first_chunk + chunk) * kChunk + thread_index()] =
        at.factors(chunk)[thread_index()];
  };
  constexpr int kFactorBytes = kParts == 1 ? kChunk * 4 : 0;
  if constexpr (kSaves) save_n(0);
  [[maybe_unused]] float fade = 1;  // from a chunk to the end of the segment
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int rows = min(kChunk, at.output(0).length - chunk * kChunk);
    const ChunkGates& gates = at.gates(chunk);
    named_barrier(1, kGroup);  // n is there, and what the last turn's copies overwrite was read
    at.wait_k(kFullK, chunk);
    if (kOutputs) at.wait_q(kFullQ, chunk);
    if (kOutputs && rows < kChunk) {
      if (kParts == 1) at.wait_v(kFullV, chunk);
      clear_rows(at, at.k(chunk), Shared::kBoxes, rows);
      if (kParts == 1) clear_rows(at, at.v(chunk), 2, rows);
      fence_async();
      named_barrier(1, kGroup);
    }
    const std::uint64_t k_tile = wgmma_matrix(at.k(chunk));

    if (makes_scores(chunk)) {
      at.wait_gates(chunk);
      if (cell.cluster > 1 && chunk >= 2)
        barrier_wait(at.barrier(kEmptyScores + chunk % 2), (chunk / 2 - 1) % 2);
      float s[32], q_n[4];
      wgmma_fence();
      const std::uint64_t q_tile = wgmma_matrix(at.q(chunk));
      const std::uint64_t n_tile = wgmma_matrix(at.base + Shared::kTileN);
#pragma unroll
      for (int step = 0; step < kDqk / 16; ++step)
        wgmma<64>(s, moved(q_tile, step / 4 * Shared::kBox + step % 4 * 32),
                  moved(k_tile, step / 4 * Shared::kBox + step % 4 * 32), step > 0);
#pragma unroll
      for (int step = 0; step < kDqk / 16; ++step)
        wgmma<8>(q_n, moved(q_tile, step / 4 * Shared::kBox + step % 4 * 32),
                 moved(n_tile, step / 4 * 1024 + step % 4 * 32), step > 0);
      wgmma_commit();
      wgmma_wait<0>();
      at.release_q(cell, chunk, chunks);
      finish_scores<kParts == 1, Shared::kScoreParts>(cell, gates, s, q_n, at.scores(chunk),
                                                      at.factors(chunk), [&](int t, float l) {
                                                        if constexpr (kSaves && kParts == 1)
                                                          save_l(chunk, t, l);
                                                      });
      fence_async();
      barrier_arrive(at.full_scores(chunk));
      if constexpr (kParts > 1) {
        named_barrier(1, kGroup);
        leave_l(chunk);
      }
      if (cell.cluster > 1) {
        if (kParts == 1) named_barrier(1, kGroup);
        if (thread_index() == 0) {
          const unsigned peer = cluster_rank() ^ 1;
          const SharedAddress barrier = cluster_address(at.full_scores(chunk), peer);
          const SharedAddress factors = at.base + Shared::kFactors + chunk % 2 * (kChunk * 4);
          send_bytes(cluster_address(at.scores(chunk), peer), at.scores(chunk), Shared::kTileScores,
                     barrier);
          if (kFactorBytes > 0)
            send_bytes(cluster_address(factors, peer), factors, kFactorBytes, barrier);
        }
        __syncwarp();
      }
    } else {
      if (kOutputs) {
        at.release_q(cell, chunk, chunks);
        const std::uint32_t barrier = at.full_scores(chunk);
        if (thread_index() == 0)
          barrier_expect(barrier, Shared::kTileScores + kFactorBytes);
        else
          barrier_arrive(barrier);
      }
      at.wait_gates(chunk);
    }
    // Columns 0 to 2 are the products with the three parts of the weights.
    const std::uint64_t weights =
        wgmma_matrix(at.base + Shared::kGates + chunk % kGateSlots * Shared::kGateSlot);
    const auto release_k = [&] {
      const int lane = thread_index() % 32;
      if (chunk + Shared::kStagesK < chunks && lane < cell.cluster)
        barrier_arrive_at(at.barrier_k(kEmptyK, chunk), lane);
    };
    if constexpr (kOutputs) {
      float sums[kTiles][4];
      wgmma_fence();
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int step = 0; step < kChunk / 16; ++step)
          wgmma<8, 1>(sums[tile], moved(k_tile, tile * Shared::kBox + step * 2048),
                      moved(weights, step * 32), step > 0);
      wgmma_commit();
      wgmma_wait<0>();
      release_k();
      add_to_n(at, gates.decay, sums, 0, makes_scores(chunk + 1));
      fence_async();
    } else {  // nobody reads n meanwhile: each slice has some of it
#pragma unroll 1
      for (int tile = at.tiles().column / kColumns; tile < kTiles; tile += cell.slices) {
        float sums[1][4];
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kChunk / 16; ++step)
          wgmma<8, 1>(sums[0], moved(k_tile + tile * (Shared::kBox >> 4), step * 2048),
                      moved(weights, step * 32), step > 0);
        wgmma_commit();
        wgmma_wait<0>();
        add_to_n(at, fade, sums, tile, false);
      }
      fade *= gates.decay;
      release_k();
    }
    // Who makes scores of the next chunk does not wait here until all have read this one's q.
    if (kOutputs && thread_index() == 32 && chunk + 2 < chunks) {
      const bool here = cluster_rank() == at.maker(cell, chunk);
      if (here) at.wait_q(kEmptyQ, chunk);
      copies.whole_q(chunk + 2, here);
    }
    // Scores and gates whose place is taken from here on were read when v was given back.
    constexpr int kLag = Shared::kLag;
    if (thread_index() == 64) {
      if (chunk >= kLag && chunk + Shared::kStagesV - kLag < chunks) {
        at.wait_v(kEmptyV, chunk - kLag);
        copies.v(chunk + Shared::kStagesV - kLag);
        if constexpr (Shared::kStagesV == 1)
          if (chunk + 1 < chunks) copies.prefetch_v(chunk + 1);
      }
      if (chunk + Shared::kGatesAhead < chunks && !cell.own_gates)
        copies.gates(chunk + Shared::kGatesAhead);
    }
    if (thread_index() == 96 && chunk >= kLag && chunk + Shared::kStagesK - kLag < chunks) {
      at.wait_k(kEmptyK, chunk - kLag);
      copies.k(chunk + Shared::kStagesK - kLag);
    }
    __syncwarp();
    if constexpr (kSaves) save_n(chunk + 1);
  }
  if constexpr (kOutputs && kParts > 1) {
    const int chunk = chunks - 1, rows = at.output(0).length - chunk * kChunk;
    if (rows < kChunk) {
      named_barrier(1, kGroup);  // v of the last chunk has been asked for
      at.wait_v(kFullV, chunk);
      clear_rows(at, at.v(chunk), 2, rows);
      barrier_arrive(at.barrier(kFullTail));
    }
  }

  named_barrier(1, kGroup);
  const FusedWork done(cell);
  const bool ends = at.ends().last != 0;  // the sequence
  if (!kOutputs || (!ends && cell.first_segment == 0)) {
    keep(done, done.segment);
  } else if (ends && done.slice == 0 && cell.batch.slots[done.s] != nullptr) {
    double* record =
        cell.record<double>(done.s, cell.offsets.n, std::int64_t{done.head} * cell.dqk);
    const FusedFrame last = last_frame(cell, done, done.head / kParts, at.own());
    const float factor = record_factor(cell, last);
    each_key([&](float n, int key) {
      if (key < cell.dqk) record[key] = factor * (factor * n);
    });
    if (thread_index() == 0 && done.head % kParts == 0)
      *cell.record<double>(done.s, cell.offsets.m, done.head / kParts) =
          cell.exponential ? last.m : 0.0;
  }
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90
