#include "ops/cuda/mlstm_wide.hpp"

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/mlstm_ring.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/mlstm_plan.hpp"
#include "ops/cuda/sm90/mlstm_fused.hpp"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRounds = 8;  // elements of C of a thread

struct Copies {
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  MlstmRing ring;
  std::size_t n, m, stride;
  std::byte* records;
  std::byte** slots;
  std::int64_t slices;  // blocks of a head
};

/// The numbers of one head that a block copies.
struct HeadPart {
  std::int64_t s, head, slice;
  std::byte *slot, *wide;  // the record, null: nothing to copy; and its copy

  __device__ explicit HeadPart(const Copies& copies)
      : s(0), head(blockIdx.y), slice(blockIdx.x % copies.slices) {
    const std::int64_t place = blockIdx.x / copies.slices;
    for (std::int64_t before = 0;; ++s)
      if (is_long(copies, s) && before++ == place) break;
    slot = copies.batch.slots[s];
    wide = copies.records + place * copies.stride;
  }
  __device__ static bool is_long(const Copies& copies, std::int64_t s) {
    return copies.batch.offsets[s + 1] - copies.batch.offsets[s] != 1;
  }
  /// Calls body(element) for those of C that are the thread's.
  template <class Body>
  __device__ void each(const Copies& copies, Body&& body) const {
    const std::int64_t count = copies.ring.dqk * copies.ring.dv;
    const std::int64_t first = slice * kThreads * kRounds + threadIdx.x;
#pragma unroll
    for (int r = 0; r < kRounds; ++r)
      if (first + r * kThreads < count) body(first + r * kThreads);
  }
  __device__ Bf16* c(const Copies& copies) const {
    return reinterpret_cast<Bf16*>(slot + copies.offsets.c) +
           head * copies.ring.dqk * copies.ring.dv;
  }
  __device__ float* wide_c(const Copies& copies) const {
    return reinterpret_cast<float*>(wide) + head * copies.ring.dqk * copies.ring.dv;
  }
  /// n and m, by the head's first block.
  __device__ void copy_rest(const Copies& copies, std::byte* from, std::size_t from_n,
                            std::size_t from_m, std::byte* to, std::size_t to_n,
                            std::size_t to_m) const {
    if (slice != 0) return;
    const std::int64_t dqk = copies.ring.dqk;
    for (std::int64_t a = threadIdx.x; a < dqk; a += kThreads)
      reinterpret_cast<double*>(to + to_n)[head * dqk + a] =
          reinterpret_cast<double*>(from + from_n)[head * dqk + a];
    if (threadIdx.x == 0)
      reinterpret_cast<double*>(to + to_m)[head] = reinterpret_cast<double*>(from + from_m)[head];
  }
};

/// C will hold all tokens of the call, so its position moves on here: narrow_kernel() has many
/// blocks that read it.
__global__ void __launch_bounds__(kThreads) widen_kernel(Copies copies) {
  const HeadPart part(copies);
  if (blockIdx.x == 0 && part.head == 0 && threadIdx.x == 0) {
    std::byte* next = copies.records;
    for (std::int64_t s = 0; s < copies.batch.sequences; ++s) {
      const bool is_long = HeadPart::is_long(copies, s);
      copies.slots[s] = is_long && copies.batch.slots[s] != nullptr ? next : nullptr;
      if (is_long) next += copies.stride;
    }
  }
  if (part.slot == nullptr) return;
  const Bf16* const from = part.c(copies);
  float* const c = part.wide_c(copies);
  part.each(copies, [&](std::int64_t i) { c[i] = to_float(from[i]); });
  part.copy_rest(copies, part.slot, copies.offsets.n, copies.offsets.m, part.wide, copies.n,
                 copies.m);
  if (part.slice == 0 && threadIdx.x == 0)
    *HeadRing(copies.ring, part.slot, copies.offsets.pending, part.head).position +=
        copies.batch.offsets[part.s + 1] - copies.batch.offsets[part.s];
}

__global__ void __launch_bounds__(kThreads) narrow_kernel(Copies copies) {
  const HeadPart part(copies);
  if (part.slot == nullptr) return;
  const RoundingKey key =
      rounding_key(copies.offsets.rounding, part.head,
                   *HeadRing(copies.ring, part.slot, copies.offsets.pending, part.head).position);
  const float* const wide = part.wide_c(copies);
  Bf16* const c = part.c(copies);
  part.each(copies, [&](std::int64_t i) {
    store_state(&c[i], wide[i], key, static_cast<std::uint32_t>(i));
  });
  part.copy_rest(copies, part.wide, copies.n, copies.m, part.slot, copies.offsets.n,
                 copies.offsets.m);
}

}  // namespace

bool mlstm_of_wide_states(Context& context, const MlstmArgs& a) {
  constexpr const char* kName = "mlstm";
  const MlstmWidePlan plan(a);
  ArenaScope scope(context.arena());
  std::byte* const scratch = context.arena().take(plan.bytes());
  const std::int64_t heads = a.i.dim(1);
  const MlstmRing ring(heads, a.q.dim(1) / heads, a.v.dim(1) / heads);
  const std::int64_t slices = blocks_for(ring.dqk * ring.dv, kThreads * kRounds);
  const Copies copies{.batch = DeviceBatch(a.batch),
                      .offsets = a.state,
                      .ring = ring,
                      .n = plan.n,
                      .m = plan.m,
                      .stride = plan.stride,
                      .records = scratch + plan.records,
                      .slots = reinterpret_cast<std::byte**>(scratch),
                      .slices = slices};
  const Grid grid{.x = plan.longs * slices, .y = heads, .threads = kThreads};
  launch(context, kName, grid, widen_kernel, copies);

  const Batch batch{.offsets = a.batch.offsets,
                    .slots = a.batch.slots,  // how many; kernels follow the others
                    .device_offsets = a.batch.device_offsets,
                    .device_slots = copies.slots};
  const MlstmArgs wide{.q = a.q,
                       .k = a.k,
                       .v = a.v,
                       .i = a.i,
                       .log_f = a.log_f,
                       .batch = batch,
                       .state = {.c = 0, .n = plan.n, .m = plan.m},
                       .chunk = a.chunk,
                       .eps = a.eps,
                       .h = a.h,
                       .gate = a.gate,
                       .normalise = a.normalise};
  const bool fused = level(context.device()) == Level::sm90 &&
                     sm90::mlstm_fused(context, wide, false);  // the copies have just been made
  if (!fused) mlstm_within(context, wide, MlstmPlan::kStateBytes, MlstmSequences::longer);
  launch(context, kName, grid, narrow_kernel, copies);
  return fused;
}

}  // namespace xlstm::ops::cuda
