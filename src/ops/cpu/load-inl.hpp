// Vectors of f32, bf16 and f16 numbers as float32, for every Highway target: include it after
// highway.h, inside no namespace. The guard below is Highway's, once per target.
#if defined(XLSTM_OPS_CPU_LOAD_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef XLSTM_OPS_CPU_LOAD_INL
#undef XLSTM_OPS_CPU_LOAD_INL
#else
#define XLSTM_OPS_CPU_LOAD_INL
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> load_as_f32(D d, const float* from) {
  return hwy::HWY_NAMESPACE::LoadU(d, from);
}

template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> load_as_f32(D d, const hwy::bfloat16_t* from) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToUnsigned<D> d32;
  const hn::Rebind<std::uint16_t, D> d16;
  const auto bits =
      hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}

template <class D>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> load_as_f32(D d, const hwy::float16_t* from) {
  namespace hn = hwy::HWY_NAMESPACE;
#if HWY_TARGET <= HWY_AVX2 || HWY_TARGET == HWY_NEON
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::float16_t, D>(), from));
#else
  // No instruction for it, and Highway's emulation takes infinity and NaN for numbers. Exponent and
  // mantissa, moved to their place, are a float that is too small by the difference of the biases.
  const hn::RebindToUnsigned<D> d32;
  const hn::Rebind<std::uint16_t, D> d16;
  const auto bits =
      hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d32, 0x8000U)));
  const auto moved = hn::ShiftLeft<13>(hn::And(bits, hn::Set(d32, 0x7FFFU)));
  const auto value = hn::Mul(hn::BitCast(d, moved), hn::Set(d, 0x1p112F));
  const auto special = hn::IfThenElseZero(hn::Ge(value, hn::Set(d, 65536.0F)),
                                          hn::BitCast(d, hn::Set(d32, 0x7F800000U)));
  return hn::Or(hn::Or(value, special), hn::BitCast(d, sign));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
