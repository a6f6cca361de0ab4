#include "ops/cuda/sm90/mlstm_steps.hpp"

#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/async_copy.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/cuda/sm90/mlstm_steps.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

// Each block of a cluster has some rows of C of one sequence and head, which lie together in
// memory. C streams: a thread has four columns, copies its own part of a few rows ahead into shared
// memory, and meets the others only when all rows are done. Several blocks share a multiprocessor,
// so that copies and stores are under way at any time; with the norm, also before the kernels
// before this one are done. Then the last that wrote C is one token ago, because the products of a
// layer lie between; calls of the cell alone may follow each other.
constexpr int kThreads = 128, kMostColumns = 4 * kThreads;

/// To the first block of the cluster.
template <class Value>
__device__ __forceinline__ void send_first(void* to, Value value, SharedAddress barrier) {
  send(cluster_address(cuda::shared_address(to), 0), value, cluster_address(barrier, 0));
}

/// @tparam kSlices  blocks of a cluster
/// @tparam kPart    rows that a thread copies at once
/// @tparam kParts   of those, under way at a time
template <int kSlices, int kPart, int kParts>
struct StepsTile {
  float4 state[kParts * kPart * kThreads];  // a thread reads what it has copied
  struct Sums {
    float h[kMostColumns];
    double l, unused;
  } others[kSlices - 1];  // of the other blocks, in the first
};

/// The first block's part once it has the sums of the others: h or what the norm makes of it.
/// @param first   of the head's columns
/// @param writes  whether the thread has the four columns from `column` on
template <int kSlices, class Sums>
__device__ __forceinline__ void finish_step(const MlstmStepsCall& step, const Sums& others, int t,
                                            int first, int column, bool writes, double n_q,
                                            float floor, const float (&sum)[4],
                                            float (&partial)[2][kThreads / kWarp]) {
  for (int b = 0; b < kSlices - 1; ++b) n_q += others[b].l;
  const auto l = static_cast<float>(step.scale * n_q);
  float out = step.scale;
  if (step.normalise) {
    const float magnitude = fabsf(l);  // the comparison keeps a NaN
    out *= 1.0F / ((magnitude <= floor ? floor : magnitude) + step.cell_eps);
  }
  float h[4] = {};
  if (writes)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      h[j] = sum[j];
      for (int b = 0; b < kSlices - 1; ++b) h[j] += others[b].h[column + j];
      h[j] *= out;
    }
  const int output = first + column;
  if (step.has_norm) {
    const auto count = static_cast<float>(step.dv);
    const float mean = block_sum((h[0] + h[1]) + (h[2] + h[3]), partial[1]) / count;
    float second = 0;
    if (writes)
#pragma unroll
      for (int j = 0; j < 4; ++j) second = fmaf(h[j] - mean, h[j] - mean, second);
    const float scale = reciprocal_root(block_sum(second, partial[0]) / count, step.norm_eps);
    if (writes)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        h[j] = sigmoid(step.o.at(t, output + j)) * fmaf((h[j] - mean) * scale,
                                                        step.norm_w.at(output + j),
                                                        step.norm_b.at_or(0.0F, output + j));
  }
  if (writes)
#pragma unroll
    for (int j = 0; j < 4; ++j) step.y.set(t, output + j, h[j]);
}

template <int kSlices, int kPart, int kParts>
__global__ void __launch_bounds__(kThreads) mlstm_steps_kernel(MlstmStepsCall step) {
  using Tile = StepsTile<kSlices, kPart, kParts>;
  __shared__ float q[kThreads], k[kThreads], partial[2][kThreads / kWarp], sums[kMostColumns];
  __shared__ double factors[3], partial_l[kThreads / kWarp];
  __shared__ alignas(8) std::uint64_t sent;  // what the others have in `others`
  const int thread = threadIdx.x, lane = thread % kWarp;
  const int slice = static_cast<int>(blockIdx.x) % kSlices;
  const int head = static_cast<int>(blockIdx.x) / kSlices % step.heads;
  const int s = static_cast<int>(blockIdx.x) / kSlices / step.heads;
  // The batch is on the card before the pass begins.
  const int t = step.batch.offsets[s];
  if (step.batch.offsets[s + 1] - t != 1) {
    grid_wait();
    return;
  }
  const int quads = step.dv / 4, groups = kThreads / quads;
  const SharedAddress all_sent = cuda::shared_address(&sent);
  if (slice == 0 && thread == 0) {
    barrier_init(all_sent, 1);
    barrier_fence_init();
    barrier_expect(all_sent, (kSlices - 1) * (quads * 16 + 8));
  }
  __syncwarp();
  cluster_arrive_relaxed();
  if (!step.has_norm) grid_wait();
  std::byte* const slot = step.batch.slots[s];
  const int most = (step.dqk + kSlices - 1) / kSlices, first = slice * most;
  const int rows = max(0, min(most, step.dqk - first));
  const int group = thread / quads, column = thread % quads * 4;
  const bool live = group < groups, loads = live && slot != nullptr;
  const std::int64_t first_of_all = static_cast<std::int64_t>(head) * step.dqk + first;
  float* const c =
      reinterpret_cast<float*>(slot + step.offsets.c) + first_of_all * step.dv + column;
  XLSTM_DYNAMIC_SHARED(Tile, tile);
  float4* const state = tile->state;
  auto& others = tile->others;
  const std::uint64_t policy = evict_first_policy();
  int row_to = group, to = thread;
  const auto copy = [&] {
#pragma unroll
    for (int r = 0; r < kPart; ++r, row_to += groups)
      if (loads && row_to < rows)
        async_copy(sm90::shared_address(state + to + r * kThreads),
                   c + static_cast<std::int64_t>(row_to) * step.dv, true, policy);
    commit_copies();
    to = to + kPart * kThreads < kParts * kPart * kThreads ? to + kPart * kThreads : thread;
  };
  for (int part = 0; part < kParts - 1; ++part) copy();
  const bool has_row = thread < rows;
  double* const n = reinterpret_cast<double*>(slot + step.offsets.n) + first_of_all;
  const double old_n = has_row && slot != nullptr ? n[thread] : 0.0;
  double* const m = reinterpret_cast<double*>(slot + step.offsets.m) + head;
  const double old_m = slot != nullptr && step.has_stabiliser ? *m : 0.0;

  grid_wait();
  grid_trigger();
  float own_q = 0, own_k = 0, v[4] = {};
  if (has_row) {
    own_q = step.q.at(t, head * step.dqk + first + thread);
    own_k = step.k.at(t, head * step.dqk + first + thread);
  }
  if (live)
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = step.v.at(t, head * step.dv + column + j);
  double new_m = 0;
  if (thread < kWarp) {
    // Where nothing new is larger, F is exactly 1 and C collects no rounding errors.
    const double f = step.log_f.row(t)[head], i = step.i.row(t)[head];
    const double decayed = (f < -1e4 ? -1e4 : f) + old_m;
    new_m = step.has_stabiliser ? larger(decayed, i) : 0.0;
    const double exponent = lane == 0 ? decayed - new_m : lane == 1 ? i - new_m : -new_m;
    if (lane < 3) factors[lane] = exp(exponent);
  }
  q[thread] = own_q;
  k[thread] = own_k;
  __syncthreads();
  const auto forget = static_cast<float>(factors[0]), input = static_cast<float>(factors[1]),
             floor = static_cast<float>(factors[2]);

  const double new_n = fma(factors[1], double{own_k}, factors[0] * old_n);
  if (has_row && slot != nullptr) n[thread] = new_n;
  float sum[4] = {};
  for (int row = group, from = thread; row < rows;) {
    copy();
    wait_for_copies<kParts - 1>();
#pragma unroll
    for (int r = 0; r < kPart; ++r, row += groups) {
      if (!live || row >= rows) continue;
      const float from_k = input * k[row], from_q = q[row];
      float4 x = {};
      if (slot != nullptr) x = state[from + r * kThreads];
      x = {fmaf(from_k, v[0], forget * x.x), fmaf(from_k, v[1], forget * x.y),
           fmaf(from_k, v[2], forget * x.z), fmaf(from_k, v[3], forget * x.w)};
      sum[0] = fmaf(from_q, x.x, sum[0]);
      sum[1] = fmaf(from_q, x.y, sum[1]);
      sum[2] = fmaf(from_q, x.z, sum[2]);
      sum[3] = fmaf(from_q, x.w, sum[3]);
      if (slot != nullptr)
        __stcs(reinterpret_cast<float4*>(c + static_cast<std::int64_t>(row) * step.dv), x);
    }
    from = from + kPart * kThreads < kParts * kPart * kThreads ? from + kPart * kThreads : thread;
  }
  const double n_q = block_sum(has_row ? new_n * double{own_q} : 0.0, partial_l);
  if (groups > 1) {
    if (live)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[group * step.dv + column + j] = sum[j];
    __syncthreads();
    if (group == 0)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        for (int g = 1; g < groups; ++g) sum[j] += sums[g * step.dv + column + j];
  }
  cluster_wait();  // the first block expects what the others send
  if (slice > 0) {
    if (group == 0)
      send_first(&others[slice - 1].h[column], make_float4(sum[0], sum[1], sum[2], sum[3]),
                 all_sent);
    if (thread == 0) send_first(&others[slice - 1].l, n_q, all_sent);
    return;
  }
  barrier_wait(all_sent, 0);  // so the others have read m, too
  if (thread == 0 && slot != nullptr) *m = new_m;
  finish_step<kSlices>(step, others, t, head * step.dv, column, group == 0, n_q, floor, sum,
                       partial);
}

constexpr int kSlices = 8, kPart = 8, kParts = 3;

}  // namespace

bool serves_mlstm_steps(const MlstmArgs& cell) {
  const std::int64_t heads = cell.i.dim(1), dqk = cell.q.dim(1) / heads, dv = cell.v.dim(1) / heads;
  if (dqk > kSlices * kThreads || dv % 4 != 0 || dv > kMostColumns || cell.state.c % 16 != 0)
    return false;
  for (const std::byte* slot : cell.batch.slots)
    if (reinterpret_cast<std::uintptr_t>(slot) % 16 != 0) return false;
  return true;
}

void mlstm_steps(Context& context, const MlstmArgs& cell, const HeadNormArgs* norm) {
  const MlstmStepsCall step = mlstm_steps_call(cell, norm);
  launch(context, "mlstm_steps",
         {.x = cell.batch.sequences() * step.heads * kSlices,
          .threads = kThreads,
          .shared = sizeof(StepsTile<kSlices, kPart, kParts>),
          .cluster = kSlices,
          .overlap = true},
         mlstm_steps_kernel<kSlices, kPart, kParts>, step);
}

}  // namespace xlstm::ops::cuda::sm90
