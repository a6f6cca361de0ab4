#pragma once
// How numbers become e4m3 (ops/e4m3.hpp).

#include "core/float_bits.hpp"
#include "ops/cuda/device/numbers.cuh"
#include "ops/e4m3.hpp"

namespace xlstm::ops::cuda {

/// What numbers whose largest is `most` is multiplied with, and its scale.
struct E4m3Scale {
  float factor, scale;
  __device__ explicit E4m3Scale(float most) : factor(0), scale(0) {
    if (most < kLeastE4m3) return;
    factor = kMostE4m3 / most;
    scale = most / kMostE4m3;
  }
};

/// Two numbers as e4m3, the first in the lower half.
__device__ inline std::uint16_t e4m3_pair(float first, float second) {
#if defined(__CUDA_ARCH__)
  return __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE, __NV_E4M3);
#else
  return static_cast<std::uint16_t>(f32_to_e4m3(first) | f32_to_e4m3(second) << 8);
#endif
}

}  // namespace xlstm::ops::cuda
