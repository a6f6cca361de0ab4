#include "ops/best.hpp"

#include "ops/cuda/best_plan.hpp"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kPerThread = static_cast<int>(BestPlan::kSpan) / kThreads;

/// A logit and its id in one number that is larger the better it is; 0 is none.
using Key = unsigned long long;

__device__ Key key_of(float logit, std::int64_t id) {
  // As integers, floats of one sign are ordered as they are; -0 becomes 0.
  const float value = logit + 0.0F;
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const bool is_finite = fabsf(value) <= 3.402823466e38F;
  bits = !is_finite ? ~0U : (bits >> 31) != 0 ? ~bits : bits | 1U << 31;
  return static_cast<Key>(bits) << 32 | static_cast<std::uint32_t>(~static_cast<std::uint32_t>(id));
}
__device__ std::int32_t id_of(Key key) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(key));
}

/// The sum over the warp, in every lane.
__device__ int warp_total(int count) {
#if defined(__CUDA_ARCH__)
  return __reduce_add_sync(~0U, count);
#else
  for (int bits = kWarp / 2; bits > 0; bits /= 2) count += __shfl_xor_sync(~0U, count, bits);
  return count;
#endif
}

/// The logits of a row, or what the pass before has left of them.
struct Row {
  Matrix<const float> logits;
  const Key* keys;  // [rows, width], or null
  std::int64_t width;

  __device__ Key at(std::int64_t row, std::int64_t i) const {
    if (i >= width) return 0;
    return keys != nullptr ? keys[row * width + i] : key_of(logits.row(row)[i], i);
  }
};

/// Where the best of all go, or the keys of one pass.
struct Found {
  Key* keys;  // [rows, spans, count], or null: this is the last pass
  Matrix<float> values;
  Matrix<std::int32_t> ids;
  int count;
};

__global__ void __launch_bounds__(kThreads) best_kernel(Row row, Found found) {
  __shared__ int partial[2][kWarps];
  __shared__ Key chosen[kMostBest];
  __shared__ int taken[kWarps];
  const std::int64_t r = blockIdx.y;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Key keys[kPerThread];
  grid_wait();
  grid_trigger();
  for (int i = 0; i < kPerThread; ++i)
    keys[i] = row.at(
        r, (static_cast<std::int64_t>(blockIdx.x) * kPerThread + i) * kThreads + threadIdx.x);
  // The smallest of the best, bit by bit: the largest number that enough keys reach.
  Key least = 0;
  for (int bit = 63, which = 0; bit >= 0; --bit, which ^= 1) {
    const Key next = least | Key{1} << bit;
    int count = 0;
    for (int i = 0; i < kPerThread; ++i) count += keys[i] >= next ? 1 : 0;
    count = warp_total(count);
    if (lane == 0) partial[which][warp] = count;
    __syncthreads();
    count = 0;
    for (int w = 0; w < kWarps; ++w) count += partial[which][w];
    if (count >= found.count) least = next;
    if (count == found.count) break;  // of the whole block
  }
  // Their places: after those of the threads before.
  int mine = 0;
  for (int i = 0; i < kPerThread; ++i) mine += keys[i] >= least && keys[i] != 0 ? 1 : 0;
  int place = mine;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0U, place, step);
    if (lane >= step) place += other;
  }
  if (lane == kWarp - 1) taken[warp] = place;
  if (static_cast<int>(threadIdx.x) < found.count) chosen[threadIdx.x] = 0;
  __syncthreads();
  place -= mine;
  for (int w = 0; w < warp; ++w) place += taken[w];
  for (int i = 0; i < kPerThread; ++i)
    if (keys[i] >= least && keys[i] != 0) chosen[place++] = keys[i];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= found.count) return;
  const Key key = chosen[threadIdx.x];
  if (found.keys != nullptr) {
    found.keys[(r * gridDim.x + blockIdx.x) * found.count + threadIdx.x] = key;
    return;
  }
  int rank = 0;
  for (int i = 0; i < found.count; ++i) rank += chosen[i] > key ? 1 : 0;
  found.values.row(r)[rank] = row.logits.row(r)[id_of(key)];
  found.ids.row(r)[rank] = id_of(key);
}

}  // namespace

void best_logits(Context& context, const BestLogitsArgs& a) {
  const BestPlan plan(a.logits.dim(0), a.logits.dim(1), a.values.dim(1));
  if (plan.rows == 0) return;
  ArenaScope scope(context.arena());
  Key* const scratch = reinterpret_cast<Key*>(context.arena().take(plan.bytes()));
  Key* const turns[2] = {scratch, scratch + plan.rows * plan.first};
  Row row{Matrix<const float>(a.logits), nullptr, a.logits.dim(1)};
  for (int pass = 0;; ++pass) {
    const std::int64_t spans = BestPlan::spans(row.width);
    const Found found{spans > 1 ? turns[pass % 2] : nullptr, Matrix<float>(a.values),
                      Matrix<std::int32_t>(a.ids), static_cast<int>(plan.count)};
    launch(context, "best_logits",
           {.x = spans, .y = plan.rows, .threads = kThreads, .overlap = true}, best_kernel, row,
           found);
    if (spans == 1) return;
    row.keys = found.keys;
    row.width = spans * plan.count;
  }
}

}  // namespace xlstm::ops::cuda
