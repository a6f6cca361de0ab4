#include "ops/cuda/device/mlstm_ring.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sm90/mlstm_steps.cuh"
#include "ops/cuda/sm90/mlstm_steps.hpp"

namespace xlstm::ops::cuda::sm90 {
namespace {

// As in mlstm_steps.cu each block of a cluster has some rows of C of one sequence and head, and C
// streams; but at most steps nothing is written. The tokens in the ring are dealt out among the
// blocks, whole ones, so that each row of the ring is read once: a block adds w_j (q k_j) v_j of
// its tokens to what its rows of C give, and all goes to the first block together. At the step that
// fills the ring every block reads v of all tokens, and writes its rows of C.
constexpr int kThreads = kStepThreads;
constexpr int kSlices = 8, kPart = 8, kParts = 3;
constexpr int kMost = MlstmRing::kMostTokens;
constexpr int kOwn = kMost / kSlices;  // tokens of a block
constexpr int kKeys = 4;               // numbers of a key that a thread has
constexpr int kMostKeys = kKeys * kThreads;
constexpr int kMostRows = kMostKeys / kSlices;  // of C
static_assert(kMost % kSlices == 0 && kMostRows <= kThreads);

__device__ __forceinline__ float4 weighted(float weight, float4 v, float4 sum) {
  return {fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y), fmaf(weight, v.z, sum.z),
          fmaf(weight, v.w, sum.w)};
}

__global__ void __launch_bounds__(kThreads)
    mlstm_ring_steps_kernel(MlstmStepsCall step, MlstmRing ring) {
  using Tile = StepsTile<kSlices, kPart, kParts>;
  __shared__ float q[kMostKeys], factors[3], partial[2][kThreads / kWarp];
  __shared__ float partial_scores[kOwn][kThreads / kWarp];
  __shared__ float sums[kMostColumns];
  __shared__ float4 keys[kMostRows][kMost / 4];  // w_j k_j of the block's rows, while C is written
  __shared__ alignas(8) std::uint64_t sent;      // what the others have in `others`
  const int thread = threadIdx.x, lane = thread % kWarp;
  const int slice = static_cast<int>(blockIdx.x) % kSlices;
  const int head = static_cast<int>(blockIdx.x) / kSlices % step.heads;
  const int s = static_cast<int>(blockIdx.x) / kSlices / step.heads;
  // The batch is on the card before the pass begins.
  std::byte* const slot = step.batch.slots[s];
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
    barrier_expect(all_sent, (kSlices - 1) * (quads * 16 + 4));
  }
  __syncwarp();
  cluster_arrive_relaxed();
  if (!step.has_norm) grid_wait();
  const auto record = [&](std::size_t offset, std::int64_t floats) {
    return reinterpret_cast<float*>(slot + offset) + floats;
  };
  const int most = (step.dqk + kSlices - 1) / kSlices, first = slice * most;
  const int rows = max(0, min(most, step.dqk - first));
  const int group = thread / quads, column = thread % quads * 4;
  const bool live = group < groups, loads = live && slot != nullptr;
  float* const c = record(step.offsets.c,
                          (static_cast<std::int64_t>(head) * step.dqk + first) * step.dv + column);
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
  float* const n = record(step.offsets.n, static_cast<std::int64_t>(head) * step.dqk + first);
  const float old_n = has_row && slot != nullptr ? n[thread] : 0.0F;
  float* const m = record(step.offsets.m, head);
  const double old_m = slot != nullptr && step.has_stabiliser ? *m : 0.0;
  const HeadRing own(ring, slot, step.offsets.pending, head);
  const auto capacity = static_cast<int>(ring.tokens);
  const int before = slot != nullptr ? *own.waiting : 0;
  const float old_decay = before > 0 ? *own.decay : 1.0F;
  const bool folds = slot != nullptr && before + 1 == capacity;

  // The block's tokens of the ring; the step's own comes later.
  float key[kOwn][kKeys], weight[kOwn] = {};
  float4 value[kOwn] = {};
#pragma unroll
  for (int u = 0; u < kOwn; ++u) {
    const int j = slice + u * kSlices;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      const int a = i * kThreads + thread;
      key[u][i] = j < before && a < step.dqk ? own.k[j * step.dqk + a] : 0.0F;
    }
    if (j >= before) continue;
    weight[u] = own.weights[j];
    if (group == 0) value[u] = *reinterpret_cast<const float4*>(own.v + j * step.dv + column);
  }

  grid_wait();
  grid_trigger();
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    const int a = i * kThreads + thread;
    if (a < step.dqk) q[a] = step.q.at(t, head * step.dqk + a);
  }
  const float own_k = has_row ? step.k.at(t, head * step.dqk + first + thread) : 0.0F;
  float4 own_v = {};
  if (live)
    own_v = {step.v.at(t, head * step.dv + column), step.v.at(t, head * step.dv + column + 1),
             step.v.at(t, head * step.dv + column + 2), step.v.at(t, head * step.dv + column + 3)};
#pragma unroll
  for (int u = 0; u < kOwn; ++u) {
    if (slice + u * kSlices != before) continue;
    value[u] = own_v;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      const int a = i * kThreads + thread;
      if (a < step.dqk) key[u][i] = step.k.at(t, head * step.dqk + a);
    }
    if (slot != nullptr && !folds && group == 0)
      *reinterpret_cast<float4*>(own.v + before * step.dv + column) = own_v;
  }
  if (slot != nullptr && !folds && has_row) own.k[before * step.dqk + first + thread] = own_k;
  double new_m = 0;
  if (thread < kWarp) {
    // Weights are relative to the unrounded m: where nothing new is larger, F is exactly 1 and C
    // collects no rounding errors.
    const double f = step.log_f.row(t)[head], i = step.i.row(t)[head];
    const double decayed = (f < -1e4 ? -1e4 : f) + old_m;
    new_m = step.has_stabiliser ? larger(decayed, i) : 0.0;
    const double exponent = lane == 0 ? decayed - new_m : lane == 1 ? i - new_m : -new_m;
    if (lane < 3) factors[lane] = static_cast<float>(exp(exponent));
  }
  __syncthreads();
  const float forget = factors[0], input = factors[1], floor = factors[2];
  const float decay = before > 0 ? forget * old_decay : forget;

  const float new_n = fmaf(input, own_k, forget * old_n);
  if (has_row && slot != nullptr) n[thread] = new_n;
  // The rows of C, whose sum is that of what they were.
  float4 sum = {};
  const auto walk = [&](auto&& change) {
    for (int row = group, from = thread; row < rows;) {
      copy();
      wait_for_copies<kParts - 1>();
#pragma unroll
      for (int r = 0; r < kPart; ++r, row += groups) {
        if (!loads || row >= rows) continue;
        const float4 x = state[from + r * kThreads];
        sum = weighted(q[first + row], x, sum);
        change(row, x);
      }
      from = from + kPart * kThreads < kParts * kPart * kThreads ? from + kPart * kThreads : thread;
    }
  };
  if (folds) {
    const auto weight_of = [&](int j) {
      return j == before ? input : j < before ? forget * own.weights[j] : 0.0F;
    };
    for (int place = thread; place < rows * kMost; place += kThreads) {
      const int j = place / rows, row = place % rows;
      const float from = j < before    ? own.k[j * step.dqk + first + row]
                         : j == before ? step.k.at(t, head * step.dqk + first + row)
                                       : 0.0F;
      (&keys[row][0].x)[j] = weight_of(j) * from;
    }
    float4 v[kMost];
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      v[j] = {0, 0, 0, 0};
      if (live && j < before) v[j] = *reinterpret_cast<const float4*>(own.v + j * step.dv + column);
      if (j == before) v[j] = own_v;
    }
    __syncthreads();
    walk([&](int row, float4 x) {
      x = {decay * x.x, decay * x.y, decay * x.z, decay * x.w};
#pragma unroll
      for (int j = 0; j < kMost; j += 4) {
        if (j >= capacity) break;
        const float4 k = keys[row][j / 4];
        x = weighted(k.x, v[j], x);
        x = weighted(k.y, v[j + 1], x);
        x = weighted(k.z, v[j + 2], x);
        x = weighted(k.w, v[j + 3], x);
      }
      __stcs(reinterpret_cast<float4*>(c + static_cast<std::int64_t>(row) * step.dv), x);
    });
  } else {
    walk([](int, float4) {});
  }
  const float l = block_sum(has_row ? new_n * q[first + thread] : 0.0F, partial[0]);
#pragma unroll
  for (int u = 0; u < kOwn; ++u) {
    float score = 0;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      const int a = i * kThreads + thread;
      if (a < step.dqk) score = fmaf(q[a], key[u][i], score);
    }
    score = block_sum(score, partial_scores[u]);
    weight[u] = score * (slice + u * kSlices == before ? input : forget * weight[u]);
  }
  float h[4] = {decay * sum.x, decay * sum.y, decay * sum.z, decay * sum.w};
  if (groups > 1) {
    if (live)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[group * step.dv + column + j] = h[j];
    __syncthreads();
    if (group == 0)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        for (int g = 1; g < groups; ++g) h[j] += sums[g * step.dv + column + j];
  }
#pragma unroll
  for (int u = 0; u < kOwn; ++u) {
    if (slice + u * kSlices > before) continue;  // nothing is multiplied by zero: NaN stay away
    const float4 x = weighted(weight[u], value[u], {h[0], h[1], h[2], h[3]});
    h[0] = x.x;
    h[1] = x.y;
    h[2] = x.z;
    h[3] = x.w;
  }
  cluster_wait();  // the first block expects what the others send
  if (slice > 0) {
    if (group == 0) send_first(&others[slice - 1].h[column], h, all_sent);
    if (thread == 0) send_first(&others[slice - 1].l, l, all_sent);
    return;
  }
  barrier_wait(all_sent, 0);  // so the others have read m and the ring's weights, too
  if (slot != nullptr) {
    if (thread == 0) {
      *m = static_cast<float>(new_m);
      *own.decay = decay;
      *own.waiting = folds ? 0 : before + 1;
    }
    if (!folds && thread <= before)
      own.weights[thread] = thread < before ? forget * own.weights[thread] : input;
  }
  finish_step<kSlices>(step, others, t, head * step.dv, column, group == 0, l, floor, h, partial);
}

}  // namespace

bool serves_mlstm_ring_steps(const MlstmArgs& cell) {
  return serves_mlstm_steps(cell) && cell.q.dim(1) / cell.i.dim(1) <= kMostKeys &&
         cell.state.pending % 16 == 0;
}

void mlstm_ring_steps(Context& context, const MlstmArgs& cell, const HeadNormArgs* norm) {
  const MlstmStepsCall step = mlstm_steps_call(cell, norm);
  launch(context, "mlstm_ring_steps",
         {.x = cell.batch.sequences() * step.heads * kSlices,
          .threads = kThreads,
          .shared = sizeof(StepsTile<kSlices, kPart, kParts>),
          .cluster = kSlices,
          .overlap = true},
         mlstm_ring_steps_kernel, step, MlstmRing(step.heads, step.dqk, step.dv));
}

}  // namespace xlstm::ops::cuda::sm90
