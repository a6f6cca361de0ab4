#include "ops/cuda/sm90/slstm_grid.hpp"

#include <algorithm>
#include <string>

#include "ops/cuda/device/slstm_cell.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/slstm_grid_plan.hpp"
#include "ops/cuda/sm90/slstm_call.cuh"
#include "ops/cuda/sm90/slstm_exchange.cuh"

namespace xlstm::ops::cuda::sm90 {
namespace {

using namespace slstm_exchange;

constexpr int kGates = 4, kGroups = 2, kTiles = 2;
constexpr int kGroupSequences = SlstmGridPlan::kSequences / kGroups;
constexpr int kWarps = SlstmGridPlan::kWarps;
constexpr int kSlots = SlstmGridPlan::kSlots;
constexpr int kThreads = (kWarps + 1) * kWarp;  // the last warp empties slots
constexpr int kStages = 4;                      // tokens of wx that are under way
constexpr int kTileBytes = 512;                 // sums of a tile, or a token's wx, of 8 sequences
constexpr int kPartialBytes = kWarps * kTiles * kGroups * kTileBytes;
constexpr int kShared = 2 * kPartialBytes + kTiles * kGroups * kStages * kTileBytes;

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
};

/// What a place of h says before its value has come: a NaN that no rounding makes.
constexpr unsigned kMissing = 0xFFFFFFFFU;
__device__ __forceinline__ bool missing(uint2 four) {
  return (__vcmpeq2(four.x, kMissing) | __vcmpeq2(four.y, kMissing)) != 0;
}
/// Loads and stores where all blocks see them, without order.
__device__ __forceinline__ uint2 load_seen(const unsigned char* from) {
  uint2 x;
  asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
               : "=r"(x.x), "=r"(x.y)
               : "l"(from)
               : "memory");
  return x;
}
__device__ __forceinline__ void store_seen(unsigned char* to, uint2 x) {
  asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(x.x), "r"(x.y)
               : "memory");
}

/// The bits of h, rounded; never kMissing.
template <class T>
__device__ __forceinline__ unsigned h_bits(float h) {
  const unsigned bits = take_bits<T>(&h);
  return bits == 0xFFFF ? 0x7FFFU : bits;
}

// The first slot of every item is the h that its sequences begin with, the others are empty.
template <class T>
__global__ void slstm_grid_begin_kernel(GridCall<T> a) {
  const int words = a.slot_bytes / 8 * kSlots, item = static_cast<int>(blockIdx.y);
  const int head = item % a.heads;
  const int first = item / a.heads * SlstmGridPlan::kSequences;
  const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (at >= words) return;
  uint2 four = make_uint2(kMissing, kMissing);
  if (at < a.slot_bytes / 8) {
    const int chunks = a.slot_bytes / 8 / SlstmGridPlan::kSequences;
    const int s = first + at / (chunks * kGroupSequences) * kGroupSequences + at % kGroupSequences;
    const int unit = at / kGroupSequences % chunks * 4;
    const std::byte* slot = s < a.batch.sequences ? a.batch.slots[s] : nullptr;
    unsigned bits[4];
    for (int i = 0; i < 4; ++i)
      bits[i] = h_bits<T>(slot == nullptr || unit + i >= a.dh
                              ? 0.0F
                              : reinterpret_cast<const float*>(
                                    slot + a.state.h)[std::int64_t{head} * a.dh + unit + i]);
    four = make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
  }
  reinterpret_cast<uint2*>(a.slots)[std::int64_t{item} * words + at] = four;
}

// A step takes h from the next slot as soon as it has come: every warp waits for the columns it
// multiplies. The first four warps then add up what all eight have, each for one tile and 8
// sequences, and store the new h into the slot behind; one more warp empties the slot of three
// steps ahead. What was in it is of the step before, and all blocks have read that: this one has
// seen what they sent after it. They see it empty before they see this block's h of two steps
// ahead, without which none of them looks into it: a fence and a barrier lie between.
template <class T, int kPieces>
__global__ void __launch_bounds__(kThreads, 1)
    slstm_grid_kernel(const __grid_constant__ GridCall<T> a) {
  XLSTM_DYNAMIC_SHARED(unsigned char, memory);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int g = lane / 4, t = lane % 4, odd = g % 2;
  const int block = static_cast<int>(blockIdx.x) % a.blocks;
  const int teams = static_cast<int>(gridDim.x) / a.blocks;
  const int sequences = static_cast<int>(a.batch.sequences);
  const std::int64_t width = std::int64_t{a.heads} * a.dh;
  const bool finishes = warp < kTiles * kGroups;
  const int tile = block * kTiles + warp / kGroups % kTiles;  // of the warps that finish
  const int group = warp % kGroups;
  const int mine = 2 * t + odd;  // the sequence of this lane's cell
  const int unit = tile * 4 + g / 2;
  const int group_bytes = a.slot_bytes / kGroups;
  unsigned char* const my_wx = memory + 2 * kPartialBytes + warp * kStages * kTileBytes;
  int parity = 0;

  for (int item = static_cast<int>(blockIdx.x) / a.blocks; item < a.items; item += teams) {
    const int head = item % a.heads;
    const int first = item / a.heads * SlstmGridPlan::kSequences;
    const std::int64_t column = std::int64_t{head} * a.dh;
    unsigned char* const slots = a.slots + std::int64_t{item} * kSlots * a.slot_bytes;

    int steps = 0, length = 0, copy_length = 0;
    std::int64_t begin = 0, copy_begin = 0;
    for (int s = 0; s < SlstmGridPlan::kSequences && first + s < sequences; ++s) {
      const int at = a.batch.offsets[first + s], count = a.batch.offsets[first + s + 1] - at;
      steps = max(steps, count);
      if (s == group * kGroupSequences + mine) begin = at, length = count;
      if (s == group * kGroupSequences + lane % kGroupSequences)
        copy_begin = at, copy_length = count;
    }
    const float* copy_from =
        a.wx.row(copy_begin) + lane / kGroupSequences * width + column + tile * 4;
    const int copy_units = min(4, a.dh - tile * 4);
    if (copy_units <= 0 || !finishes) copy_length = 0;
    const auto copy_wx = [&](int step) {
      if (step < copy_length) {
        const unsigned to = shared_address(my_wx) + step % kStages * kTileBytes + lane * 16;
        const float* from = copy_from + step * a.wx.stride;
        if (a.fours_of_wx) {
          copy_async<16>(to, from);
        } else {
          for (int i = 0; i < copy_units; ++i) copy_async<4>(to + 4 * i, from + i);
        }
      }
      copy_commit();
    };
    if (finishes)
      for (int step = 0; step < kStages; ++step) copy_wx(step);

    unsigned kept[kPieces][kTiles][4];
#pragma unroll
    for (int j = 0; j < kPieces; ++j)
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        load_piece(kept[j][i], a, a.r + head * a.r_head, block * kTiles + i, warp * kPieces + j);

    std::byte* const slot =
        finishes && first + group * kGroupSequences + mine < sequences && unit < a.dh
            ? a.batch.slots[first + group * kGroupSequences + mine]
            : nullptr;
    const auto state_part = [&](std::size_t offset) {
      return reinterpret_cast<float*>(slot + offset) + column + unit;
    };
    float c = 0, n = 0, m = 0, h = 0, bias[kGates] = {};
    if (slot != nullptr) {
      c = *state_part(a.state.c);
      n = *state_part(a.state.n);
      m = *state_part(a.state.m);
      h = *state_part(a.state.h);
    }
    if (unit < a.dh && finishes) {
#pragma unroll
      for (int q = 0; q < kGates; ++q) bias[q] = a.bias(q * width + column + unit);
    } else {
      length = 0;
    }
    float* h_to = a.h.row(begin) + column + unit;
    const int chunk = warp * kPieces * 4 + t;  // this lane's first one of h

    if (warp == kWarps) {
      // Empties the slot of three steps ahead: 16 sequences of two tiles.
      const int behind = block * kTiles + lane / kGroupSequences;
      unsigned char* const to = slots + (behind * kGroupSequences + lane % kGroupSequences) * 8;
      for (int step = 0; step < steps; ++step) {
        __syncthreads();
        for (int i = 0; i < kGroups; ++i)
          if (lane < kTiles * kGroupSequences && behind < a.tiles)
            store_seen(to + (step + 3) % kSlots * a.slot_bytes + i * group_bytes,
                       make_uint2(kMissing, kMissing));
        __threadfence();
      }
      continue;
    }

    for (int step = 0; step < steps; ++step) {
      const unsigned char* const from =
          slots + step % kSlots * a.slot_bytes + (chunk * kGroupSequences + g) * 8;
      uint2 x[kPieces][kGroups];
#pragma unroll
      for (int j = 0; j < kPieces; ++j)
#pragma unroll
        for (int i = 0; i < kGroups; ++i)
          x[j][i] = chunk + 4 * j < a.tiles ? load_seen(from + i * group_bytes + j * 256)
                                            : make_uint2(0, 0);
      bool again = true;
      while (again) {
        again = false;
#pragma unroll
        for (int j = 0; j < kPieces; ++j)
#pragma unroll
          for (int i = 0; i < kGroups; ++i)
            if (missing(x[j][i])) {
              x[j][i] = load_seen(from + i * group_bytes + j * 256);
              again = true;
            }
      }
      __syncwarp();

      float sum[kTiles][kGroups][4] = {};
#pragma unroll
      for (int j = 0; j < kPieces; ++j)
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          const unsigned two[2] = {x[j][i].x, x[j][i].y};
#pragma unroll
          for (int k = 0; k < kTiles; ++k) mma<T>(sum[k][i], kept[j][k], two);
        }
      unsigned char* const partial = memory + parity * kPartialBytes + lane * 16;
#pragma unroll
      for (int k = 0; k < kTiles; ++k)
#pragma unroll
        for (int i = 0; i < kGroups; ++i)
          *reinterpret_cast<float4*>(partial + ((k * kGroups + i) * kWarps + warp) * kTileBytes) =
              make_float4(sum[k][i][0], sum[k][i][1], sum[k][i][2], sum[k][i][3]);
      __syncthreads();
      parity ^= 1;
      if (!finishes) continue;

      float raw[kGates];
      copy_wait<kStages - 1>();
      __syncwarp();
#pragma unroll
      for (int q = 0; q < kGates; ++q)
        raw[q] =
            reinterpret_cast<const float*>(
                my_wx + step % kStages * kTileBytes)[(q * kGroupSequences + mine) * 4 + g / 2] +
            bias[q];
      __syncwarp();  // before the copies of another token to the same place
      float total[4] = {};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float4 one =
            *reinterpret_cast<const float4*>(partial + (warp * kWarps + w) * kTileBytes);
        total[0] += one.x;
        total[1] += one.y;
        total[2] += one.z;
        total[3] += one.w;
      }
      add_gates(raw, total);
      const bool busy = step < length;
      if (busy) h = slstm_cell_step_fast(raw[0], raw[1], raw[2], raw[3], &c, &n, &m);
      const uint2 four = four_units(h_bits<T>(h));
      if (step + 1 < steps && tile < a.tiles && lane < 8)
        store_seen(slots + (step + 1) % kSlots * a.slot_bytes + group * group_bytes +
                       (tile * kGroupSequences + mine) * 8,
                   four);
      if (busy) *h_to = h;
      h_to += a.h.stride;
      copy_wx(step + kStages);
    }

    copy_wait<0>();
    if (slot != nullptr) {
      *state_part(a.state.c) = c;
      *state_part(a.state.n) = n;
      *state_part(a.state.m) = m;
      *state_part(a.state.h) = h;
    }
  }
}

template <class T, int kPieces>
void run(Context& context, const GridCall<T>& call, int teams) {
  launch(context, "slstm",
         {.x = (call.slot_bytes / 8 * kSlots + 255) / 256, .y = call.items, .threads = 256},
         slstm_grid_begin_kernel<T>, call);
  launch(context, "slstm",
         {.x = std::int64_t{teams} * call.blocks,
          .threads = kThreads,
          .shared = kShared,
          .cooperative = true},
         slstm_grid_kernel<T, kPieces>, call);
}

template <class T>
void run(Context& context, const SlstmGridPlan& plan, const SlstmArgs& a, int teams) {
  const ArenaScope scope(context.arena());
  const GridCall<T> call(a, plan, context.arena().take(plan.scratch()));
  switch (plan.pieces) {
    case 4: return run<T, 4>(context, call, teams);
    case 6: return run<T, 6>(context, call, teams);
    default: return run<T, 8>(context, call, teams);
  }
}

}  // namespace

bool slstm_grid(Context& context, const SlstmArgs& a) {
  const SlstmGridPlan plan(a.batch, a.r, a.product);
  if (!plan.fits || plan.items > 0xFFFF) return false;
  int multiprocessors = 0;
  if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                             context.device().index) != cudaSuccess)
    return false;
  const auto teams = static_cast<int>(std::min(plan.items, multiprocessors / plan.blocks));
  if (teams == 0) return false;
  if (a.r.dtype == DType::bf16) {
    run<Bf16>(context, plan, a, teams);
  } else {
    run<F16>(context, plan, a, teams);
  }
  return true;
}

}  // namespace xlstm::ops::cuda::sm90
