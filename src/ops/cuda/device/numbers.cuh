#pragma once
// Numbers in device memory, read and written as float; sums over a warp and a block.

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/float_bits.hpp"
#include "xlstm/error.hpp"
#include "xlstm/tensor.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#endif

namespace xlstm::ops::cuda {

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};
/// Stands in tensors of DType::u8.
struct E4m3 {
  std::uint8_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Bf16 x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
#else
  return bf16_to_f32(x.bits);
#endif
}
__device__ inline float to_float(F16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return f16_to_f32(x.bits);
#endif
}
__device__ inline float to_float(E4m3 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3)));
#else
  return e4m3_to_f32(x.bits);
#endif
}

/// To nearest, ties to even.
__device__ inline void store(float* to, float x) { *to = x; }
__device__ inline void store(Bf16* to, float x) {
#if defined(__CUDA_ARCH__)
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  to->bits = f32_to_bf16(x);
#endif
}
__device__ inline void store(F16* to, float x) {
#if defined(__CUDA_ARCH__)
  to->bits = __half_as_ushort(__float2half_rn(x));
#else
  to->bits = f32_to_f16(x);
#endif
}
__device__ inline void store(E4m3* to, float x) {
#if defined(__CUDA_ARCH__)
  to->bits = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
#else
  to->bits = f32_to_e4m3(x);
#endif
}

/// Calls body(T()) with the type that `dtype` names: float, Bf16 or F16.
template <class Body>
void with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32: return body(float());
    case DType::bf16: return body(Bf16());
    case DType::f16: return body(F16());
    default:
      throw Error(ErrorCode::unsupported, std::string("no CUDA kernel reads ") + to_string(dtype));
  }
}

/// A matrix [rows, columns] as a kernel's argument.
template <class T>
struct Matrix {
  T* data;
  std::int64_t stride;
  explicit Matrix(const Tensor& t) : data(static_cast<T*>(t.data)), stride(t.row_stride()) {}
  __device__ T* row(std::int64_t r) const { return data + r * stride; }
};

constexpr int kWarp = 32;

/// The sum of the warp's 32 values, the same bits in every lane.
template <class Real>
__device__ inline Real warp_sum(Real x) {
  for (int bits = kWarp / 2; bits > 0; bits /= 2) x += __shfl_xor_sync(~0U, x, bits);
  return x;
}

/// The sum over all threads of a block of whole warps, the same bits in every thread. `partial` is
/// shared memory of a number per warp; a barrier must lie between two uses of it.
template <class Real>
__device__ inline Real block_sum(Real x, Real* partial) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  Real sum = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) sum += partial[w];
  return sum;
}

/// The larger one; NaN if one is.
__device__ __forceinline__ double larger(double a, double b) { return a != a || a > b ? a : b; }

/// log σ(z) = min(z, 0) - log1p(e^-|z|)
__device__ inline float log_sigmoid(float z) { return fminf(z, 0.0F) - log1pf(expf(-fabsf(z))); }
__device__ inline float sigmoid(float z) { return 1.0F / (1.0F + expf(-z)); }

}  // namespace xlstm::ops::cuda
