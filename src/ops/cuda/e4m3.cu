// Rows to e4m3. The products are in linear.cu.

#include "ops/e4m3.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;

/// What a row whose largest is `most` is multiplied with, and its scale.
struct RowScale {
  float factor, scale;
  __device__ explicit RowScale(float most) : factor(0), scale(0) {
    constexpr float kLeast = 1e-30F;
    if (most < kLeast) return;
    factor = kMostE4m3 / most;
    scale = most / kMostE4m3;
  }
};

/// The largest of the block's values, in every thread.
__device__ float block_most(float x) {
  __shared__ float partial[kThreads / kWarp];
  for (int bits = kWarp / 2; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(~0U, x, bits));
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float most = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) most = fmaxf(most, partial[w]);
  return most;
}

// A block has a row and reads it twice.
template <class X>
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(Matrix<const X> x, Matrix<E4m3> y, float* scales, std::int64_t width) {
  grid_wait();
  grid_trigger();
  const X* row = x.row(blockIdx.x);
  float most = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads)
    most = fmaxf(most, fabsf(to_float(row[i])));
  const RowScale s(block_most(most));
  if (threadIdx.x == 0) scales[blockIdx.x] = s.scale;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads)
    store(y.row(blockIdx.x) + i, to_float(row[i]) * s.factor);
}

// The same of aligned rows of bf16, which stay in registers: kPacks of 8 numbers a thread.
constexpr int kPackNumbers = 8;

template <int kPacks>
__global__ void __launch_bounds__(kThreads)
    quantise_packs_kernel(Matrix<const Bf16> x, Matrix<E4m3> y, float* scales, int width) {
  grid_wait();
  const Bf16* row = x.row(blockIdx.x);
  Pack<Bf16> packs[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int at = (p * kThreads + static_cast<int>(threadIdx.x)) * kPackNumbers;
    packs[p] = {};
    if (at < width) packs[p] = *reinterpret_cast<const Pack<Bf16>*>(row + at);
  }
  grid_trigger();
  float most = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int i = 0; i < kPackNumbers; ++i) most = fmaxf(most, fabsf(to_float(packs[p].at(i))));
  const RowScale s(block_most(most));
  if (threadIdx.x == 0) scales[blockIdx.x] = s.scale;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int at = (p * kThreads + static_cast<int>(threadIdx.x)) * kPackNumbers;
    if (at >= width) continue;
    E4m3 codes[kPackNumbers];
#pragma unroll
    for (int i = 0; i < kPackNumbers; ++i) store(codes + i, to_float(packs[p].at(i)) * s.factor);
    uint2 both;
    std::memcpy(&both, codes, sizeof(both));
    *reinterpret_cast<uint2*>(y.row(blockIdx.x) + at) = both;
  }
}

bool on_bytes(const Tensor& t, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(t.data) % bytes == 0 &&
         static_cast<std::size_t>(t.row_stride()) * size_of(t.dtype) % bytes == 0;
}

}  // namespace

void quantise_e4m3(Context& context, const QuantiseE4m3Args& a) {
  if (a.x.count() == 0) return;
  constexpr const char* kName = "quantise_e4m3";
  const Grid grid{.x = a.x.dim(0), .threads = kThreads, .overlap = true};
  const std::int64_t width = a.x.dim(1);
  const Matrix<E4m3> y(a.y.codes);
  auto* scales = a.y.scales.as<float>();
  constexpr int kFew = 2, kMany = 6, kPass = kThreads * kPackNumbers;
  if (a.x.dtype == DType::bf16 && width % kPackNumbers == 0 && width <= kMany * kPass &&
      on_bytes(a.x, 16) && on_bytes(a.y.codes, 8))
    return launch(
        context, kName, grid,
        width <= kFew * kPass ? quantise_packs_kernel<kFew> : quantise_packs_kernel<kMany>,
        Matrix<const Bf16>(a.x), y, scales, static_cast<int>(width));
  with_type(a.x.dtype, [&](auto type) {
    using X = decltype(type);
    launch(context, kName, grid, quantise_kernel<X>, Matrix<const X>(a.x), y, scales, width);
  });
}

}  // namespace xlstm::ops::cuda
