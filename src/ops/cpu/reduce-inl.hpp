// Sums over rows and the statistics of norms. Compiled once per instruction set: include it after
// hwy/foreach_target.h.

#if defined(XLSTM_OPS_CPU_REDUCE_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef XLSTM_OPS_CPU_REDUCE_INL_HPP
#undef XLSTM_OPS_CPU_REDUCE_INL_HPP
#else
#define XLSTM_OPS_CPU_REDUCE_INL_HPP
#endif

#include <cmath>

#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// sum[0, n) += v
HWY_INLINE void add_to(float* sum, VF v, std::size_t n) {
  store_up_to(hn::Add(load_up_to(sum, n), v), sum, n);
}

/// Sum of f(x[d]) over n elements in four partial sums, whose order depends on n alone. f must
/// give 0 in the lanes after the last element.
template <class F>
HWY_INLINE float sum_over(std::size_t n, F f) {
  const std::size_t step = lanes();
  VF s0 = hn::Zero(DF()), s1 = s0, s2 = s0, s3 = s0;
  std::size_t d = 0;
  for (; d + 4 * step <= n; d += 4 * step) {
    s0 = hn::Add(s0, f(d, step));
    s1 = hn::Add(s1, f(d + step, step));
    s2 = hn::Add(s2, f(d + 2 * step, step));
    s3 = hn::Add(s3, f(d + 3 * step, step));
  }
  for (; d < n; d += step) s0 = hn::Add(s0, f(d, n - d));
  return sum_of_lanes(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

HWY_INLINE float reciprocal_root(float mean, float eps) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(mean) + eps));
}

/// Mean and 1 / sqrt(variance + eps) of a row, as LayerNorm takes them.
struct Moments {
  VF mean, scale;

  HWY_INLINE VF normed(VF x) const { return hn::Mul(hn::Sub(x, mean), scale); }
};

HWY_INLINE Moments moments_of(const float* x, std::size_t width, float eps) {
  const float count = static_cast<float>(width);
  // Two passes: the variance is that of differences, not a difference of squares.
  const float sum =
      sum_over(width, [x](std::size_t d, std::size_t n) HWY_ATTR { return load_up_to(x + d, n); });
  const VF mean = hn::Set(DF(), sum / count);
  const float squares = sum_over(width, [x, mean](std::size_t d, std::size_t n) HWY_ATTR {
    const VF v = hn::Sub(load_up_to(x + d, n), mean);
    const VF square = hn::Mul(v, v);
    return n >= lanes() ? square : hn::IfThenElseZero(hn::FirstN(DF(), n), square);
  });
  return {mean, hn::Set(DF(), reciprocal_root(squares / count, eps))};
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
