#include "ops/cuda/sm90/slstm.hpp"

#include <string>

#include "ops/cuda/device/slstm_cell.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/slstm_cluster_plan.hpp"
#include "ops/cuda/sm90/slstm_call.cuh"
#include "ops/cuda/sm90/slstm_exchange.cuh"
#include "ops/cuda/sm90/slstm_grid.hpp"

namespace xlstm::ops::cuda::sm90 {
namespace {

using namespace slstm_exchange;

constexpr int kGates = 4;
constexpr int kSequences = SlstmClusterPlan::kSequences;
constexpr int kStages = SlstmClusterPlan::kStages;
constexpr int kFloatChunk = 144;   // the same in f32; 8 of them begin in different banks
constexpr int kChunkBytes = 64;    // h of 4 units of 8 sequences, in 16 bits
constexpr int kGroupBytes = 2048;  // a piece of R of the tiles of a warp group
constexpr int kTileBytes = 512;    // a piece of R, or a token's wx, of a warp
constexpr int kBarriers = SlstmClusterPlan::kBarrierBytes;

template <class T>
struct ClusterCall : SlstmCall<T> {
  int blocks, warps, columns, chunks;

  ClusterCall(const SlstmArgs& a, const SlstmClusterPlan& plan)
      : SlstmCall<T>(a),
        blocks(plan.blocks),
        warps(static_cast<int>(plan.warps)),
        columns(static_cast<int>(plan.columns)),
        chunks(static_cast<int>(plan.h_chunks())) {}
};

/// Sums of all pieces of a warp's tile, for kParts times 8 sequences, by mma.sync.
/// @param h  this lane's 8 bytes of the first columns
template <class T, int kParts, int kKept>
__device__ __forceinline__ void multiply(float (&sum)[kParts][4], const unsigned (&kept)[kKept][4],
                                         const unsigned char* h, int h_part) {
  constexpr int kChains = kParts > 1 ? 2 : 4;  // of sums that wait for each other
  float chains[kParts][kChains][4] = {};
#pragma unroll
  for (int j = 0; j < kKept; ++j)
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const uint2 two = *reinterpret_cast<const uint2*>(h + p * h_part + j * 4 * kChunkBytes);
      const unsigned x[2] = {two.x, two.y};
      mma<T>(chains[p][j % kChains], kept[j], x);
    }
#pragma unroll
  for (int p = 0; p < kParts; ++p)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[p][i] = chains[p][0][i];
#pragma unroll
      for (int chain = 1; chain < kChains; ++chain) sum[p][i] += chains[p][chain][i];
    }
}

/// Sums of the warp's tile by float32 multiply-adds. R is in shared memory as [32 columns][4 gates]
/// [lane][4]: a lane has 4 columns of the 4 gates of one unit, for all 8 sequences.
__device__ __forceinline__ void multiply_floats(float (&sum)[1][4], const unsigned char* r,
                                                const unsigned char* h, int columns) {
  const int lane = threadIdx.x % kWarp;
  r += lane * 16;
  h += lane % 8 * kFloatChunk;
  float each[kGates][kSequences] = {};
#pragma unroll 1
  for (int i = 0; i < columns; ++i) {
    float4 w[kGates];
#pragma unroll
    for (int q = 0; q < kGates; ++q)
      w[q] = *reinterpret_cast<const float4*>(r + (i * kGates + q) * kTileBytes);
#pragma unroll
    for (int s = 0; s < kSequences; ++s) {
      const float4 x = *reinterpret_cast<const float4*>(h + i * 8 * kFloatChunk + s * 16);
#pragma unroll
      for (int q = 0; q < kGates; ++q) {
        each[q][s] = fmaf(w[q].x, x.x, each[q][s]);
        each[q][s] = fmaf(w[q].y, x.y, each[q][s]);
        each[q][s] = fmaf(w[q].z, x.z, each[q][s]);
        each[q][s] = fmaf(w[q].w, x.w, each[q][s]);
      }
    }
  }
  // Lanes that differ in one bit share the sums out among them, until each has those that mma()
  // would leave it.
  const auto exchanged = [&](bool upper, float low, float high, int bit) {
    const float other = __shfl_xor_sync(~0U, upper ? low : high, bit);
    return (upper ? high : low) + other;
  };
  float half[2][kSequences], quarter[2][4];
#pragma unroll
  for (int q = 0; q < 2; ++q) {
#pragma unroll
    for (int s = 0; s < kSequences; ++s)
      half[q][s] = exchanged((lane & 4) != 0, each[2 * q][s], each[2 * q + 1][s], 4);
#pragma unroll
    for (int s = 0; s < 4; ++s)
      quarter[q][s] = exchanged((lane & 2) != 0, half[q][s], half[q][s + 4], 2);
#pragma unroll
    for (int s = 0; s < 2; ++s)
      sum[0][2 * q + s] = exchanged((lane & 1) != 0, quarter[q][s], quarter[q][s + 2], 1);
  }
}

// h of all units of the head lies in every block twice, before steps of even and of odd number, as
// [parts][4 units][8 sequences][4]. At the end of a step every warp stores its 4 units into all
// blocks, and a barrier of each block counts what has come; no block can be ahead of another by
// more than a step, because it needs all of h. What is overwritten has been read by then: a block's
// h of a step is sent after its warps have read that of the step before.
template <class T, int kParts, int kKept>
__global__ void __launch_bounds__(SlstmClusterPlan::kMostWarps* kWarp, 1)
    slstm_cluster_kernel(const __grid_constant__ ClusterCall<T> a) {
  XLSTM_DYNAMIC_SHARED(unsigned char, memory);
  const int rank = static_cast<int>(blockIdx.x) % a.blocks;
  const int item = static_cast<int>(blockIdx.x) / a.blocks;
  const int head = item % a.heads, first = item / a.heads * kSequences;
  const int sequences = static_cast<int>(a.batch.sequences);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int g = lane / 4, t = lane % 4, odd = g % 2;
  const int tile = rank * a.warps + warp;  // this warp's own one
  const std::int64_t column = std::int64_t{head} * a.dh, width = std::int64_t{a.heads} * a.dh;

  unsigned char* const h_memory = memory + kBarriers;
  constexpr bool kFloat = std::is_same_v<T, float>;
  constexpr int kChunk = kFloat ? kFloatChunk : kChunkBytes;
  constexpr int kSent = kFloat ? 128 : kParts * kChunkBytes;  // of a tile
  const int h_part = a.chunks * kChunk, h_buffer = kParts * h_part;
  unsigned char* const wx_memory = h_memory + 2 * h_buffer;
  unsigned char* const my_wx = wx_memory + warp * kStages * kTileBytes;
  unsigned char* const my_r =
      wx_memory + a.warps * kStages * kTileBytes + warp * a.columns * kGroupBytes;
  const unsigned base = shared_address(memory);

  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(base + 8 * i, 1);
      barrier_expect(base + 8 * i, a.tiles * kSent);
    }
    barrier_init_fence();
  }

  // wx comes by copies of a whole token ahead: a lane takes one gate of one sequence.
  int steps = 0, length = 0, copy_length = 0;
  std::int64_t begin = 0, copy_begin = 0;
  const int mine = 2 * t + odd;  // the sequence of this lane's cell
  for (int s = 0; s < kSequences && first + s < sequences; ++s) {
    const int at = a.batch.offsets[first + s], count = a.batch.offsets[first + s + 1] - at;
    steps = max(steps, count);
    if (s == mine) begin = at, length = count;
    if (s == lane % kSequences) copy_begin = at, copy_length = count;
  }
  const float* copy_from = a.wx.row(copy_begin) + lane / kSequences * width + column + tile * 4;
  const int copy_units = min(4, a.dh - tile * 4);
  if (copy_units <= 0) copy_length = 0;
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
  for (int step = 0; step < kStages; ++step) copy_wx(step);

  const T* const r = a.r + head * a.r_head;
  [[maybe_unused]] unsigned kept[kKept][4];
  if constexpr (kFloat) {
    static_assert(kGroupBytes == kGates * kTileBytes);
    const int row = tile * 4 + lane / 8;
    for (int i = 0; i < a.columns; ++i)
      for (int q = 0; q < kGates; ++q) {
        const int k = i * 32 + lane % 8 * 4;
        const float* from = r + (std::int64_t{q} * a.dh + row) * a.r_row + k;
        float four[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] = row < a.dh && k + j < a.dh ? from[j] : 0.0F;
        *reinterpret_cast<float4*>(my_r + (i * kGates + q) * kTileBytes + lane * 16) =
            make_float4(four[0], four[1], four[2], four[3]);
      }
  } else {
#pragma unroll
    for (int i = 0; i < kKept; ++i) load_piece(kept[i], a, r, tile, i * 16 + 4 * t);
  }

  // This lane's cell.
  const int unit = tile * 4 + g / 2, threads = static_cast<int>(blockDim.x);
  std::byte* const slot =
      first + mine < sequences && unit < a.dh ? a.batch.slots[first + mine] : nullptr;
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
  if (unit < a.dh) {
#pragma unroll
    for (int q = 0; q < kGates; ++q) bias[q] = a.bias(q * width + column + unit);
  } else {
    length = 0;
  }
  float* h_to = a.h.row(begin) + column + unit;

  for (int i = threadIdx.x; i < h_buffer / 4; i += threads)
    reinterpret_cast<unsigned*>(h_memory + h_buffer)[i] = 0;
  for (int s = 0; s < kSequences; ++s) {
    const std::byte* from = first + s < sequences ? a.batch.slots[first + s] : nullptr;
    for (int j = threadIdx.x; j < 4 * a.chunks; j += threads) {
      float x = from != nullptr && j < a.dh
                    ? reinterpret_cast<const float*>(from + a.state.h)[column + j]
                    : 0.0F;
      if constexpr (kFloat) {
        *reinterpret_cast<float*>(h_memory + j / 4 * kChunk + s * 16 + j % 4 * 4) = x;
      } else {
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
          auto* to = reinterpret_cast<std::uint16_t*>(h_memory + p * h_part);
          to[(j / 4 * kSequences + s) * 4 + j % 4] = static_cast<std::uint16_t>(take_bits<T>(&x));
        }
      }
    }
  }
  __syncthreads();
  cluster_arrive();  // the state has been read, the barriers are there

  // Where this lane sends h of the warp's units: of two sequences, and 8 lanes have the same 16
  // bytes; or, where those do not lie side by side, of one, and 4 lanes have the same 8.
  constexpr int kSenders = kFloat ? 4 : 8;
  constexpr int kTargets = SlstmClusterPlan::kMostBlocks / kSenders;
  const int sender = lane / (kWarp / kSenders);
  unsigned target[kTargets];
#pragma unroll
  for (int i = 0; i < kTargets; ++i)
    target[i] = address_in(base, min(sender + kSenders * i, a.blocks - 1));
  const unsigned send_at = kBarriers + tile * kChunk + (kFloat ? mine : t) * 16;
  if (steps == 0) cluster_wait();

  for (int step = 0; step < steps; ++step) {
    const int buffer = step % 2;
    float raw[kGates];
    copy_wait<kStages - 1>();
    __syncwarp();
#pragma unroll
    for (int q = 0; q < kGates; ++q)
      raw[q] = reinterpret_cast<const float*>(
                   my_wx + step % kStages * kTileBytes)[(q * kSequences + mine) * 4 + g / 2] +
               bias[q];
    __syncwarp();
    copy_wx(step + kStages);

    if (step > 0) {
      barrier_wait(base + 8 * buffer, (step - 1) / 2 % 2);
      if (threadIdx.x == 0) barrier_expect(base + 8 * buffer, a.tiles * kSent);  // for two steps on
    }

    float sum[kParts][4];
    if constexpr (kFloat)
      multiply_floats(sum, my_r, h_memory + buffer * h_buffer, a.columns);
    else
      multiply<T, kParts, kKept>(sum, kept, h_memory + buffer * h_buffer + t * kChunkBytes + g * 8,
                                 h_part);
    float total[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      total[i] = sum[kParts - 1][i];
#pragma unroll
      for (int p = kParts - 2; p >= 0; --p) total[i] += sum[p][i];  // the small ones first
    }
    add_gates(raw, total);

    const bool busy = step < length;
    if (busy)
      h = kParts == 1 && !kFloat ? slstm_cell_step_fast(raw[0], raw[1], raw[2], raw[3], &c, &n, &m)
                                 : slstm_cell_step(raw[0], raw[1], raw[2], raw[3], &c, &n, &m);
    if (step == 0) cluster_wait();
    if (step + 1 < steps && tile < a.tiles) {
      const unsigned to = send_at + (buffer ^ 1) * h_buffer, barrier = 8 * (buffer ^ 1);
      if constexpr (kFloat) {
        const unsigned bits = __float_as_uint(h), next = __shfl_xor_sync(~0U, bits, 8);
        const unsigned low = (lane & 8) != 0 ? next : bits, high = (lane & 8) != 0 ? bits : next;
        const unsigned next_low = __shfl_xor_sync(~0U, low, 16);
        const unsigned next_high = __shfl_xor_sync(~0U, high, 16);
        const bool upper = (lane & 16) != 0;
        const unsigned words[4] = {upper ? next_low : low, upper ? next_high : high,
                                   upper ? low : next_low, upper ? high : next_high};
#pragma unroll
        for (int i = 0; i < kTargets; ++i)
          if (sender + kSenders * i < a.blocks)
            store_counted(target[i] + to, words, target[i] + barrier);
      } else {
        float rest = h;
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
          const uint2 four = four_units(take_bits<T>(&rest));
          const unsigned next_low = __shfl_xor_sync(~0U, four.x, 4);
          const unsigned next_high = __shfl_xor_sync(~0U, four.y, 4);
          const unsigned words[4] = {odd ? next_low : four.x, odd ? next_high : four.y,
                                     odd ? four.x : next_low, odd ? four.y : next_high};
#pragma unroll
          for (int i = 0; i < kTargets; ++i)
            if (sender + kSenders * i < a.blocks)
              store_counted(target[i] + to + p * h_part, words, target[i] + barrier);
        }
      }
    }
    if (busy) *h_to = h;
    h_to += a.h.stride;
  }

  if (slot != nullptr) {
    *state_part(a.state.c) = c;
    *state_part(a.state.n) = n;
    *state_part(a.state.m) = m;
    *state_part(a.state.h) = h;
  }
}

/// Whether the card has room for a cluster of more than the 8 blocks that every one has.
template <class T>
bool has_cluster(Context& context, const SlstmClusterPlan& plan, void (*kernel)(ClusterCall<T>)) {
  if (plan.blocks <= 8) return true;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(static_cast<unsigned>(plan.warps * kWarp));
  config.dynamicSmemBytes = static_cast<std::size_t>(plan.shared);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(plan.blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const CurrentDevice current(context.device());
  int clusters = 0;
  const bool asked = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(plan.shared)) == cudaSuccess &&
                     cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                          1) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess;
  if (!asked) static_cast<void>(cudaGetLastError());
  return clusters > 0;
}

template <class T, int kParts, int kKept>
bool run(Context& context, SlstmClusterPlan plan, const SlstmArgs& a) {
  const auto kernel = slstm_cluster_kernel<T, kParts, kKept>;
  if (!has_cluster(context, plan, kernel)) {
    plan = SlstmClusterPlan(a.r, kParts, 8);
    if (!plan.fits) return false;
  }
  const std::int64_t groups =
      (a.batch.sequences() + SlstmClusterPlan::kSequences - 1) / SlstmClusterPlan::kSequences;
  launch(context, "slstm",
         {.x = plan.heads * groups * plan.blocks,
          .threads = static_cast<int>(plan.warps * kWarp),
          .shared = static_cast<std::size_t>(plan.shared),
          .cluster = plan.blocks},
         kernel, ClusterCall<T>(a, plan));
  return true;
}

template <class T, int kParts>
bool run(Context& context, const SlstmClusterPlan& plan, const SlstmArgs& a) {
  switch (plan.kept) {
    case 4: return run<T, kParts, 4>(context, plan, a);
    case 8: return run<T, kParts, 8>(context, plan, a);
    case 12: return run<T, kParts, 12>(context, plan, a);
    case 16: return run<T, kParts, 16>(context, plan, a);
    case 20: return run<T, kParts, 20>(context, plan, a);
    case 24: return run<T, kParts, 24>(context, plan, a);
    default: return false;
  }
}

}  // namespace

bool slstm(Context& context, const SlstmArgs& a) {
  if (a.saved) return false;
  const bool floats = a.r.dtype == DType::f32, rounds = a.product == DType::bf16;
  if (slstm_grid(context, a)) return true;
  const SlstmClusterPlan plan(a.r, floats || rounds ? 1 : 3);
  if (!plan.fits) return false;
  if (floats) return run<float, 1, 1>(context, plan, a);
  if (a.r.dtype == DType::bf16)
    return rounds ? run<Bf16, 1>(context, plan, a) : run<Bf16, 3>(context, plan, a);
  return rounds ? run<F16, 1>(context, plan, a) : run<F16, 3>(context, plan, a);
}

}  // namespace xlstm::ops::cuda::sm90
