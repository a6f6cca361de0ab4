#include "ops/cuda/sm90/slstm_grid.hpp"

#include "ops/cuda/device/slstm_cell.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/slstm_grid_plan.hpp"
#include "ops/cuda/sm90/slstm_call.cuh"
#include "ops/cuda/sm90/slstm_exchange.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

using namespace slstm_exchange;

constexpr int kGates = 4;
constexpr int kSequences = SlstmGridPlan::kSequences;
constexpr int kWarps = SlstmGridPlan::kWarps;  // that multiply
constexpr int kSlots = SlstmGridPlan::kSlots;
constexpr int kEmptied = kSlots / 2;  // slots that are emptied at a time
constexpr int kStages = 4;            // tokens of wx that are under way
constexpr int kTileBytes = 512;       // sums of a tile, or a token's wx
constexpr int kPairBytes = 512;       // h of 32 units in a slot

template <class T>
struct GridCall : SlstmCall<T> {
  unsigned char* slots;  ///< [items][kSlots][slot_bytes]
  int blocks, items, slot_bytes;

  GridCall(const SlstmArgs& a, const SlstmGridPlan& plan, void* scratch)
      : SlstmCall<T>(a),
        slots(static_cast<unsigned char*>(scratch)),
        blocks(static_cast<int>(plan.blocks)),
        items(static_cast<int>(plan.items)),
        slot_bytes(static_cast<int>(plan.slot_bytes())) {}

  __device__ unsigned char* slot(int item, int step) const {
    return slots + (std::int64_t{item} * kSlots + step % kSlots) * slot_bytes;
  }
};

/// What a number of h says before its value has come: a NaN that no rounding makes.
constexpr unsigned kMissing = 0xFFFF;
__device__ __forceinline__ bool any_missing(const uint4& eight) {
  const unsigned most = __vmaxu2(__vmaxu2(eight.x, eight.y), __vmaxu2(eight.z, eight.w));
  return most >> 16 == kMissing || (most & 0xFFFF) == kMissing;
}
/// The bits of h, rounded; never kMissing.
template <class T>
__device__ __forceinline__ unsigned h_bits(float h) {
  const unsigned bits = take_bits<T>(&h);
  return bits == kMissing ? 0x7FFFU : bits;
}

/// Loads and stores where all blocks see them, without order.
__device__ __forceinline__ uint4 load_seen(const unsigned char* from) {
  uint4 x;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}
__device__ __forceinline__ void store_seen(unsigned char* to, unsigned bits) {
  asm volatile("st.relaxed.gpu.global.b16 [%0], %1;" ::"l"(to),
               "h"(static_cast<unsigned short>(bits))
               : "memory");
}
/// What this thread has stored before is seen before what it stores behind.
__device__ __forceinline__ void order_stores() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

/// Barriers of a block at which some warps wait, and others only say that they have been there.
constexpr int kSummed = 1, kSent = 2;
template <int kBarrier, int kThreads>
__device__ __forceinline__ void warps_wait() {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}
template <int kBarrier, int kThreads>
__device__ __forceinline__ void warps_arrive() {
  asm volatile("bar.arrive %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

/// Where h of a unit is in a slot: a lane of the product loads 8 units of a sequence at once.
__device__ __forceinline__ int place_of(int unit, int sequence) {
  return (unit / 8 * kSequences + sequence) * 16 + unit % 8 * 2;
}

// The first slot of every item is the h that its sequences begin with, the others are empty. What
// belongs to no unit is 0 in all.
template <class T>
__global__ void slstm_grid_begin_kernel(GridCall<T> a) {
  const int item = static_cast<int>(blockIdx.y), head = item % a.heads;
  const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);  // of numbers
  if (at >= kSlots * a.slot_bytes / 2) return;
  const int slot = at / (a.slot_bytes / 2), in_slot = at % (a.slot_bytes / 2);
  const int unit = in_slot / (8 * kSequences) * 8 + in_slot % 8;
  const int s = item / a.heads * kSequences + in_slot / 8 % kSequences;
  unsigned bits = 0;
  if (unit < a.dh && slot > 0) bits = kMissing;
  if (unit < a.dh && slot == 0 && s < a.batch.sequences && a.batch.slots[s] != nullptr)
    bits = h_bits<T>(reinterpret_cast<const float*>(a.batch.slots[s] +
                                                    a.state.h)[std::int64_t{head} * a.dh + unit]);
  reinterpret_cast<std::uint16_t*>(a.slot(item, slot))[in_slot] = static_cast<std::uint16_t>(bits);
}

/// Where the tokens of an item's sequences are, for a lane that has to do with one of them.
struct Span {
  int steps = 0, length = 0;  ///< of the longest one, and of the lane's
  std::int64_t begin = 0;

  __device__ Span(const DeviceBatch& batch, int first, int mine) {
    for (int s = first; s < first + kSequences && s < batch.sequences; ++s) {
      const int at = batch.offsets[s], count = batch.offsets[s + 1] - at;
      steps = max(steps, count);
      if (s == first + mine) begin = at, length = count;
    }
  }
};

/// Registers of a thread where each of three warp groups needs as many as the others, and where the
/// two that multiply take most of what the third has.
template <bool kMore>
__device__ __forceinline__ void share_registers([[maybe_unused]] bool multiplies) {
  if constexpr (kMore) {
    if (multiplies)
      asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
    else
      asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
  }
}

/// Multiplies the rows of R of a block's tiles by h, as each step's h comes: this warp a range of
/// 16 kPieces columns. Its sums go to `partial`.
template <class T, int kPieces, int kTiles>
__device__ __forceinline__ void multiply(const GridCall<T>& a, int item, int block, int warp,
                                         unsigned char* partial) {
  constexpr int kThreads = (kWarps + kTiles) * kWarp;
  constexpr int kPairs = kPieces / 2;  // of pieces, which a load has
  // Of sums that wait for each other: two where there are registers for them.
  constexpr int kChains = kPieces < 8 ? 2 : 1;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int head = item % a.heads, first = item / a.heads * kSequences;
  const int unit = warp * kPairs * 32 + t * 8;  // the first one of this lane's first load
  const bool present = first + g < a.batch.sequences;
  const Span span(a.batch, first, g);

  unsigned kept[kPieces][kTiles][4];
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    asm volatile("" ::: "memory");  // not all addresses at once
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      load_piece(kept[j][i], a, a.r + head * a.r_head, block * kTiles + i,
                 unit + j / 2 * 32 + j % 2 * 4);
  }
  partial += warp * kTileBytes + (g % 2 * 16 + g / 2 * 4 + t) * 16;

  for (int step = 0; step < span.steps; ++step) {
    const unsigned char* const from = a.slot(item, step) + place_of(unit, g);
    uint4 x[kPairs];
#pragma unroll
    for (int j = 0; j < kPairs; ++j)
      x[j] = present && unit + 32 * j < a.dh ? load_seen(from + j * kPairBytes)
                                             : make_uint4(0, 0, 0, 0);
    float sum[kTiles][kChains][4] = {};
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      while (__any_sync(~0U, any_missing(x[j])))
#pragma unroll
        for (int i = j; i < kPairs; ++i)
          if (any_missing(x[i])) x[i] = load_seen(from + i * kPairBytes);
      const unsigned low[2] = {x[j].x, x[j].y}, high[2] = {x[j].z, x[j].w};
#pragma unroll
      for (int i = 0; i < kTiles; ++i) mma<T>(sum[i][0], kept[2 * j][i], low);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) mma<T>(sum[i][kChains - 1], kept[2 * j + 1][i], high);
    }
    // Of a unit and a sequence gates i and z side by side, and in the other half f and o.
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float(&total)[4] = sum[i][0];
      if constexpr (kChains == 2)
#pragma unroll
        for (int k = 0; k < 4; ++k) total[k] += sum[i][1][k];
      *reinterpret_cast<float4*>(partial + i * kWarps * kTileBytes) =
          make_float4(total[0], total[2], total[1], total[3]);
    }
    warps_arrive<kSummed, kThreads>();
    warps_wait<kSent, kThreads>();
  }
}

/// Makes cells of the sums of a tile, a lane those of one unit and sequence, and sends the new h.
template <class T, int kTiles>
__device__ __forceinline__ void finish(const GridCall<T>& a, int item, int tile,
                                       const unsigned char* partial, unsigned char* wx) {
  constexpr int kThreads = (kWarps + kTiles) * kWarp;
  const int lane = threadIdx.x % kWarp, mine = lane % kSequences, quarter = lane / kSequences;
  const int head = item % a.heads, sequence = item / a.heads * kSequences + mine;
  const std::int64_t column = std::int64_t{head} * a.dh, width = std::int64_t{a.heads} * a.dh;
  const Span span(a.batch, sequence - mine, mine);

  // wx comes by copies of a whole token ahead: a lane takes 4 units of one gate.
  const int copy_units = min(4, a.dh - tile * 4);
  const int copy_length = copy_units > 0 ? span.length : 0;
  const float* const copy_from = a.wx.row(span.begin) + quarter * width + column + tile * 4;
  const auto copy_wx = [&](int step) {
    if (step < copy_length) {
      const unsigned to = shared_address(wx) + step % kStages * kTileBytes + lane * 16;
      const float* from = copy_from + step * a.wx.stride;
      if (a.fours_of_wx) {
        copy_async<16>(to, from);
      } else {
        for (int i = 0; i < copy_units; ++i) copy_async<4>(to + 4 * i, from + i);
      }
    }
    copy_commit();
  };
  for (int step = 0; step < kStages; ++step) copy_wx(step);

  const int unit = tile * 4 + quarter;
  const bool present = unit < a.dh && sequence < a.batch.sequences;
  std::byte* const record = present ? a.batch.slots[sequence] : nullptr;
  const auto state_part = [&](std::size_t offset) {
    return reinterpret_cast<float*>(record + offset) + column + unit;
  };
  float c = 0, n = 0, m = 0, h = 0, bias[kGates] = {};
  if (record != nullptr) {
    c = *state_part(a.state.c);
    n = *state_part(a.state.n);
    m = *state_part(a.state.m);
    h = *state_part(a.state.h);
  }
  if (present) {
#pragma unroll
    for (int q = 0; q < kGates; ++q) bias[q] = a.bias(q * width + column + unit);
  }
  const int place = place_of(unit, mine);
  float* h_to = a.h.row(span.begin) + column + unit;
  partial += lane * 8;

  for (int step = 0; step < span.steps; ++step) {
    float raw[kGates], total[kGates] = {};
    copy_wait<kStages - 1>();
    __syncwarp();
#pragma unroll
    for (int q = 0; q < kGates; ++q)
      raw[q] = reinterpret_cast<const float*>(
                   wx + step % kStages * kTileBytes)[(q * kSequences + mine) * 4 + quarter] +
               bias[q];
    __syncwarp();  // before the copies of another token to the same place
    copy_wx(step + kStages);

    warps_wait<kSummed, kThreads>();
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 two = *reinterpret_cast<const float2*>(partial + w * kTileBytes + half * 256);
        total[half] += two.x;
        total[2 + half] += two.y;
      }
#pragma unroll
    for (int q = 0; q < kGates; ++q) raw[q] += total[q];
    const bool busy = present && step < span.length;
    if (busy) h = slstm_cell_step_fast(raw[0], raw[1], raw[2], raw[3], &c, &n, &m);
    if (present && step + 1 < span.steps) store_seen(a.slot(item, step + 1) + place, h_bits<T>(h));
    warps_arrive<kSent, kThreads>();

    if (present && step % kEmptied == 0) {
#pragma unroll
      for (int i = 0; i < kEmptied; ++i)
        store_seen(a.slot(item, step + kEmptied + i) + place, kMissing);
    }
    if (step % kEmptied == 1) order_stores();  // by when they are done
    if (busy) *h_to = h;
    h_to += a.h.stride;
  }

  copy_wait<0>();
  if (record != nullptr) {
    *state_part(a.state.c) = c;
    *state_part(a.state.n) = n;
    *state_part(a.state.m) = m;
    *state_part(a.state.h) = h;
  }
}

// A step takes h from the next slot as soon as it has come. Each of kWarps warps waits for its own
// columns, multiplies, and leaves its sums to one more warp for every tile, which makes cells of
// them and stores the new h into the slot behind. Only then do the block's warps look for it: the
// other blocks are as far, and who asks too early asks twice.
//
// Who finishes empties slots, half of them at a time: in steps s = 0, kEmptied, ... those of steps
// [s + kEmptied, s + kSlots). What was in them is of steps before s, and all blocks have read that:
// this one has seen what they sent behind it. Who looks into one of them has seen what this warp
// sent in step s + kEmptied - 2 or later, and that is seen later than the emptying: a fence lies
// between.
template <class T, int kPieces, int kTiles>
__global__ void __launch_bounds__((kWarps + kTiles) * kWarp, 1)
    slstm_grid_kernel(const __grid_constant__ GridCall<T> a) {
  __shared__ __align__(16) unsigned char partial[kTiles * kWarps * kTileBytes];
  __shared__ __align__(16) unsigned char wx[kTiles * kStages * kTileBytes];
  constexpr bool kMoreRegisters = kPieces * kTiles >= 24;
  static_assert(!kMoreRegisters || kTiles == 4, "whole groups of warps");
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int block = static_cast<int>(blockIdx.x) % a.blocks;
  const int team = static_cast<int>(blockIdx.x) / a.blocks;
  const int teams = static_cast<int>(gridDim.x) / a.blocks;

  if (warp < kWarps) {
    share_registers<kMoreRegisters>(true);
    for (int item = team; item < a.items; item += teams)
      multiply<T, kPieces, kTiles>(a, item, block, warp, partial);
  } else {
    share_registers<kMoreRegisters>(false);
    const int tile = warp - kWarps;
    for (int item = team; item < a.items; item += teams)
      finish<T, kTiles>(a, item, block * kTiles + tile, partial + tile * kWarps * kTileBytes,
                        wx + tile * kStages * kTileBytes);
  }
}

template <class T, int kPieces, int kTiles>
void run(Context& context, const GridCall<T>& call, std::int64_t teams) {
  launch(context, "slstm",
         {.x = blocks_for(std::int64_t{kSlots} * call.slot_bytes / 2, 256),
          .y = call.items,
          .threads = 256},
         slstm_grid_begin_kernel<T>, call);
  launch(context, "slstm",
         {.x = teams * call.blocks, .threads = (kWarps + kTiles) * kWarp, .cooperative = true},
         slstm_grid_kernel<T, kPieces, kTiles>, call);
}

template <class T, int kTiles>
void run(Context& context, const SlstmGridPlan& plan, const GridCall<T>& call) {
  switch (plan.pieces) {
    case 4: return run<T, 4, kTiles>(context, call, plan.teams);
    case 6: return run<T, 6, kTiles>(context, call, plan.teams);
    default:
      if constexpr (kTiles == SlstmGridPlan::kMostTiles)
        run<T, 8, kTiles>(context, call, plan.teams);
  }
}

template <class T>
void run(Context& context, const SlstmGridPlan& plan, const SlstmArgs& a) {
  const ArenaScope scope(context.arena());
  const GridCall<T> call(a, plan, context.arena().take(plan.scratch()));
  if (plan.tiles < SlstmGridPlan::kMostTiles)
    run<T, SlstmGridPlan::kMostTiles - 1>(context, plan, call);
  else
    run<T, SlstmGridPlan::kMostTiles>(context, plan, call);
}

}  // namespace

bool slstm_grid(Context& context, const SlstmArgs& a) {
  const SlstmGridPlan plan(a.batch, a.r, a.product, multiprocessors(context.device()));
  if (!plan.fits || plan.teams == 0 || plan.items > 0xFFFF) return false;
  if (a.r.dtype == DType::bf16) {
    run<Bf16>(context, plan, a);
  } else {
    run<F16>(context, plan, a);
  }
  return true;
}

}  // namespace xlstm::ops::cuda::sm90
