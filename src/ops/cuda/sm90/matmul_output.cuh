#pragma once
// What both matrix kernels do with their sums.

#include <cuda_bf16.h>

#include <cstdint>
#include <cstring>

#include "ops/cuda/device/numbers.cuh"
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

}  // namespace xlstm::ops::cuda
