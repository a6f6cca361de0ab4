#include "ops/cuda/sm90/mlstm_step.hpp"

#include <cmath>

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/async_copy.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

// A cluster has a sequence and head, each of its blocks kColumns columns of C, a thread four
// columns and every 16th row: the first kHeld rows in registers, the others in shared memory. C
// comes from memory before the kernels before are done, because the last that wrote it is one token
// ago; all that depends on them is some KB. Few blocks hold all of C in registers, so that each
// fits beside a block of the kernel after it (sm90/few_rows.cuh); many are large, one on a
// multiprocessor: clusters of two find room on all of them, those of eight do not.
constexpr int kGroups = 16;                 // of threads: rows at a time
constexpr int kRows = 16;                   // of a thread
constexpr int kMostRows = kGroups * kRows;  // of C
constexpr int kMostWidth = 512;             // of C
constexpr int kFewColumns = 64, kManyColumns = 256;

template <int kColumns, int kHeld>
struct Shared {
  static constexpr int kThreads = kColumns / 4 * kGroups;
  double new_m, factors[3], partial[kThreads / kWarp];
  float q[kMostRows], k[kMostRows];
  float h[kMostWidth];
  // A thread reads what it copied, and then leaves its sums in the first of its places.
  float4 state[kHeld < kRows ? kRows - kHeld : 1][kThreads];
};

struct Step {
  Matrix<const float> q, k, v, i, log_f, o;
  Matrix<Bf16> y;
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  Weights norm_w, norm_b;
  int heads, dqk, dv, slices;
  float scale, cell_eps, norm_eps;
  bool has_stabiliser, normalise;
};

/// Writes to where `to` is in the shared memory of another block of the cluster.
__device__ __forceinline__ void store_remote(float* to, int block, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(
                   cluster_address(cuda::shared_address(to), static_cast<unsigned>(block))),
               "f"(value)
               : "memory");
}

template <int kColumns, int kHeld, int kBlocks>
__global__ void __launch_bounds__(Shared<kColumns, kHeld>::kThreads, kBlocks)
    mlstm_step_kernel(Step step) {
  using BlockShared = Shared<kColumns, kHeld>;
  constexpr int kCopied = kRows - kHeld;
  XLSTM_DYNAMIC_SHARED(BlockShared, shared);
  float *const q = shared->q, *const k = shared->k, *const h = shared->h;
  const int slice = static_cast<int>(blockIdx.x) % step.slices;
  const int head = static_cast<int>(blockIdx.x) / step.slices % step.heads;
  const int s = static_cast<int>(blockIdx.x) / step.slices / step.heads;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, thread = threadIdx.x;
  // The batch is on the card before the pass begins.
  const int t = step.batch.offsets[s];
  if (step.batch.offsets[s + 1] - t != 1) {
    grid_wait();
    return;
  }
  cluster_arrive();  // the other blocks may write here
  std::byte* const slot = step.batch.slots[s];
  const int column = thread % (kColumns / 4) * 4, group = thread / (kColumns / 4);
  float* const c = reinterpret_cast<float*>(slot + step.offsets.c) +
                   (static_cast<std::int64_t>(head) * step.dqk + group) * step.dv +
                   slice * kColumns + column;
  const std::int64_t stride = static_cast<std::int64_t>(kGroups) * step.dv;
  const std::uint64_t policy = evict_first_policy();
  float4 held[kHeld];
#pragma unroll
  for (int r = 0; r < kHeld; ++r) {
    held[r] = {0, 0, 0, 0};
    if (slot != nullptr && group + r * kGroups < step.dqk)
      held[r] = __ldcs(reinterpret_cast<const float4*>(c + r * stride));
  }
#pragma unroll
  for (int r = 0; r < kCopied; ++r)
    async_copy(shared_address(&shared->state[r][thread]), c + (kHeld + r) * stride,
               slot != nullptr && group + (kHeld + r) * kGroups < step.dqk, policy);
  commit_copies();
  const bool has_row = thread < step.dqk;
  double* const n = reinterpret_cast<double*>(slot + step.offsets.n) +
                    static_cast<std::int64_t>(head) * step.dqk + thread;
  const double old_n = has_row && slot != nullptr ? *n : 0.0;
  double* const m = reinterpret_cast<double*>(slot + step.offsets.m) + head;
  const double old_m = slot != nullptr && step.has_stabiliser ? *m : 0.0;
  const int output = head * step.dv + slice * kColumns + thread;  // of the first kColumns threads
  float norm_w = 0, norm_b = 0;
  if (thread < kColumns) {
    norm_w = step.norm_w.at(output);
    norm_b = step.norm_b.at_or(0.0F, output);
  }

  grid_wait();
  grid_trigger();
  const float o = thread < kColumns ? step.o.row(t)[output] : 0.0F;
  const float* const v_row = step.v.row(t) + head * step.dv + slice * kColumns + column;
  const float v[4] = {v_row[0], v_row[1], v_row[2], v_row[3]};
  float own_q = 0, own_k = 0;
  if (has_row) {
    own_q = step.q.row(t)[head * step.dqk + thread];
    own_k = step.k.row(t)[head * step.dqk + thread];
  }
  if (thread < kMostRows) {
    q[thread] = own_q;
    k[thread] = own_k;
  }
  if (warp == 0) {
    // Where nothing new is larger, F is exactly 1 and C collects no rounding errors.
    const double f = step.log_f.row(t)[head], i = step.i.row(t)[head];
    const double decayed = (f < -1e4 ? -1e4 : f) + old_m;
    const double now = step.has_stabiliser ? larger(decayed, i) : 0.0;
    const double exponent = lane == 0 ? decayed - now : lane == 1 ? i - now : -now;
    if (lane < 3) shared->factors[lane] = exp(exponent);
    if (lane == 0) shared->new_m = now;
  }
  __syncthreads();
  const double new_n = fma(shared->factors[1], double{own_k}, shared->factors[0] * old_n);
  const auto l = static_cast<float>(
      step.scale * block_sum(has_row ? new_n * double{own_q} : 0.0, shared->partial));
  const auto forget = static_cast<float>(shared->factors[0]),
             input = static_cast<float>(shared->factors[1]),
             floor = static_cast<float>(shared->factors[2]);
  float out = step.scale;
  if (step.normalise) {
    const float magnitude = fabsf(l);  // the comparison keeps a NaN
    out *= 1.0F / ((magnitude <= floor ? floor : magnitude) + step.cell_eps);
  }

  float sum[4] = {};
  const auto update = [&](int r, float4 x) {
    const int row = group + r * kGroups;
    if (row >= step.dqk) return;
    const float from_k = input * k[row], from_q = q[row];
    x = {fmaf(from_k, v[0], forget * x.x), fmaf(from_k, v[1], forget * x.y),
         fmaf(from_k, v[2], forget * x.z), fmaf(from_k, v[3], forget * x.w)};
    sum[0] = fmaf(from_q, x.x, sum[0]);
    sum[1] = fmaf(from_q, x.y, sum[1]);
    sum[2] = fmaf(from_q, x.z, sum[2]);
    sum[3] = fmaf(from_q, x.w, sum[3]);
    if (slot != nullptr) __stcs(reinterpret_cast<float4*>(c + r * stride), x);
  };
#pragma unroll
  for (int r = 0; r < kHeld; ++r) update(r, held[r]);
  wait_for_copies<0>();
#pragma unroll 4
  for (int r = 0; r < kCopied; ++r) update(kHeld + r, shared->state[r][thread]);
  shared->state[0][thread] = {sum[0], sum[1], sum[2], sum[3]};
  __syncthreads();
  cluster_wait();  // all blocks have begun
  if (thread < kColumns) {
    float total = 0;
    const float* const sums = &shared->state[0][0].x;  // [kGroups, kColumns]
    for (int g = 0; g < kGroups; ++g) total += sums[g * kColumns + thread];
    for (int b = 0; b < step.slices; ++b)
      store_remote(&h[slice * kColumns + thread], b, out * total);
  }
  cluster_arrive();
  cluster_wait();
  if (slice == 0 && slot != nullptr) {  // all blocks have read n and m
    if (has_row) *n = new_n;
    if (thread == 0) *m = shared->new_m;
  }
  if (thread >= kColumns) return;
  const auto count = static_cast<float>(step.dv);
  float first = 0, second = 0;
  for (int d = lane; d < step.dv; d += kWarp) first += h[d];
  const float mean = warp_sum(first) / count;
  for (int d = lane; d < step.dv; d += kWarp) second = fmaf(h[d] - mean, h[d] - mean, second);
  const float scale = reciprocal_root(warp_sum(second) / count, step.norm_eps);
  const float normed = fmaf((h[slice * kColumns + thread] - mean) * scale, norm_w, norm_b);
  store(step.y.row(t) + output, sigmoid(o) * normed);
}

}  // namespace

bool serves_mlstm_step(const MlstmHeadNormLinearArgs& a) {
  const MlstmArgs& cell = a.cell;
  const std::int64_t heads = cell.i.dim(1), dqk = cell.q.dim(1) / heads, dv = cell.v.dim(1) / heads;
  if (a.norm.activation != DType::bf16 || a.norm.heads != heads || dqk > kMostRows ||
      dv % kFewColumns != 0 || dv > kMostWidth || cell.state.c % 16 != 0)
    return false;
  for (const std::byte* slot : cell.batch.slots)
    if (reinterpret_cast<std::uintptr_t>(slot) % 16 != 0) return false;
  return true;
}

void mlstm_step(Context& context, const MlstmHeadNormLinearArgs& a, const Tensor& y) {
  const MlstmArgs& cell = a.cell;
  const auto heads = static_cast<int>(cell.i.dim(1));
  const auto dqk = static_cast<int>(cell.q.dim(1)) / heads;
  const auto dv = static_cast<int>(cell.v.dim(1)) / heads;
  const std::int64_t items = cell.batch.sequences() * heads;
  const bool many =
      dv % kManyColumns == 0 && items * (dv / kFewColumns) > 2 * multiprocessors(context.device());
  const int slices = dv / (many ? kManyColumns : kFewColumns);
  const Step step{.q = Matrix<const float>(cell.q),
                  .k = Matrix<const float>(cell.k),
                  .v = Matrix<const float>(cell.v),
                  .i = Matrix<const float>(cell.i),
                  .log_f = Matrix<const float>(cell.log_f),
                  .o = Matrix<const float>(a.norm.o),
                  .y = Matrix<Bf16>(y),
                  .batch = DeviceBatch(cell.batch),
                  .offsets = cell.state,
                  .norm_w = Weights(a.norm.norm_w),
                  .norm_b = Weights(a.norm.norm_b),
                  .heads = heads,
                  .dqk = dqk,
                  .dv = dv,
                  .slices = slices,
                  .scale = 1.0F / std::sqrt(static_cast<float>(dqk)),
                  .cell_eps = cell.eps,
                  .norm_eps = a.norm.eps,
                  .has_stabiliser = cell.gate == MlstmGate::exponential,
                  .normalise = cell.normalise};
  const auto run = [&]<int kColumns, int kHeld, int kBlocks>() {
    launch(context, "mlstm_step",
           {.x = items * slices,
            .threads = Shared<kColumns, kHeld>::kThreads,
            .shared = sizeof(Shared<kColumns, kHeld>),
            .cluster = slices,
            .overlap = true},
           mlstm_step_kernel<kColumns, kHeld, kBlocks>, step);
  };
  if (many)
    run.template operator()<kManyColumns, 3, 1>();
  else
    run.template operator()<kFewColumns, kRows, 2>();
}

}  // namespace xlstm::ops::cuda::sm90
