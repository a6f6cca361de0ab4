#pragma once
// What the fused mLSTM kernel needs of the gates, by a small kernel: sums over each chunk, then the
// stabiliser and the frame before it, and the exponentials. Include it once.
//
// With A the sum of log f over all chunks before this one, m - A is the largest of the first m and
// all beta_j - A so far: it never falls, and every chunk finds it in the sums of those before it.
// So is the frame - A, which is that number less kAbove to kAbove + kKeep, in steps of kKeep from
// the first m on.

#include "ops/cuda/device/alone_token.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/device/tile_copy.cuh"
#include "ops/cuda/sm90/mlstm_fused.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

/// The gates of two tokens of a lane, whose warp has a chunk.
struct LaneGates {
  float i[2], log_f[2];

  /// @param first   token of the chunk
  /// @param tokens  that it has; more than kChunk: all of them
  __device__ LaneGates(const FusedCell& cell, int first, int tokens, int head, int lane) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      // Beyond the end: nothing forgotten, nothing added.
      const bool live = 2 * lane + u < tokens;
      const std::int64_t t = first + 2 * lane + u;
      i[u] = live ? __ldcg(cell.i + t * cell.i_stride + head) : -INFINITY;
      log_f[u] = live ? __ldcg(cell.log_f + t * cell.log_f_stride + head) : 0.0F;
    }
  }
};

/// Of the same tokens: the sum of log f from the chunk's first token on, i minus that, and the
/// largest such number so far.
struct LaneScan {
  double b[2], beta[2], high[2];

  __device__ LaneScan(const LaneGates& gates, int lane) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      beta[u] = gates.i[u];
      // log f is cut where e^log f is 0 in any format: sums of it stay exact and finite.
      b[u] = gates.log_f[u] < -1e4F ? -1e4 : double{gates.log_f[u]};
    }
    b[1] += b[0];
    double sum = b[1];
#pragma unroll 1  // short code: some blocks run it once, and wait for its instructions
    for (int step = 1; step < 32; step *= 2) {
      const double other = __shfl_up_sync(~0U, sum, step);
      if (lane >= step) sum += other;
    }
    const double before = __shfl_up_sync(~0U, sum, 1);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (lane > 0) b[u] += before;
      beta[u] -= b[u];
    }
    double top = larger(beta[0], beta[1]);
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
      const double other = __shfl_up_sync(~0U, top, step);
      if (lane >= step) top = larger(top, other);
    }
    top = __shfl_up_sync(~0U, top, 1);
    high[0] = lane > 0 ? larger(top, beta[0]) : beta[0];
    high[1] = larger(high[0], beta[1]);
  }

  /// Of the chunk, to every lane.
  __device__ FusedTotals totals() const {
    const double log_f = __shfl_sync(~0U, b[1], 31), top = __shfl_sync(~0U, high[1], 31);
    constexpr float kOne = 1 << 20;  // in integers the warp's sum is one instruction
    unsigned squares = 0;
#pragma unroll
    for (int u = 0; u < 2; ++u)
      squares += static_cast<unsigned>(kOne * AloneToken::square(beta[u], top));
    squares = __reduce_add_sync(~0U, squares);
    return {log_f, top, static_cast<float>(squares) / kOne};
  }
};

/// A chunk of a sequence.
struct ChunkPlace {
  int s, number;
  int first, tokens;  // the first token, and those from there to the end of the sequence
};

/// Where the stabiliser and the frame of a sequence stand, less the sum of all log f so far.
struct FusedTop {
  double highest;
  double frame;

  __device__ FusedTop(double first_m, double highest_so_far) : highest(highest_so_far) {
    const double steps = floor((highest - kAbove - first_m) * (1 / kKeep));
    frame = first_m + kKeep * larger(steps, 0.0);
  }
};

/// AloneToken::parts(): where a product with C takes little time, it may be made twice more often.
__device__ constexpr float alone_below(int padded_dqk) {
  return padded_dqk > 128 ? AloneToken::kAlone : AloneToken::kNearlyAlone;
}

/// Where both stand before a chunk and after it.
struct ChunkTops {
  double first_m, sum_before, sum;  // of log f before the chunk, and up to its end
  FusedTop before, after;

  float squares_before, squares_after;  // FusedFrame's
  int split;                            // of C before the chunk

  /// @param tokens  before the chunk, with exponents as FusedTop's
  /// @param record  what was before them
  /// @param alone   AloneToken::parts()
  __device__ ChunkTops(double first, const AloneToken& tokens, const AloneToken& record,
                       const FusedTotals& total, double so_far, float alone)
      : first_m(first),
        sum_before(so_far),
        sum(so_far + total.log_f),
        before(first, tokens.top),
        after(first, larger(tokens.top, total.top - so_far)),
        squares_before(tokens.squares),
        squares_after(tokens.of(after.highest) +
                      AloneToken{total.top - so_far, total.squares}.of(after.highest)),
        split(AloneToken::parts(tokens.squares + record.of(tokens.top), tokens.top + so_far,
                                alone)) {}
  __device__ FusedFrame frame_before() const {
    return {before.highest + sum_before, before.frame + sum_before, first_m - before.frame,
            squares_before};
  }
  __device__ FusedFrame frame_after() const {
    return {after.highest + sum, after.frame + sum, first_m - after.frame, squares_after};
  }
};

/// What a chunk leaves for the products, by a warp.
__device__ __forceinline__ void write_gates(const FusedCell& cell, ChunkGates& to,
                                            const LaneScan& scan, const ChunkTops& tops, int lane) {
  const double m = tops.before.highest + tops.sum_before;
  const double top = tops.after.frame + tops.sum_before;
  const bool guard = !(tops.after.frame - tops.before.highest <= kGuard);
  float weight[2], floor[2], eps[2];
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const double mu = larger(m, scan.high[u]);
    weight[u] = expf(static_cast<float>(scan.beta[u] - top));
    floor[u] = expf(static_cast<float>(-(scan.b[u] + (guard ? mu : top))));
    eps[u] = cell.eps * (!cell.exponential ? floor[u]
                         : guard           ? 1.0F
                                           : expf(static_cast<float>(mu - top)));
    if (guard) {
      const int t = 2 * lane + u;
      const auto beta_high = static_cast<float>(scan.beta[u]), mu_high = static_cast<float>(mu);
      to.carried[t] = expf(static_cast<float>(tops.before.frame + tops.sum_before - mu));
      to.beta_high[t] = beta_high;
      to.beta_low[t] =
          fabsf(beta_high) == INFINITY ? 0.0F : static_cast<float>(scan.beta[u] - beta_high);
      to.mu_high[t] = mu_high;
      to.mu_low[t] = static_cast<float>(mu - mu_high);
    }
  }
  reinterpret_cast<float2*>(to.weight)[lane] = make_float2(weight[0], weight[1]);
  reinterpret_cast<float2*>(to.floor)[lane] = make_float2(floor[0], floor[1]);
  reinterpret_cast<float2*>(to.eps)[lane] = make_float2(eps[0], eps[1]);
  float rest[2] = {weight[0], weight[1]};
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const unsigned packed = pack_bf16(rest[0], rest[1]);
    // The 16-byte units of a row are swizzled.
    reinterpret_cast<unsigned*>(to.parts[part])[((lane / 4) ^ part) * 4 + lane % 4] = packed;
    rest[0] -= first_of(packed);
    rest[1] -= second_of(packed);
  }
  if (lane == 0) {
    to.decay = expf(static_cast<float>(tops.before.frame - tops.after.frame));
    to.guard = guard ? 1 : 0;
    to.split = tops.split;
    to.fine = !guard && AloneToken::no_floor(tops.after.highest + tops.sum) ? 1 : 0;
  }
}

/// What a backward pass wants of a chunk's gates, and what the products need for l.
__device__ __forceinline__ void save_gates(const FusedCell& cell, ChunkGates& to,
                                           const LaneScan& scan, const ChunkTops& tops,
                                           const ChunkPlace& at, int heads, int head, int lane) {
  const double m = tops.before.highest + tops.sum_before;
  const double top = tops.after.frame + tops.sum_before;
  const bool guard = !(tops.after.frame - tops.before.highest <= kGuard);
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int t = 2 * lane + u;
    const double mu = larger(m, scan.high[u]);
    if (t < at.tokens)
      cell.saved.m_of(at.first + t, head) =
          cell.exponential ? static_cast<float>(scan.b[u] + mu) : 0.0F;
    if (!guard) to.carried[t] = expf(static_cast<float>(top - mu));
  }
  if (lane > 0 || !cell.saved.has_border(at.number * kChunk)) return;
  const int begin = at.first - at.number * kChunk;
  cell.saved.state_m[cell.saved.index(begin, at.s, at.number * kChunk, heads, head)] =
      cell.exponential ? static_cast<float>(m) : 0.0F;
}

/// By one of the blocks of a cluster: copies its part of n out of the record, which blocks of the
/// next kernels may write before others have read it.
__device__ __forceinline__ void copy_first_n(const FusedCell& cell, int s, int head, int rank,
                                             int cluster, int padded_dqk) {
  const double* n = cell.record<double>(s, cell.offsets.n, std::int64_t{head} * cell.dqk);
  float* const to = cell.first_n + (std::int64_t{s} * cell.heads + head) * padded_dqk;
  const int threads = static_cast<int>(blockDim.x);
  for (int a = rank * threads + static_cast<int>(threadIdx.x); a < padded_dqk;
       a += cluster * threads)
    to[a] = n != nullptr && a < cell.dqk ? static_cast<float>(n[a]) : 0.0F;
}

/// Asks for its part of C in the record: blocks of the first segment load it while others stream
/// keys and values.
__device__ __forceinline__ void prefetch_c(const FusedCell& cell, int s, int head, int rank,
                                           int cluster) {
  const int part = cell.dqk * cell.dv / cluster;
  const float* c = cell.record<float>(s, cell.offsets.c, std::int64_t{head} * cell.dqk * cell.dv);
  if (c != nullptr && reinterpret_cast<std::uintptr_t>(c) % 16 == 0)
    prefetch_bytes(c + rank * part, part * static_cast<unsigned>(sizeof(float)));
}

/// A cluster has a sequence and head (of kParts), a warp of it one of its chunks at a time.
template <int kParts>
__global__ void __launch_bounds__(MlstmFusedPlan::kMostGateWarps * 32)
    mlstm_fused_gates_kernel(const __grid_constant__ FusedCell cell, int cluster, int padded_dqk) {
  constexpr int kMost = MlstmFusedPlan::kMostGateWarps * MlstmFusedPlan::kMostGateCluster;
  // Of the chunks that the cluster has at a time, and of all before them; of two turns.
  __shared__ FusedTotals turn_totals[2][kMost], totals_before[2];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32, rank = static_cast<int>(cluster_rank());
  const int at_once = warps * cluster, place = rank * warps + warp;
  const int pair = static_cast<int>(blockIdx.x) / cluster;
  const int heads = cell.heads / kParts, s = pair / heads, head = pair % heads;
  const int begin = cell.batch.offsets[s], length = cell.length(s);
  const int chunks = (length + kChunk - 1) / kChunk;
  const double* record_m = cell.record<double>(s, cell.offsets.m, head);
  const auto give = [&](FusedTotals& to, const FusedTotals& totals) {  // to all blocks
    if (lane < cluster) store_cluster(cluster_address(shared_address(&to), lane), totals);
  };
  cluster_sync();  // all have begun
  grid_wait();
  grid_trigger();

  double first_m = 0;
  for (int turn = 0; turn * at_once < chunks; ++turn) {
    const int number = turn * at_once + place;
    const ChunkPlace at{s, number, begin + number * kChunk, length - number * kChunk};
    const LaneGates own_gates(cell, at.first, at.tokens, head, lane);
    if (turn == 0) {  // all loads together
      const double m = record_m != nullptr && cell.exponential ? *record_m : 0.0;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        copy_first_n(cell, s, head * kParts + part, rank, cluster, padded_dqk);
        if (cell.segments > 1 && threadIdx.x == 0)
          prefetch_c(cell, s, head * kParts + part, rank, cluster);
      }
      first_m = m;
    }
    const LaneScan scan(own_gates, lane);
    const FusedTotals own = scan.totals();
    FusedTotals(&totals)[kMost] = turn_totals[turn % 2];
    give(totals[place], own);
    cluster_sync();

    AloneToken before_turn{first_m, 0}, record = before_turn;
    double sum_before = 0;
    if (record_m != nullptr) record = AloneToken::of_record(first_m);
    if (turn > 0) {
      const FusedTotals& all = totals_before[turn % 2];
      sum_before = all.log_f;
      before_turn = {all.top, all.squares};
    }
    // Of those before in this turn, neighbouring chunks are a lane's.
    constexpr int kEach = kMost / 32;
    const int each = (at_once + 31) / 32;
    AloneToken chunks_before[kEach];
    double sum = 0;
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int chunk = lane * each + u;
      if (u >= each || chunk >= place) continue;
      chunks_before[u] = {totals[chunk].top - sum, totals[chunk].squares};
      sum += totals[chunk].log_f;
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const double other = __shfl_up_sync(~0U, sum, step);
      if (lane >= step) sum += other;
    }
    double sum_here = __shfl_up_sync(~0U, sum, 1);
    sum_here = lane > 0 ? sum_before + sum_here : sum_before;
    sum_before += __shfl_sync(~0U, sum, 31);
#pragma unroll
    for (int u = 0; u < kEach; ++u) chunks_before[u].top -= sum_here;
    const ChunkTops tops(first_m, warp_total(chunks_before, before_turn), record, own, sum_before,
                         alone_below(padded_dqk));
    if (place + 1 == at_once && number + 1 < chunks)
      give(totals_before[(turn + 1) % 2], {tops.sum, tops.after.highest, tops.squares_after});
    if (at.tokens <= 0) continue;
    if (lane == 0) {
      FusedFrame* frames = cell.frame(s, head) + number;
      frames[0] = tops.frame_before();
      if (number + 1 == chunks) frames[1] = tops.frame_after();
    }
    ChunkGates& gates = cell.gates[head * cell.all_chunks + cell.first_chunk(s) + number];
    write_gates(cell, gates, scan, tops, lane);
    if (cell.saved.any()) save_gates(cell, gates, scan, tops, at, heads, head, lane);
  }
}

}  // namespace
}  // namespace xlstm::ops::cuda::sm90
