#pragma once
// The scan of the gates of an mlstm call, which also moves n and m over sequences of one token.
// Include it once.

#include <cstdint>

#include "ops/cuda/device/alone_token.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/mlstm_cell.cuh"

namespace xlstm::ops::cuda {
namespace {

// Of a block, for short sequences and for long ones.
constexpr int kGateThreads = 256, kMostGateThreads = 512;
constexpr int kMostGateWarps = kMostGateThreads / kWarp;

/// Writes where the chunks of sequence s are in the list of all.
__device__ void list_chunks(const Cell& cell, std::int64_t s, std::int64_t length) {
  __shared__ std::int64_t partial[kMostGateWarps];
  const std::int32_t* offsets = cell.batch.offsets;
  constexpr std::int64_t kOneSequence = std::int64_t{1} << 32;  // counts both in one number
  std::int64_t before = 0;
  for (std::int64_t r = threadIdx.x; r < s; r += blockDim.x) {
    const std::int64_t chunks = cell.chunks_of(offsets[r + 1] - offsets[r]);
    if (chunks > 0) before += chunks + kOneSequence;
  }
  for (int bits = kWarp / 2; bits > 0; bits /= 2) before += __shfl_xor_sync(~0U, before, bits);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = before;
  __syncthreads();
  before = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) before += partial[w];

  const std::int64_t first = before % kOneSequence, chunks = cell.chunks_of(length);
  if (threadIdx.x == 0) {
    cell.firsts[s] = static_cast<std::int32_t>(first);
    if (chunks > 0) cell.longs[before / kOneSequence] = static_cast<std::int32_t>(s);
  }
  for (std::int64_t c = threadIdx.x; c < chunks; c += blockDim.x)
    cell.chunk_sequences[first + c] = static_cast<std::int32_t>(s);
}

/// Specification A.4 (1): moves n and m over the only token of sequence s. By the first
/// kGateThreads threads, however many there are: sums have one order.
template <class In>
__device__ void advance(const Cell& cell, std::int64_t s, std::int64_t head, std::int64_t t) {
  __shared__ double step[3], partial[kMostGateWarps];
  if (threadIdx.x == 0) {
    // Where nothing new is larger, F is exactly 1 and C collects no rounding errors.
    const double decayed = Cell::log_forget(cell.log_f.row(t)[head]) + cell.first_m(s, head);
    const double i = cell.i.row(t)[head];
    const double m = cell.has_stabiliser ? larger(decayed, i) : 0.0;
    if (cell.saved.any()) cell.saved.m_of(t, head) = static_cast<float>(m);
    step[0] = exp(decayed - m);
    step[1] = exp(i - m);
    step[2] = exp(-m);
    double* record = cell.record_m(s, head);
    if (record != nullptr) *record = m;
  }
  __syncthreads();
  const double forget = step[0], input = step[1], floor = step[2];

  const In* q = cell.q.row<In>(t) + head * cell.dqk;
  const In* k = cell.k.row<In>(t) + head * cell.dqk;
  double* n = cell.record_n(s, head);
  double sum = 0;
  for (std::int64_t a = threadIdx.x; a < cell.dqk && threadIdx.x < kGateThreads;
       a += kGateThreads) {
    const double value = fma(input, double{to_float(k[a])}, forget * (n != nullptr ? n[a] : 0.0));
    if (n != nullptr) n[a] = value;
    sum = fma(value, double{to_float(q[a])}, sum);
  }
  const auto l = static_cast<float>(cell.scale * block_sum(sum, partial));
  if (threadIdx.x == 0) {
    cell.gate(kForget, head)[t] = static_cast<float>(forget);
    cell.gate(kInput, head)[t] = static_cast<float>(input);
    cell.gate(kOut, head)[t] = cell.scale * cell.reciprocal(l, static_cast<float>(floor));
    if (cell.saved.any()) cell.saved.l_of(t, head) = l;
  }
}

/// Scans the gates of a longer sequence, a chunk a warp, kOwn tokens of it a lane, and moves m over
/// them. In memory, neighbouring lanes have neighbouring tokens: a row of a warp's own in shared
/// memory lies between.
template <int kOwn>
__device__ void scan(const Cell& cell, std::int64_t s, std::int64_t head, std::int64_t begin,
                     std::int64_t length) {
  constexpr int kTokens = kOwn * kWarp;  // of a chunk
  constexpr bool kSplits = kTokens == MlstmPlan::kTensorChunk;
  struct alignas(kOwn * sizeof(float)) Own {
    float at[kOwn];
  };
  __shared__ Own rows[2][kMostGateWarps][kWarp];
  // Of whole chunks: b, beta, and the squares of e^beta in those of the largest.
  __shared__ double sums[kMostGateWarps], highs[kMostGateWarps];
  __shared__ float squares[kMostGateWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  Own(&own)[kWarp] = rows[0][warp];
  Own(&own_f)[kWarp] = rows[1][warp];
  double m = cell.first_m(s, head);
  AloneToken alone;  // exponents as those of m
  if (cell.batch.slots[s] != nullptr) alone = AloneToken::of_record(m);

  // Beyond the end: log f = 0, i = -inf, which change nothing.
  float i_next[kOwn], f_next[kOwn];
  const auto load = [&](std::int64_t base) {
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
      const std::int64_t at = base + warp * kTokens + u * kWarp + lane;
      i_next[u] = at < length ? cell.i.row(begin + at)[head] : -INFINITY;
      f_next[u] = at < length ? cell.log_f.row(begin + at)[head] : 0.0F;
    }
  };
  load(0);
  for (std::int64_t base = 0; base < length; base += warps * kTokens) {
    const std::int64_t chunk = base + warp * kTokens;
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
      const int t = u * kWarp + lane;
      own[t / kOwn].at[t % kOwn] = i_next[u];
      own_f[t / kOwn].at[t % kOwn] = f_next[u];
    }
    load(base + warps * kTokens);
    __syncwarp();
    double b[kOwn], beta[kOwn];
    {
      const Own i = own[lane], f = own_f[lane];
#pragma unroll
      for (int u = 0; u < kOwn; ++u) {
        beta[u] = i.at[u];
        b[u] = Cell::log_forget(f.at[u]);
      }
    }
    __syncwarp();
#pragma unroll
    for (int u = 1; u < kOwn; ++u) b[u] += b[u - 1];
    double sum = b[kOwn - 1];
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0U, sum, step);
      if (lane >= step) sum += other;
    }
    const double b_before = __shfl_up_sync(~0U, sum, 1);
    double high = 0;
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
      if (lane > 0) b[u] += b_before;
      beta[u] -= b[u];
      high = u == 0 ? beta[0] : larger(high, beta[u]);
    }
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0U, high, step);
      if (lane >= step) high = larger(high, other);
    }
    const double high_before = __shfl_up_sync(~0U, high, 1);
    float square = 0;
    if constexpr (kSplits) {
      const double highest = __shfl_sync(~0U, high, kWarp - 1);
#pragma unroll
      for (int u = 0; u < kOwn; ++u) square += AloneToken::square(beta[u], highest);
      square = warp_sum(square);
    }
    if (lane == kWarp - 1) {
      sums[warp] = b[kOwn - 1];
      highs[warp] = high;
      squares[warp] = square;
    }
    __syncthreads();
    double m_chunk = m, mu_last = 0, sum_before = 0;
    AloneToken chunk_of_lane[1];  // of those before the warp's, and then of all
    for (int w = 0; w < warps; ++w) {
      const double mu = cell.has_stabiliser ? larger(m, highs[w]) : -sums[w];
      if (w == warp) {
        m_chunk = m;
        mu_last = mu;
      }
      if (kSplits && w == lane) chunk_of_lane[0] = {highs[w] - sum_before, squares[w]};
      sum_before += sums[w];
      m = sums[w] + mu;
    }
    bool split = false;
    if constexpr (kSplits) {
      const AloneToken before[1] = {lane < warp ? chunk_of_lane[0] : AloneToken()};
      split = AloneToken::parts(warp_total(before, alone).squares,
                                cell.has_stabiliser ? m_chunk : 0) > 0;
      alone = warp_total(chunk_of_lane, alone);
      alone.top += sum_before;
    }
    __syncthreads();

    high = lane > 0 ? larger(m_chunk, high_before) : m_chunk;
    Own results[kDecay];
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
      high = larger(high, beta[u]);
      const double mu = cell.has_stabiliser ? high : -b[u];
      const auto beta_high = static_cast<float>(beta[u]), mu_high = static_cast<float>(mu);
      results[kBetaHigh].at[u] = beta_high;
      results[kBetaLow].at[u] =
          fabsf(beta_high) == INFINITY ? 0.0F : static_cast<float>(beta[u] - beta_high);
      results[kMuHigh].at[u] = mu_high;
      results[kMuLow].at[u] = static_cast<float>(mu - mu_high);
      results[kCarried].at[u] = cell.scale * expf(static_cast<float>(m_chunk - mu));
      results[kKept].at[u] = expf(static_cast<float>(beta[u] - mu_last));
      results[kFloor].at[u] = expf(static_cast<float>(-(b[u] + mu)));
      const std::int64_t at = chunk + lane * kOwn + u;
      if (cell.saved.any() && at < length)
        cell.saved.m_of(begin + at, head) = static_cast<float>(b[u] + mu);
    }
    if (lane == 0 && chunk < length) {
      const float decay = expf(static_cast<float>(m_chunk - mu_last));
      cell.gate(kDecay, head)[begin + chunk] = split ? -decay : decay;
    }
    if (lane == 0 && chunk < length && cell.saved.has_border(chunk))
      cell.saved.state_m[cell.saved.index(begin, s, chunk, cell.heads, head)] =
          static_cast<float>(m_chunk);
#pragma unroll
    for (int row = 0; row < kDecay; ++row) {
      own[lane] = results[row];
      __syncwarp();
#pragma unroll
      for (int u = 0; u < kOwn; ++u) {
        const int t = u * kWarp + lane;
        if (chunk + t < length)
          cell.gate(row, head)[begin + chunk + t] = own[t / kOwn].at[t % kOwn];
      }
      __syncwarp();
    }
  }
  double* record = cell.record_m(s, head);
  if (threadIdx.x == 0 && record != nullptr) *record = m;
}

/// @tparam kOwn  tokens of a chunk of `cell` that a lane has
template <class In, int kOwn>
__global__ void __launch_bounds__(kMostGateThreads, 1) gates_kernel(Cell cell) {
  const std::int64_t s = blockIdx.x / cell.heads, head = blockIdx.x % cell.heads;
  const std::int64_t begin = cell.batch.offsets[s], length = cell.batch.offsets[s + 1] - begin;
  if (head == 0) list_chunks(cell, s, length);
  if (length == 1) {
    if (cell.steps) advance<In>(cell, s, head, begin);
    return;
  }
  if (cell.longer) scan<kOwn>(cell, s, head, begin, length);
}

}  // namespace
}  // namespace xlstm::ops::cuda
