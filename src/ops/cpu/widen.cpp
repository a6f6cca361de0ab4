#include "ops/cpu/widen.hpp"

#include <cstdint>
#include <cstring>

#include "core/convert.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/widen.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/load-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Returns how many of `n` numbers it has widened; the rest is less than a vector.
template <class From>
std::int64_t widen_vectors(const std::uint16_t* HWY_RESTRICT from, std::int64_t n,
                           float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto* numbers = reinterpret_cast<const From*>(from);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(load_as_f32(d, numbers + i), d, to + i);
  return i;
}
std::int64_t widen_bf16(const std::uint16_t* from, std::int64_t n, float* to) {
  return widen_vectors<hwy::bfloat16_t>(from, n, to);
}
std::int64_t widen_f16(const std::uint16_t* from, std::int64_t n, float* to) {
  return widen_vectors<hwy::float16_t>(from, n, to);
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {
namespace {
HWY_EXPORT(widen_bf16);
HWY_EXPORT(widen_f16);
}  // namespace

void widen(const Tensor& from, const Tensor& to) {
  const std::int64_t n = from.dim(1);
  for (std::int64_t r = 0; r < from.dim(0); ++r) {
    float* row = to.row<float>(r);
    std::int64_t i = n;
    if (from.dtype == DType::f32)
      std::memcpy(row, from.row<float>(r), static_cast<std::size_t>(n) * sizeof(float));
    else if (from.dtype == DType::bf16)
      i = HWY_DYNAMIC_DISPATCH(widen_bf16)(from.row<std::uint16_t>(r), n, row);
    else
      i = HWY_DYNAMIC_DISPATCH(widen_f16)(from.row<std::uint16_t>(r), n, row);
    for (; i < n; ++i) row[i] = load_f32(from, r * from.row_stride() + i);
    for (; i < to.dim(1); ++i) row[i] = 0.0F;
  }
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
