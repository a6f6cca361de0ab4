#include "ops/cuda/mlstm_ring.hpp"

#include <cmath>

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/mlstm_ring.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mlstm_cell.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMost = MlstmRing::kMostTokens;

constexpr int kRows = 16;  // of C, of a warp at a time
constexpr int kBlockRows = kRows * kWarps;

/// What the first kernel of a step leaves for the second, of a sequence and head.
struct MlstmRingStep {
  float scores[kMost];     // w_j (q k_j) of the tokens in the ring, that of the step among them
  float decay, out;        // s / N
  std::int32_t tokens;     // in the ring
  std::uint32_t position;  // of C once it holds them, where C is bf16
};
static_assert(sizeof(MlstmRingStep) == (kMost + 4) * 4);

struct Steps {
  Rows q, k, v, h;
  Matrix<const float> i, log_f;
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  MlstmRing ring;
  float scale, eps;
  bool has_stabiliser, normalise;
  MlstmRingStep* results;  // [sequences, heads]
};

/// Moves n, m and the ring over the token of a sequence of one. A block a sequence and head.
template <class In>
__global__ void __launch_bounds__(kThreads) ring_gates_kernel(Steps step) {
  __shared__ double factors[3], partial[kWarps];
  const MlstmRing& ring = step.ring;
  const std::int64_t s = blockIdx.x / ring.heads, head = blockIdx.x % ring.heads;
  const std::int64_t t = step.batch.offsets[s];
  if (step.batch.offsets[s + 1] - t != 1) return;
  std::byte* const slot = step.batch.slots[s];
  const HeadRing own(ring, slot, step.offsets.pending, head);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int before = slot != nullptr ? *own.waiting : 0;
  double* const m = reinterpret_cast<double*>(slot + step.offsets.m) + head;
  if (threadIdx.x == 0) {
    // Where nothing new is larger, F is exactly 1 and C collects no rounding errors.
    const double old = slot != nullptr && step.has_stabiliser ? *m : 0.0;
    const double decayed = Cell::log_forget(step.log_f.row(t)[head]) + old;
    const double i = step.i.row(t)[head];
    const double now = step.has_stabiliser ? larger(decayed, i) : 0.0;
    factors[0] = exp(decayed - now);
    factors[1] = exp(i - now);
    factors[2] = exp(-now);
    if (slot != nullptr) *m = now;
  }
  __syncthreads();
  const auto forget = static_cast<float>(factors[0]), input = static_cast<float>(factors[1]),
             floor = static_cast<float>(factors[2]);

  const In* q = step.q.row<In>(t) + head * ring.dqk;
  const In* k = step.k.row<In>(t) + head * ring.dqk;
  const In* v = step.v.row<In>(t) + head * ring.dv;
  double* n = reinterpret_cast<double*>(slot + step.offsets.n) + head * ring.dqk;
  double sum = 0;
  for (std::int64_t a = threadIdx.x; a < ring.dqk; a += kThreads) {
    const float key = to_float(k[a]);
    const double value = fma(factors[1], double{key}, factors[0] * (slot != nullptr ? n[a] : 0.0));
    sum = fma(value, double{to_float(q[a])}, sum);
    if (slot == nullptr) continue;
    n[a] = value;
    own.k[before * ring.dqk + a] = key;
  }
  if (slot != nullptr)
    for (std::int64_t x = threadIdx.x; x < ring.dv; x += kThreads)
      own.v[before * ring.dv + x] = to_float(v[x]);

  MlstmRingStep& result = step.results[s * ring.heads + head];
  for (int j = warp; j <= before; j += kWarps) {
    float score = 0;
    for (std::int64_t a = lane; a < ring.dqk; a += kWarp)
      score = fmaf(to_float(q[a]), j == before ? to_float(k[a]) : own.k[j * ring.dqk + a], score);
    score = warp_sum(score);
    if (lane != 0) continue;
    const float weight = j == before ? input : forget * own.weights[j];
    if (slot != nullptr) own.weights[j] = weight;
    result.scores[j] = weight * score;
  }
  const auto l = static_cast<float>(step.scale * block_sum(sum, partial));
  if (threadIdx.x != 0) return;
  const float decay = before > 0 ? forget * *own.decay : forget;
  const float magnitude = fabsf(l);  // the comparison keeps a NaN
  result.decay = decay;
  result.out = step.normalise ? step.scale / ((magnitude <= floor ? floor : magnitude) + step.eps)
                              : step.scale;
  result.tokens = before + 1;
  if (slot == nullptr) return;
  *own.decay = decay;
  const bool folds = before + 1 == ring.tokens;
  *own.waiting = folds ? 0 : before + 1;  // the next kernel makes room
  if (!folds || step.offsets.c_type == DType::f32) return;
  result.position = *own.position + static_cast<std::uint32_t>(ring.tokens);
  *own.position = result.position;
}

/// What C of a row and of the columns of a lane becomes.
/// @param keys    w_j k_j
/// @param values  v_j
template <int kKeys>
__device__ float folded(float c, float decay, const float (&keys)[kMost][kKeys], int row,
                        const float (&values)[kMost][kWarp], int lane, int tokens) {
  c *= decay;
#pragma unroll 2
  for (int j = 0; j < tokens; ++j) c = fmaf(keys[j][row], values[j][lane], c);
  return c;
}

/// w_j k_j of the rows from a0 on.
template <int kKeys>
__device__ void load_keys(float (&keys)[kMost][kKeys], const HeadRing& ring, int tokens,
                          std::int64_t dqk, std::int64_t a0, int rows) {
  for (int j = threadIdx.x / kKeys; j < tokens; j += kThreads / kKeys) {
    const int row = static_cast<int>(threadIdx.x) % kKeys;
    if (row < rows) keys[j][row] = ring.weights[j] * ring.k[j * dqk + a0 + row];
  }
}

/// h of a sequence of one token, and C if the ring is full, in one pass over C. A block has kWarp
/// columns, a warp every kWarps-th row of them; memory bound, so many rows are on their way at
/// once.
template <class In, class Out, class C>
__global__ void __launch_bounds__(kThreads, 3) ring_step_kernel(Steps step, std::int64_t slices) {
  __shared__ float q[kBlockRows], keys[kMost][kBlockRows], values[kMost][kWarp];
  __shared__ float partial[kWarps][kWarp];
  const MlstmRing& ring = step.ring;
  const int dqk = static_cast<int>(ring.dqk), dv = static_cast<int>(ring.dv);
  const std::int64_t s = blockIdx.x / slices, head = blockIdx.y;
  const std::int64_t t = step.batch.offsets[s];
  if (step.batch.offsets[s + 1] - t != 1) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int x = static_cast<int>(blockIdx.x % slices) * kWarp + lane;
  std::byte* const slot = step.batch.slots[s];
  const bool live = x < dv, loads = live && slot != nullptr;
  const HeadRing own(ring, slot, step.offsets.pending, head);
  C* c = reinterpret_cast<C*>(slot + step.offsets.c) + head * ring.dqk * ring.dv + warp * dv + x;
  const MlstmRingStep& result = step.results[s * ring.heads + head];
  const int tokens = result.tokens;
  const bool folds = slot != nullptr && tokens == ring.tokens;
  const float decay = result.decay;
  RoundingKey key = {};
  if (sizeof(C) == 2 && folds) key = rounding_key(step.offsets.rounding, head, result.position);
  for (int j = warp; live && j < tokens; j += kWarps)
    values[j][lane] =
        j < tokens - 1 ? own.v[j * ring.dv + x] : to_float(step.v.row<In>(t)[head * ring.dv + x]);

  float sum = 0;
  for (int a0 = 0; a0 < dqk; a0 += kBlockRows, c += kBlockRows * static_cast<std::int64_t>(dv)) {
    float state[kRows];
    const int rows = min(kBlockRows, dqk - a0), stride = kWarps * dv;
    for (int r = 0; r < kRows; ++r)
      state[r] = loads && r * kWarps + warp < rows ? to_float(c[r * stride]) : 0.0F;
    __syncthreads();  // the last q and keys are read
    if (static_cast<int>(threadIdx.x) < rows)
      q[threadIdx.x] = to_float(step.q.row<In>(t)[head * ring.dqk + a0 + threadIdx.x]);
    if (folds) load_keys(keys, own, tokens, ring.dqk, a0, rows);
    __syncthreads();
    for (int r = 0; r < kRows; ++r) {
      const int row = r * kWarps + warp;
      if (row >= rows) continue;
      sum = fmaf(q[row], state[r], sum);
      if (folds && live)
        store_state(&c[r * stride], folded(state[r], decay, keys, row, values, lane, tokens), key,
                    static_cast<std::uint32_t>((a0 + row) * dv + x));
    }
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || !live) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += partial[w][lane];
  sum *= decay;
#pragma unroll 1
  for (int j = 0; j < tokens; ++j) sum = fmaf(result.scores[j], values[j][lane], sum);
  store(step.h.row<Out>(t) + head * ring.dv + x, result.out * sum);
}

struct Folds {
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  MlstmRing ring;
  bool longer_only;

  /// The record of a sequence that is wanted, or null.
  __device__ std::byte* slot(std::int64_t s) const {
    return longer_only && batch.offsets[s + 1] - batch.offsets[s] == 1 ? nullptr : batch.slots[s];
  }
};

/// The blocks and threads of ring_step_kernel().
template <class C>
__global__ void __launch_bounds__(kThreads, 3) fold_kernel(Folds fold, std::int64_t slices) {
  __shared__ float keys[kMost][kBlockRows], values[kMost][kWarp];
  const MlstmRing& ring = fold.ring;
  const int dqk = static_cast<int>(ring.dqk), dv = static_cast<int>(ring.dv);
  const std::int64_t head = blockIdx.y;
  std::byte* const slot = fold.slot(blockIdx.x / slices);
  if (slot == nullptr) return;
  const HeadRing own(ring, slot, fold.offsets.pending, head);
  const int tokens = *own.waiting;
  if (tokens == 0) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int x = static_cast<int>(blockIdx.x % slices) * kWarp + lane;
  const bool live = x < dv;
  C* c = reinterpret_cast<C*>(slot + fold.offsets.c) + head * ring.dqk * ring.dv + warp * dv + x;
  const float decay = *own.decay;
  RoundingKey key = {};
  if (sizeof(C) == 2)
    key = rounding_key(fold.offsets.rounding, head,
                       *own.position + static_cast<std::uint32_t>(tokens));
  for (int j = warp; live && j < tokens; j += kWarps) values[j][lane] = own.v[j * ring.dv + x];

  for (int a0 = 0; a0 < dqk; a0 += kBlockRows, c += kBlockRows * static_cast<std::int64_t>(dv)) {
    float state[kRows];
    const int rows = min(kBlockRows, dqk - a0), stride = kWarps * dv;
    for (int r = 0; r < kRows; ++r)
      state[r] = live && r * kWarps + warp < rows ? to_float(c[r * stride]) : 0.0F;
    __syncthreads();  // the last keys are read
    load_keys(keys, own, tokens, ring.dqk, a0, rows);
    __syncthreads();
    for (int r = 0; r < kRows; ++r) {
      const int row = r * kWarps + warp;
      if (live && row < rows)
        store_state(&c[r * stride], folded(state[r], decay, keys, row, values, lane, tokens), key,
                    static_cast<std::uint32_t>((a0 + row) * dv + x));
    }
  }
}

/// After fold_kernel(), whose blocks all read how many tokens wait.
__global__ void __launch_bounds__(kThreads) empty_kernel(Folds fold) {
  std::byte* const slot = fold.slot(blockIdx.x);
  for (std::int64_t head = threadIdx.x; slot != nullptr && head < fold.ring.heads;
       head += kThreads) {
    const HeadRing own(fold.ring, slot, fold.offsets.pending, head);
    if (fold.offsets.c_type == DType::bf16) *own.position += *own.waiting;
    *own.waiting = 0;
  }
}

template <class In, class Out>
void run(Context& context, const Steps& step) {
  constexpr const char* kName = "mlstm";
  const std::int64_t sequences = step.batch.sequences, heads = step.ring.heads;
  launch(context, kName, {.x = sequences * heads, .threads = kThreads}, ring_gates_kernel<In>,
         step);
  const std::int64_t slices = blocks_for(step.ring.dv, kWarp);
  launch(context, kName, {.x = sequences * slices, .y = heads, .threads = kThreads},
         step.offsets.c_type == DType::bf16 ? ring_step_kernel<In, Out, Bf16>
                                            : ring_step_kernel<In, Out, float>,
         step, slices);
}

}  // namespace

void mlstm_ring_steps(Context& context, const MlstmArgs& a) {
  const std::int64_t heads = a.i.dim(1);
  ArenaScope scope(context.arena());
  const MlstmRing ring(heads, a.q.dim(1) / heads, a.v.dim(1) / heads);
  const Steps step{.q = Rows(a.q),
                   .k = Rows(a.k),
                   .v = Rows(a.v),
                   .h = Rows(a.h),
                   .i = Matrix<const float>(a.i),
                   .log_f = Matrix<const float>(a.log_f),
                   .batch = DeviceBatch(a.batch),
                   .offsets = a.state,
                   .ring = ring,
                   .scale = 1.0F / std::sqrt(static_cast<float>(ring.dqk)),
                   .eps = a.eps,
                   .has_stabiliser = a.gate == MlstmGate::exponential,
                   .normalise = a.normalise,
                   .results = reinterpret_cast<MlstmRingStep*>(
                       context.arena().take(MlstmRing::step_bytes(a.batch.sequences(), heads)))};
  const bool bf16 = a.h.dtype == DType::bf16;
  if (a.q.dtype == DType::bf16)
    bf16 ? run<Bf16, Bf16>(context, step) : run<Bf16, float>(context, step);
  else
    bf16 ? run<float, Bf16>(context, step) : run<float, float>(context, step);
}

void mlstm_fold(Context& context, const MlstmFoldArgs& a) {
  constexpr const char* kName = "mlstm_fold";
  const Folds fold{.batch = DeviceBatch(a.batch),
                   .offsets = a.state,
                   .ring = MlstmRing(a.heads, a.dqk, a.dv),
                   .longer_only = a.longer_only};
  if (a.batch.sequences() == 0) return;
  const std::int64_t slices = blocks_for(a.dv, kWarp);
  launch(context, kName, {.x = a.batch.sequences() * slices, .y = a.heads, .threads = kThreads},
         a.state.c_type == DType::bf16 ? fold_kernel<Bf16> : fold_kernel<float>, fold, slices);
  launch(context, kName, {.x = a.batch.sequences(), .threads = kThreads}, empty_kernel, fold);
}

}  // namespace xlstm::ops::cuda
