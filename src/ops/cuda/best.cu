#include "ops/best.hpp"

#include "ops/cuda/best_plan.hpp"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/draw.hpp"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kPerThread = static_cast<int>(BestPlan::kSpan) / kThreads;

__device__ bool is_finite(float x) { return fabsf(x) <= 3.402823466e38F; }

/// A logit and its id in one number that is larger the better it is; 0 is none.
using Key = unsigned long long;

__device__ Key key_of(float logit, std::int64_t id) {
  // As integers, floats of one sign are ordered as they are; -0 becomes 0.
  const float value = logit + 0.0F;
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits = !is_finite(value) ? ~0U : (bits >> 31) != 0 ? ~bits : bits | 1U << 31;
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

/// The largest of the block's, in every thread. @param largest  of each warp
__device__ Key block_largest(Key own, Key* largest) {
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const Key other = __shfl_xor_sync(~0U, own, bits);
    own = other > own ? other : own;
  }
  if (threadIdx.x % kWarp == 0) largest[threadIdx.x / kWarp] = own;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) own = largest[w] > own ? largest[w] : own;
  return own;
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
  Key* keys = nullptr;  // [rows, spans, count], or null: this is the last pass
  Matrix<float> values = Matrix<float>(Tensor{});
  Matrix<std::int32_t> ids = Matrix<std::int32_t>(Tensor{});
  int count = 0;
};

/// What is drawn from the best of each row.
struct Drawing {
  Draw* draws = nullptr;  // [rows]; null: nothing is drawn
  const std::int32_t* ends = nullptr;
  int end_count = 0;
  std::byte** slots = nullptr;
  std::int32_t *next = nullptr, *ids = nullptr;
  float* values = nullptr;
};

/// The place of one of the candidates as ops::chosen() has it, to the bit: the threads sum in its
/// order, each up to its own candidate. @param best  their keys in order, in shared memory
__device__ int draw_place(const Draw& draw, const float* logits, const Key* best, int count) {
  __shared__ double weights[kMostBest];
  __shared__ unsigned possible[kWarps], reached[kWarps];
  const int i = static_cast<int>(threadIdx.x), n = min(count, static_cast<int>(draw.top_k));
  if (i < n) weights[i] = draw.weight(logits[id_of(best[i])], logits[id_of(best[0])]);
  __syncthreads();
  double before = 0, total = 0;
  for (int j = 0; j < n; ++j) {
    if (j == i) before = total;
    total += weights[j];
  }
  const bool kept = i < n && (draw.top_p >= 1 || before < total * draw.top_p);
  const double mine = kept && weights[i] >= draw.min_p ? weights[i] : 0;
  __syncthreads();
  if (i < n) weights[i] = mine;
  __syncthreads();
  double up_to = 0;
  total = 0;
  for (int j = 0; j < n; ++j) {
    total += weights[j];
    if (j == i) up_to = total;
  }
  RandomGenerator generator = draw.generator;
  const double target = generator.uniform() * total;
  const unsigned can = __ballot_sync(~0U, mine != 0),
                 does = __ballot_sync(~0U, mine != 0 && up_to > target);
  if (i % kWarp == 0) {
    possible[i / kWarp] = can;
    reached[i / kWarp] = does;
  }
  __syncthreads();
  int place = 0;
  for (int j = 0; j < n; ++j)  // the last that is possible, should rounding leave none above
    if ((possible[j / kWarp] >> j % kWarp & 1) != 0) place = j;
  for (int j = n - 1; j >= 0; --j)
    if ((reached[j / kWarp] >> j % kWarp & 1) != 0) place = j;
  return place;
}

/// The whole block calls it. @param best  as above
__device__ void draw_token(const Drawing& d, std::int64_t row, const float* logits, const Key* best,
                           int count) {
  Draw& draw = d.draws[row];
  const bool draws = draw.inverse_temperature > 0 && is_finite(logits[id_of(best[0])]);
  const int place = draws ? draw_place(draw, logits, best, count) : 0;
  if (threadIdx.x != 0) return;
  if (draws) static_cast<void>(draw.generator.next());
  const std::int32_t id = id_of(best[place]);
  d.next[row] = id;
  d.ids[row] = id;
  d.values[row] = logits[id];
  for (int e = 0; e < d.end_count; ++e)
    if (id == d.ends[e] && draw.after_end != nullptr) d.slots[row] = draw.after_end;
}

/// The best `wanted` of a block's keys, in no order; 0 where there are not so many.
__device__ void take_best(const Key (&keys)[kPerThread], int wanted, Key* best) {
  __shared__ int partial[2][kWarps], taken[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
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
    if (count >= wanted) least = next;
    if (count == wanted) break;  // of the whole block
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
  if (static_cast<int>(threadIdx.x) < wanted) best[threadIdx.x] = 0;
  __syncthreads();
  place -= mine;
  for (int w = 0; w < warp; ++w) place += taken[w];
  for (int i = 0; i < kPerThread; ++i)
    if (keys[i] >= least && keys[i] != 0) best[place++] = keys[i];
}

__global__ void __launch_bounds__(kThreads) best_kernel(Row row, Found found, Drawing drawing) {
  __shared__ Key best[kMostBest], sorted[kMostBest];
  const std::int64_t r = blockIdx.y;
  Key keys[kPerThread];
  grid_wait();
  grid_trigger();
  for (int i = 0; i < kPerThread; ++i)
    keys[i] = row.at(
        r, (static_cast<std::int64_t>(blockIdx.x) * kPerThread + i) * kThreads + threadIdx.x);
  if (found.count == 1) {
    Key top = 0;
    for (const Key key : keys) top = key > top ? key : top;
    top = block_largest(top, sorted);
    if (threadIdx.x == 0) best[0] = top;
  } else {
    take_best(keys, found.count, best);
  }
  __syncthreads();
  const bool has_one = static_cast<int>(threadIdx.x) < found.count;
  const Key key = has_one ? best[threadIdx.x] : 0;
  if (found.keys != nullptr) {
    if (has_one) found.keys[(r * gridDim.x + blockIdx.x) * found.count + threadIdx.x] = key;
    return;
  }
  int rank = 0;
  for (int i = 0; i < found.count; ++i) rank += best[i] > key ? 1 : 0;
  if (drawing.draws != nullptr) {
    if (has_one) sorted[rank] = key;
    __syncthreads();
    draw_token(drawing, r, row.logits.row(r), sorted, found.count);
  } else if (has_one) {
    found.values.row(r)[rank] = row.logits.row(r)[id_of(key)];
    found.ids.row(r)[rank] = id_of(key);
  }
}

void find_best(Context& context, const char* name, const Tensor& logits, std::int64_t count,
               Found found, const Drawing& drawing) {
  const BestPlan plan(logits.dim(0), logits.dim(1), count);
  if (plan.rows == 0) return;
  ArenaScope scope(context.arena());
  Key* const scratch = reinterpret_cast<Key*>(context.arena().take(plan.bytes()));
  Key* const turns[2] = {scratch, scratch + plan.rows * plan.first};
  Row row{Matrix<const float>(logits), nullptr, logits.dim(1)};
  found.count = static_cast<int>(plan.count);
  for (int pass = 0;; ++pass) {
    const std::int64_t spans = BestPlan::spans(row.width);
    found.keys = spans > 1 ? turns[pass % 2] : nullptr;
    launch(context, name, {.x = spans, .y = plan.rows, .threads = kThreads, .overlap = true},
           best_kernel, row, found, drawing);
    if (spans == 1) return;
    row.keys = found.keys;
    row.width = spans * plan.count;
  }
}

}  // namespace

void best_logits(Context& context, const BestLogitsArgs& a) {
  find_best(context, "best_logits", a.logits, a.values.dim(1),
            {.values = Matrix<float>(a.values), .ids = Matrix<std::int32_t>(a.ids)}, {});
}

void draw_tokens(Context& context, const DrawTokensArgs& a) {
  find_best(context, "draw_tokens", a.logits, a.count, {},
            {.draws = reinterpret_cast<Draw*>(a.draws.data),
             .ends = static_cast<const std::int32_t*>(a.ends.data),
             .end_count = static_cast<int>(a.ends.dim(0)),
             .slots = reinterpret_cast<std::byte**>(a.slots.data),
             .next = static_cast<std::int32_t*>(a.next.data),
             .ids = static_cast<std::int32_t*>(a.ids.data),
             .values = static_cast<float*>(a.values.data)});
}

}  // namespace xlstm::ops::cuda
