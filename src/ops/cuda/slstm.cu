#include "ops/slstm.hpp"

#include <string>

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/device/slstm_cell.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/slstm_plan.hpp"
#include "ops/cuda/sm90/slstm.hpp"

namespace xlstm::ops::cuda {
namespace {

constexpr int kMostThreads = SlstmPlan::kMostWarps * kWarp;
constexpr int kGates = 4;

/// Four neighbours, read at once.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

template <class T>
struct SlstmCall {
  const T* r;
  std::int64_t r_head, r_row;  ///< strides
  Weights b;                   ///< or none
  Matrix<const float> wx;
  Matrix<float> h;
  DeviceBatch batch;
  SlstmStateOffsets state;
  std::int64_t heads;
  int dh, padded, units;  ///< units of a warp
  bool keeps_r;

  SlstmCall(const SlstmArgs& a, const SlstmPlan& plan)
      : r(a.r.as<T>()),
        r_head(a.r.stride[0]),
        r_row(a.r.stride[1]),
        b(a.b),
        wx(a.wx),
        h(a.h),
        batch(a.batch),
        state(a.state),
        heads(plan.heads),
        dh(static_cast<int>(plan.dh)),
        padded(static_cast<int>(plan.padded_dh())),
        units(static_cast<int>(plan.units_per_warp())),
        keeps_r(plan.keeps_r) {}

  /// Whether every row of R is whole fours on their alignment.
  bool rows_of_fours() const {
    return keeps_r || (dh % 4 == 0 && r_head % 4 == 0 && r_row % 4 == 0 &&
                       reinterpret_cast<std::uintptr_t>(r) % sizeof(Four<T>) == 0);
  }
  __device__ float bias(std::int64_t i) const { return b.at_or(0.0F, i); }
};

/// Not inlined, so that every kernel below has the same machine code of it, and a sequence the same
/// bits in each.
__device__ __noinline__ float slstm_cell(float raw_i, float raw_f, float raw_z, float raw_o,
                                         float* c, float* n, float* m) {
  return slstm_cell_step(raw_i, raw_f, raw_z, raw_o, c, n, m);
}

/// The sums over the warp of each of `x`: value i in lanes [i, i + 1) 32 / kValues. Each is added
/// up in the order of warp_sum().
template <int kValues>
__device__ inline float warp_sums(float (&x)[kValues]) {
  const unsigned lane = threadIdx.x % kWarp;
  int bits = kWarp / 2;
  // Lanes that differ in one bit share the values out among them: half of them to each.
  for (int half = kValues / 2; half > 0; half /= 2, bits /= 2) {
    const bool upper = (lane & static_cast<unsigned>(bits)) != 0;
    for (int i = 0; i < half; ++i) {
      const float given = upper ? x[i] : x[i + half];
      const float kept = upper ? x[i + half] : x[i];
      x[i] = kept + __shfl_xor_sync(~0U, given, bits);
    }
  }
  for (; bits > 0; bits /= 2) x[0] += __shfl_xor_sync(~0U, x[0], bits);
  return x[0];
}

/// R h of one unit: the sum of gate q and sequence g is x[q kGroup + g] of warp_sums(). `r` is the
/// unit's row of the first gate. A lane takes every 32nd four in rising order.
template <class T, int kGroup, bool kFours>
__device__ inline float unit_sums(const T* r, std::int64_t gate_stride, const float* h, int dh,
                                  int padded) {
  float sum[kGates * kGroup] = {};
  constexpr int kAtOnce = kGroup < 8 ? 2 : 1;  // more does not fit into the registers
#pragma unroll kAtOnce
  for (int k = static_cast<int>(4 * (threadIdx.x % kWarp)); k < dh; k += 4 * kWarp) {
    Four<T> weight[kGates] = {};
    for (int q = 0; q < kGates; ++q) {
      const T* from = r + q * gate_stride + k;
      if constexpr (kFours) {
        weight[q] = *reinterpret_cast<const Four<T>*>(from);
      } else {
        for (int i = 0; i < 4; ++i)
          if (k + i < dh) weight[q].at[i] = from[i];
      }
    }
    for (int g = 0; g < kGroup; ++g) {
      const auto x = *reinterpret_cast<const Four<float>*>(h + g * padded + k);
      for (int q = 0; q < kGates; ++q)
        for (int i = 0; i < 4; ++i)
          sum[q * kGroup + g] = fmaf(to_float(weight[q].at[i]), x.at[i], sum[q * kGroup + g]);
    }
  }
  return warp_sums(sum);
}

// A block takes a head of kGroup sequences through all their tokens. A warp has `units` units of
// the head; once it has the products of 32 / kGroup of them, a lane has one cell: unit and
// sequence. h is kept twice, before steps of even and of odd number, so that a step needs one
// barrier. A sequence that has ended stays as it is.
template <class T, int kGroup, bool kFours>
__global__ void __launch_bounds__(kMostThreads, 1) slstm_kernel(SlstmCall<T> a) {
  XLSTM_DYNAMIC_SHARED(float, memory);
  constexpr int kCells = kWarp / kGroup, kCopies = kWarp / (kGates * kGroup);
  const std::int64_t head = blockIdx.x % a.heads, first = blockIdx.x / a.heads * kGroup;
  const std::int64_t column = head * a.dh, width = a.heads * a.dh;
  const int floats = kGroup * a.padded, threads = static_cast<int>(blockDim.x);
  float* const c = memory + 2 * floats;
  float* const n = c + floats;
  float* const m = n + floats;

  for (int i = static_cast<int>(threadIdx.x); i < floats; i += threads) {
    const std::int64_t s = first + i / a.padded, j = i % a.padded;
    const std::byte* slot = s < a.batch.sequences && j < a.dh ? a.batch.slots[s] : nullptr;
    const auto part = [&](std::size_t offset) {
      return slot == nullptr ? 0.0F : reinterpret_cast<const float*>(slot + offset)[column + j];
    };
    memory[i] = part(a.state.h);
    memory[floats + i] = 0;
    c[i] = part(a.state.c);
    n[i] = part(a.state.n);
    m[i] = part(a.state.m);
  }
  const T* r = a.r + head * a.r_head;
  std::int64_t r_row = a.r_row;
  if (a.keeps_r) {
    T* kept = reinterpret_cast<T*>(memory + 5 * floats);
    for (int i = static_cast<int>(threadIdx.x); i < kGates * a.dh * a.padded; i += threads) {
      const int j = i % a.padded;
      kept[i] = j < a.dh ? r[i / a.padded * r_row + j] : T{};
    }
    r = kept;
    r_row = a.padded;
  }

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, mine = lane % kGroup;
  int steps = 0, length = 0;
  std::int64_t begin = 0;  // of this lane's sequence
  for (int g = 0; g < kGroup && first + g < a.batch.sequences; ++g) {
    const std::int32_t at = a.batch.offsets[first + g];
    const int count = a.batch.offsets[first + g + 1] - at;
    steps = max(steps, count);
    if (g != mine) continue;
    begin = at;
    length = count;
  }

  const int end = min((warp + 1) * a.units, a.dh);
  for (int step = 0; step < steps; ++step) {
    __syncthreads();
    const float* before = memory + step % 2 * floats;
    float* after = memory + (step + 1) % 2 * floats;
    for (int unit0 = warp * a.units; unit0 < end; unit0 += kCells) {
      const int unit = unit0 + lane / kGroup;
      const bool busy = unit < end && step < length;
      float raw[kGates] = {};
      if (busy) {
        const float* wx = a.wx.row(begin + step) + column + unit;
        for (int q = 0; q < kGates; ++q) raw[q] = wx[q * width] + a.bias(q * width + column + unit);
      }
      const int count = min(kCells, end - unit0);
      for (int u = 0; u < count; ++u) {
        const float sum = unit_sums<T, kGroup, kFours>(r + (unit0 + u) * r_row, a.dh * r_row,
                                                       before, a.dh, a.padded);
        for (int q = 0; q < kGates; ++q) {
          const float x = __shfl_sync(~0U, sum, (q * kGroup + mine) * kCopies);
          if (lane / kGroup == u) raw[q] += x;
        }
      }
      if (busy) {
        const int at = mine * a.padded + unit;
        const float h = slstm_cell(raw[0], raw[1], raw[2], raw[3], c + at, n + at, m + at);
        after[at] = h;
        a.h.row(begin + step)[column + unit] = h;
      }
    }
  }
  __syncthreads();

  for (int i = static_cast<int>(threadIdx.x); i < floats; i += threads) {
    const std::int64_t s = first + i / a.padded, j = i % a.padded;
    std::byte* slot = s < a.batch.sequences && j < a.dh ? a.batch.slots[s] : nullptr;
    if (slot == nullptr) continue;
    const auto put = [&](std::size_t offset, float value) {
      reinterpret_cast<float*>(slot + offset)[column + j] = value;
    };
    put(a.state.h, memory[(a.batch.offsets[s + 1] - a.batch.offsets[s]) % 2 * floats + i]);
    put(a.state.c, c[i]);
    put(a.state.n, n[i]);
    put(a.state.m, m[i]);
  }
}

template <class T, int kGroup>
void run(Context& context, const SlstmPlan& plan, const SlstmCall<T>& call) {
  launch(context, "slstm",
         {.x = plan.blocks(),
          .threads = static_cast<int>(plan.warps() * kWarp),
          .shared = static_cast<std::size_t>(plan.shared)},
         call.rows_of_fours() ? slstm_kernel<T, kGroup, true> : slstm_kernel<T, kGroup, false>,
         call);
}

}  // namespace

void slstm(Context& context, const SlstmArgs& a) {
  if (a.saved)
    throw Error(ErrorCode::unsupported, "slstm on CUDA saves nothing for the backward pass");
  if (level(context.device()) == Level::sm90 && sm90::slstm(context, a)) return;
  const SlstmPlan plan(a.batch, a.r);
  if (!plan.fits())
    throw Error(ErrorCode::unsupported,
                "slstm on CUDA: heads of " + std::to_string(plan.dh) + " units are too wide");
  with_type(a.r.dtype, [&](auto type) {
    using T = decltype(type);
    const SlstmCall<T> call(a, plan);
    switch (plan.group) {
      case 1: return run<T, 1>(context, plan, call);
      case 2: return run<T, 2>(context, plan, call);
      case 4: return run<T, 4>(context, plan, call);
      default: return run<T, 8>(context, plan, call);
    }
  });
}

}  // namespace xlstm::ops::cuda
