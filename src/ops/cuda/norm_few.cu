#include "ops/cuda/norm_few.hpp"

#include "ops/cuda/device/gate.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"

namespace xlstm::ops::cuda {
namespace {

// A block has a row, and a thread sixteen numbers of it, eight in each half of the row. Blocks
// leave room on their multiprocessor for one of the product before or after them: 3 warps of that
// are in one of its quarters, and 2 of these, of at most 80 registers.
constexpr int kOwn = 16;
constexpr int kHalf = kOwn / 2;
constexpr int kMostThreads = 256;
constexpr int kBlocks = 3;  // that could share a multiprocessor: bounds the registers
constexpr int kMostWarps = kMostThreads / kWarp;
constexpr int kGatesAtOnce = 4;
constexpr int kMostGates = kWarp;  // what the smallest block has threads for

/// Where a thread's numbers lie in a row.
struct Places {
  int first, second;
  int width;
  __device__ explicit Places(int width_)
      : first(static_cast<int>(threadIdx.x) * kHalf),
        second(first + static_cast<int>(blockDim.x) * kHalf),
        width(width_) {}
  __device__ int of(int half) const { return half == 0 ? first : second; }
  __device__ bool has(int half) const { return of(half) < width; }
  /// Where weights are read, also those of numbers that do not exist.
  __device__ int weights(int half) const { return has(half) ? of(half) : 0; }
};

__device__ __forceinline__ void unpack(const float4& four, float* to) {
  to[0] = four.x;
  to[1] = four.y;
  to[2] = four.z;
  to[3] = four.w;
}

/// The weights of a thread's numbers, as they lie in memory.
struct OwnWeights {
  FourWeights fours[kOwn / 4];
  __device__ OwnWeights(const Weights& w, const Places& at)
      : fours{FourWeights(w, at.weights(0)), FourWeights(w, at.weights(0) + 4),
              FourWeights(w, at.weights(1)), FourWeights(w, at.weights(1) + 4)} {}
  __device__ void floats(float (&to)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn / 4; ++i) unpack(fours[i].floats(), to + 4 * i);
  }
};

/// A thread's numbers of a row; zeros where there are none.
__device__ __forceinline__ void load_own(const float* row, const Places& at, float (&x)[kOwn]) {
  float4 fours[kOwn / 4];
#pragma unroll
  for (int i = 0; i < kOwn / 4; ++i) {
    fours[i] = {};
    // Not by the first-level cache, where the gates' kernel, which does not wait, could find what a
    // kernel before the last one has read there.
    if (at.has(i / 2))
      fours[i] = __ldcg(reinterpret_cast<const float4*>(row + at.of(i / 2) + i % 2 * 4));
  }
#pragma unroll
  for (int i = 0; i < kOwn / 4; ++i) unpack(fours[i], x + 4 * i);
}

template <class Y>
__device__ __forceinline__ void store_own(Y* row, const Places& at, const float (&v)[kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; i += 4)
    if (at.has(i / kHalf))
      store_four(row + at.of(i / kHalf) + i % kHalf, {v[i], v[i + 1], v[i + 2], v[i + 3]});
}

/// x / rms(row) w + b in place of x.
/// @param partial  one for each warp
__device__ __forceinline__ void norm_own(float (&x)[kOwn], const OwnWeights& w, const Weights& b,
                                         const Places& at, float eps, float* partial) {
  float sum = 0;
#pragma unroll
  for (const float own : x) sum = fmaf(own, own, sum);
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) sum += partial[i];
  const float scale = reciprocal_root(sum / static_cast<float>(at.width), eps);
  float n[kOwn], c[kOwn] = {};
  w.floats(n);
  if (b.any()) OwnWeights(b, at).floats(c);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) x[i] = fmaf(x[i] * scale, n[i], c[i]);
}

template <class Y>
__global__ void __launch_bounds__(kMostThreads, kBlocks)
    norms_kernel(Matrix<const float> x, Weights w, Weights b, float eps, Matrix<Y> y, int width,
                 int at_once) {
  __shared__ float partial[kMostWarps];
  const Places at(width);
  const OwnWeights weights(w, at);  // while the kernel before this one ends
  grid_wait();
  float v[kOwn];
  load_own(x.row(blockIdx.x), at, v);
  // The row of a block that begins when this one ends: memory is not idle while all that run have
  // theirs.
  const unsigned next = blockIdx.x + at_once;
  constexpr int kLine = 128 / static_cast<int>(sizeof(float));
  if (next < gridDim.x)
    for (int d = threadIdx.x * kLine; d < width; d += blockDim.x * kLine) prefetch(x.row(next) + d);
  grid_trigger();  // not before: weights of the next kernel would be ahead of the row
  norm_own(v, weights, b, at, eps, partial);
  store_own(y.row(blockIdx.x), at, v);
}

/// Adds up what the lanes have of four sums; lane l gets number l / 8.
__device__ __forceinline__ float shared_sum(const float (&sums)[kGatesAtOnce], int lane) {
  float two[2];
  const auto keep = [lane](float low, float high, int width) {
    const bool upper = (lane & width) != 0;
    return (upper ? high : low) + __shfl_xor_sync(~0U, upper ? low : high, width);
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) two[i] = keep(sums[i], sums[i + 2], 16);
  float one = keep(two[0], two[1], 8);
  one += __shfl_xor_sync(~0U, one, 4);
  one += __shfl_xor_sync(~0U, one, 2);
  return one + __shfl_xor_sync(~0U, one, 1);
}

/// Gates `begin` to `end` - 1 of both, of a normed row.
/// @param sums  for each warp
__device__ __forceinline__ void make_gates(const float (&v)[kOwn], const GatePair& gates, int begin,
                                           int end, const Places& at, float (*sums)[kMostGates]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int first = begin; first < end; first += kGatesAtOnce) {
    Pack<Bf16> rows[kGatesAtOnce][2];
#pragma unroll
    for (int i = 0; i < kGatesAtOnce; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        rows[i][half] =
            *reinterpret_cast<const Pack<Bf16>*>(gates.row(first + i) + at.weights(half));
    float dots[kGatesAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kGatesAtOnce; ++i)
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        if (at.has(k / kHalf))
          dots[i] = fmaf(v[k], to_float(rows[i][k / kHalf].at(k % kHalf)), dots[i]);
    const float sum = shared_sum(dots, lane);
    if (lane % 8 == 0) sums[threadIdx.x / kWarp][first - begin + lane / 8] = sum;
  }
  __syncthreads();
  const int gate = begin + static_cast<int>(threadIdx.x);
  if (gate < end) {  // all at once: it takes microseconds
    float all = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) all += sums[i][threadIdx.x];
    finish_gate(gate < gates.heads ? gates.input : gates.forget, blockIdx.x, gate % gates.heads,
                all, gates.cap);
    __threadfence();
  }
}

__global__ void __launch_bounds__(kMostThreads, kBlocks)
    few_gates_kernel(Matrix<const float> x, Weights w, Weights b, float eps, GatePair gates,
                     int width) {
  __shared__ float partial[kMostWarps], sums[kMostWarps][kMostGates];
  const Places at(width);
  float v[kOwn];
  load_own(x.row(blockIdx.x), at, v);
  const OwnWeights weights(w, at);
  norm_own(v, weights, b, at, eps, partial);
  make_gates(v, gates, 0, 2 * gates.heads, at, sums);
  // The next kernel begins when all gates are there.
  __syncwarp();
  if (threadIdx.x < kWarp) grid_trigger();
  grid_wait();
}

/// The first block of a row writes it, the others share its gates.
template <class Y>
__global__ void __launch_bounds__(kMostThreads, kBlocks)
    norms_gates_kernel(Matrix<const float> x, Weights w, Weights b, float eps, Matrix<Y> y,
                       GatePair gates, int width) {
  __shared__ float partial[kMostWarps], sums[kMostWarps][kMostGates];
  const Places at(width);
  const OwnWeights weights(w, at);  // while the kernel before this one ends
  grid_wait();
  float v[kOwn];
  load_own(x.row(blockIdx.x), at, v);
  grid_trigger();
  norm_own(v, weights, b, at, eps, partial);
  if (blockIdx.y == 0) {
    store_own(y.row(blockIdx.x), at, v);
    return;
  }
  const int sharers = static_cast<int>(gridDim.y) - 1, all = 2 * gates.heads,
            own = (all + sharers - 1) / sharers, begin = (static_cast<int>(blockIdx.y) - 1) * own;
  make_gates(v, gates, begin, min(begin + own, all), at, sums);
}

bool serves(const Tensor& x, const Tensor& w, const Tensor& b) {
  return x.dim(1) % kHalf == 0 && x.dim(1) <= kMostThreads * kOwn && on_16_bytes(x) &&
         on_16_bytes(w) && (!b || on_16_bytes(b));
}

Grid grid_of(const Tensor& x) {
  return {.x = x.dim(0),
          .threads = static_cast<int>(blocks_for(x.dim(1), kOwn * kWarp)) * kWarp,
          .overlap = true,
          .beside = true};
}

GatePair gates_of(const RmsNormGatesArgs& a) {
  return {Gate(a.w_i, a.b_i, a.i, a.sigmoid_input), Gate(a.w_f, a.b_f, a.log_f, true),
          static_cast<int>(a.w_i.dim(0)), a.cap};
}

}  // namespace

bool rms_norm_by_rows(Context& context, const RmsNormArgs& a) {
  if (!serves(a.x, a.w, a.b) || !on_16_bytes(a.y)) return false;
  with_type(a.y.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm", grid_of(a.x), norms_kernel<Y>, Matrix<const float>(a.x),
           Weights(a.w), Weights(a.b), a.eps, Matrix<Y>(a.y), static_cast<int>(a.x.dim(1)),
           kBlocks * multiprocessors(context.device()));
  });
  return true;
}

bool serves_gates_of_few_rows(const RmsNormGatesArgs& a) {
  return a.x.dim(0) <= kFewNormRows && serves(a.x, a.w, a.b) && on_16_bytes(a.u) &&
         a.w_i.dtype == DType::bf16 && 2 * a.w_i.dim(0) <= kMostGates &&
         a.w_f.dtype == DType::bf16 && on_16_bytes(a.w_i) && on_16_bytes(a.w_f);
}

void rms_norm_gates_of_few_rows(Context& context, const RmsNormGatesArgs& a) {
  Grid grid = grid_of(a.x);
  // All blocks at once: one, two or four share the gates of a row.
  constexpr std::int64_t kPlaces = kBlocks * std::int64_t{132};
  std::int64_t sharers = 4;
  while (sharers > 1 && grid.x * (1 + sharers) > kPlaces) sharers /= 2;
  grid.y = 1 + sharers;
  with_type(a.u.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm_gates", grid, norms_gates_kernel<Y>, Matrix<const float>(a.x),
           Weights(a.w), Weights(a.b), a.eps, Matrix<Y>(a.u), gates_of(a),
           static_cast<int>(a.x.dim(1)));
  });
}

void gates_of_few_rows(Context& context, const RmsNormGatesArgs& a) {
  launch(context, "rms_norm_gates", grid_of(a.x), few_gates_kernel, Matrix<const float>(a.x),
         Weights(a.w), Weights(a.b), a.eps, gates_of(a), static_cast<int>(a.x.dim(1)));
}

}  // namespace xlstm::ops::cuda
