#pragma once
// One token of one unit of the sLSTM (specification B.4).

#include "ops/cuda/device/numbers.cuh"

namespace xlstm::ops::cuda {

/// c, n and m change, the result is h.
__device__ inline float slstm_cell_step(float raw_i, float raw_f, float raw_z, float raw_o,
                                        float* c, float* n, float* m) {
  const float decayed = *m + log_sigmoid(raw_f);
  const float apart = raw_i - decayed;
  // The larger of the two weights is 1, the other one this.
  const float lesser = expf(-fabsf(apart));
  const bool input_wins = *n == 0 || apart >= 0;
  const float input = input_wins ? 1.0F : lesser, forget = apart < 0 ? 1.0F : lesser;
  const float new_c = fmaf(forget, *c, input * tanhf(raw_z));
  const float new_n = fmaf(forget, *n, input);
  *c = new_c;
  *n = new_n;
  *m = input_wins ? raw_i : decayed;
  // sigmoid(o~) c / n with one division
  const float e_o = expf(-fabsf(raw_o));
  return (raw_o < 0 ? e_o : 1.0F) * new_c / ((1.0F + e_o) * new_n);
}

#if defined(__CUDACC__)
/// 2^x, log2 and 1 / x as the card approximates them, to about 2 units in the last place.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The same by approximations: some 1e-7 of the range of each gate apart from it, which is little
/// beside an h rounded to 16 bits.
__device__ __forceinline__ float slstm_cell_step_fast(float raw_i, float raw_f, float raw_z,
                                                      float raw_o, float* c, float* n, float* m) {
  constexpr float kLog2e = 1.4426950408889634F, kLn2 = 0.6931471805599453F;
  const float closed = fast_log2(1.0F + fast_exp2(-kLog2e * fabsf(raw_f)));
  const float decayed = fmaf(-kLn2, closed, *m + fminf(raw_f, 0.0F));
  const float apart = raw_i - decayed;
  const float lesser = fast_exp2(-kLog2e * fabsf(apart));
  const bool input_wins = *n == 0 || apart >= 0;
  const float input = input_wins ? 1.0F : lesser, forget = apart < 0 ? 1.0F : lesser;
  const float e_z = fast_exp2(-2.0F * kLog2e * fabsf(raw_z));
  const float z = copysignf((1.0F - e_z) * fast_reciprocal(1.0F + e_z), raw_z);
  const float new_c = fmaf(forget, *c, input * z);
  const float new_n = fmaf(forget, *n, input);
  *c = new_c;
  *n = new_n;
  *m = input_wins ? raw_i : decayed;
  const float e_o = fast_exp2(-kLog2e * fabsf(raw_o));
  return (raw_o < 0 ? e_o : 1.0F) * new_c * fast_reciprocal((1.0F + e_o) * new_n);
}
#endif

}  // namespace xlstm::ops::cuda
