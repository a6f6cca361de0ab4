#pragma once
// What both matrix kernels do with their sums.

#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/sm90/matmul_kernels.cuh"
#include "xlstm/dtype.hpp"

namespace xlstm::ops::cuda {

/// bias[n]; 0 where there is none.
__device__ __forceinline__ float bias_of(const void* bias, DType dtype, std::int64_t n,
                                         std::int64_t count) {
  if (bias == nullptr || n >= count) return 0.0F;
  if (dtype == DType::bf16) return to_float(static_cast<const Bf16*>(bias)[n]);
  if (dtype == DType::f16) return to_float(static_cast<const F16*>(bias)[n]);
  return static_cast<const float*>(bias)[n];
}

/// Two numbers rounded to bf16, the first in the lower half.
__device__ __forceinline__ unsigned bf16_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  unsigned bits = 0;
  std::memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

/// silu(gate) up
__device__ __forceinline__ float gated(float gate, float up) {
  return __fdividef(gate, 1.0F + __expf(-gate)) * up;
}

/// Where sums go: columns n of weight `weight`.
struct Target {
  const MatmulArgs& a;
  int weight;

  __device__ __forceinline__ float bias(std::int64_t n) const {
    return bias_of(a.bias[weight], a.bias_dtype, n, a.outputs[weight]);
  }
  /// Columns n to n + 3, n a multiple of 4, where y is f32; and whether it has them.
  __device__ __forceinline__ float4* four(int t, std::int64_t n) const {
    return reinterpret_cast<float4*>(static_cast<float*>(a.y) + t * a.y_stride + a.first[weight] +
                                     n);
  }
  __device__ __forceinline__ bool has_four(int t, std::int64_t n) const {
    return t < a.rows && n + 3 < a.outputs[weight];
  }
  __device__ __forceinline__ void one(int t, std::int64_t n, float value) const {
    if (n >= a.outputs[weight]) return;
    const std::int64_t at = t * a.y_stride + a.first[weight] + n;
    if (a.y_is_bf16) {
      store(static_cast<Bf16*>(a.y) + at, value);
    } else {
      float* to = static_cast<float*>(a.y) + at;
      *to = a.accumulate ? *to + value : value;
    }
  }
  /// Of columns n, which is even, and n + 1.
  __device__ __forceinline__ void two(int t, std::int64_t n, float first, float second) const {
    if (n + 1 >= a.outputs[weight]) return one(t, n, first);
    const std::int64_t at = t * a.y_stride + a.first[weight] + n;
    if (a.y_is_bf16) {
      *reinterpret_cast<unsigned*>(static_cast<Bf16*>(a.y) + at) = bf16_pair(first, second);
    } else {
      float2* to = reinterpret_cast<float2*>(static_cast<float*>(a.y) + at);
      float2 sum = make_float2(first, second);
      if (a.accumulate) {
        const float2 old = *to;
        sum = make_float2(old.x + first, old.y + second);
      }
      *to = sum;
    }
  }
};

}  // namespace xlstm::ops::cuda
