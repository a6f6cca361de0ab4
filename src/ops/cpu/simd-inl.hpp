// Vector loads and stores of every element type, and elementary functions. Compiled once per
// instruction set: include it after hwy/foreach_target.h.

#if defined(XLSTM_OPS_CPU_SIMD_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef XLSTM_OPS_CPU_SIMD_INL_HPP
#undef XLSTM_OPS_CPU_SIMD_INL_HPP
#else
#define XLSTM_OPS_CPU_SIMD_INL_HPP
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "xlstm/tensor.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
using hwy::bfloat16_t;
using hwy::float16_t;

inline std::size_t lanes() { return hn::Lanes(DF()); }

// --- loads: any weight type to f32 ---

HWY_INLINE VF load(const float* p) { return hn::LoadU(DF(), p); }

HWY_INLINE VF load(const bfloat16_t* p) {
  return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<bfloat16_t, DF>(), p));
}

HWY_INLINE VF load(const float16_t* p) {
#if HWY_TARGET < HWY_SSE4  // AVX2 and above convert in hardware
  return hn::PromoteTo(DF(), hn::LoadU(hn::Rebind<float16_t, DF>(), p));
#else
  // Moves exponent and mantissa into place and corrects the bias by a product, which also makes
  // subnormals right; infinities and NaN get their exponent by hand.
  const hn::RebindToUnsigned<DF> du;
  const auto* bits16 = reinterpret_cast<const std::uint16_t*>(p);
  const auto bits = hn::PromoteTo(du, hn::LoadU(hn::Rebind<std::uint16_t, DF>(), bits16));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFU));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const VF value = hn::Mul(hn::BitCast(DF(), shifted), hn::Set(DF(), 0x1p112F));
  const VF special = hn::BitCast(DF(), hn::Or(shifted, hn::Set(du, 0x7F800000U)));
  const auto is_special = hn::RebindMask(DF(), hn::Gt(magnitude, hn::Set(du, 0x7BFFU)));
  return hn::Or(hn::IfThenElse(is_special, special, value), hn::BitCast(DF(), sign));
#endif
}

/// The first `n` elements at `p`; zeros in the lanes after them.
template <class T>
HWY_INLINE VF load_up_to(const T* p, std::size_t n) {
  if (n >= lanes()) return load(p);
  HWY_ALIGN T buffer[HWY_LANES(float)];
  std::memset(buffer, 0, sizeof(buffer));
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}

// --- stores: f32 as it is, or to bf16 rounded to nearest even ---

HWY_INLINE void store(VF v, float* p) { hn::StoreU(v, DF(), p); }

HWY_INLINE void store(VF v, bfloat16_t* p) {
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<std::uint16_t, DF> du16;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1U));
  auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFU)));
  // A NaN stays one: the addition could carry it to infinity or beyond the sign.
  const auto quiet = hn::Or(bits, hn::Set(du, 0x00400000U));
  rounded = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
  const auto upper = hn::BitCast(di, hn::ShiftRight<16>(rounded));
  hn::StoreU(hn::DemoteTo(du16, upper), du16, reinterpret_cast<std::uint16_t*>(p));
}

template <class T>
HWY_INLINE void store_up_to(VF v, T* p, std::size_t n) {
  if (n >= lanes()) return store(v, p);
  HWY_ALIGN T buffer[HWY_LANES(float)];
  store(v, buffer);
  std::memcpy(p, buffer, n * sizeof(T));
}

// --- rows whose type is known at run time only; the branch predicts perfectly ---

/// A row of weights: f32, bf16 or f16.
class WeightRow {
 public:
  WeightRow(const Tensor& tensor, std::int64_t begin)
      : data_(tensor ? static_cast<const std::byte*>(tensor.data) +
                           static_cast<std::size_t>(begin) * size_of(tensor.dtype)
                     : nullptr),
        dtype_(tensor.dtype) {}
  explicit operator bool() const { return data_ != nullptr; }

  HWY_INLINE VF at(std::size_t i, std::size_t n) const {
    if (dtype_ == DType::f32) return load_up_to(static_cast<const float*>(data_) + i, n);
    if (dtype_ == DType::bf16) return load_up_to(static_cast<const bfloat16_t*>(data_) + i, n);
    return load_up_to(static_cast<const float16_t*>(data_) + i, n);
  }

 private:
  const void* data_;
  DType dtype_;
};

/// A row of results: f32 or bf16.
class ResultRow {
 public:
  ResultRow(const Tensor& tensor, std::int64_t row, std::int64_t column = 0)
      : data_(static_cast<std::byte*>(tensor.data) +
              static_cast<std::size_t>(row * tensor.row_stride() + column) * size_of(tensor.dtype)),
        is_f32_(tensor.dtype == DType::f32) {}

  HWY_INLINE void put(VF v, std::size_t i, std::size_t n) const {
    if (is_f32_)
      store_up_to(v, static_cast<float*>(data_) + i, n);
    else
      store_up_to(v, static_cast<bfloat16_t*>(data_) + i, n);
  }

 private:
  void* data_;
  bool is_f32_;
};

HWY_INLINE float sum_of_lanes(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

// --- elementary functions: NaN stays NaN, errors stay below 2 units in the last place ---

// Least-squares fits on Chebyshev nodes: e^r = 1 + r + r^2 (1/2 + kExp3 r + ...) and
// tanh(x) = x + x^3 (kTanh3 + kTanh5 x^2 + ...).
constexpr float kExp3 = 0x1.5554dcp-3F, kExp4 = 0x1.5554e8p-5F, kExp5 = 0x1.120be8p-7F,
                kExp6 = 0x1.6d43b4p-10F;
constexpr float kTanh3 = -0x1.555552p-2F, kTanh5 = 0x1.110e02p-3F, kTanh7 = -0x1.b91e66p-5F;
constexpr float kTanh9 = 0x1.57bc54p-6F, kTanh11 = -0x1.8dd776p-8F;
// erfc(x) = t e^(-x^2) (kErfc[0] + kErfc[1] t + ...) with t = 1 / (1 + x / 2), fitted for x >= 0
// with a relative error of 6e-9.
constexpr float kErfc[] = {0x1.20dd12p-2F, 0x1.20e7d8p-2F,  0x1.f8abccp-3F, 0x1.6cf9ecp-3F,
                           0x1.516c84p-4F, -0x1.04e9e8p-5F, 0x1.677272p-4F, -0x1.a1a320p-2F,
                           0x1.d95ac6p-2F, -0x1.c83cdcp-3F, 0x1.51a406p-5F};

/// e^x. Range reduction to |r| <= ln(2)/2, polynomial of degree 6, scaling by 2^n in two steps so
/// that subnormal results and overflow come out right.
HWY_INLINE VF exp(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  // Comparisons with NaN are false, so NaN passes both limits.
  x = hn::IfThenElse(hn::Lt(x, hn::Set(d, -104.0F)), hn::Set(d, -104.0F), x);
  x = hn::IfThenElse(hn::Gt(x, hn::Set(d, 89.0F)), hn::Set(d, 89.0F), x);
  const VF shift = hn::Set(d, 0x1.8p23F);  // adding it rounds to an integer, kept in the low bits
  const VF shifted = hn::MulAdd(x, hn::Set(d, 1.44269504088896341F), shift);
  const VF n = hn::Sub(shifted, shift);
  VF r = hn::NegMulAdd(n, hn::Set(d, 0.693145751953125F), x);       // ln 2, upper bits: n times
  r = hn::NegMulAdd(n, hn::Set(d, 1.42860682030941723212e-6F), r);  // this is exact; lower bits
  VF p = hn::Set(d, kExp6);
  p = hn::MulAdd(p, r, hn::Set(d, kExp5));
  p = hn::MulAdd(p, r, hn::Set(d, kExp4));
  p = hn::MulAdd(p, r, hn::Set(d, kExp3));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5F));
  p = hn::MulAdd(hn::Mul(r, r), p, r);
  p = hn::Add(p, hn::Set(d, 1.0F));
  const auto exponent = hn::Sub(hn::BitCast(di, shifted), hn::BitCast(di, shift));
  const auto half = hn::ShiftRight<1>(exponent);
  const auto bias = hn::Set(di, 127);
  const VF scale1 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const VF scale2 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(exponent, half), bias)));
  return hn::Mul(hn::Mul(p, scale1), scale2);
}

/// 1 / (1 + e^-x)
HWY_INLINE VF sigmoid(VF x) {
  const VF one = hn::Set(DF(), 1.0F);
  return hn::Div(one, hn::Add(one, exp(hn::Neg(x))));
}

/// The derivative of x sigmoid(x): s (1 + x (1 - s)), with 1 - s = sigmoid(-x), which does not
/// cancel where s is near 1.
HWY_INLINE VF silu_slope(VF x) {
  return hn::Mul(sigmoid(x), hn::MulAdd(x, sigmoid(hn::Neg(x)), hn::Set(DF(), 1.0F)));
}

/// log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|), the logarithm as 2 artanh(e / (2 + e)): the
/// series converges fast, as its argument is at most 1/3.
HWY_INLINE VF log_sigmoid(VF x) {
  const DF d;
  const VF e = exp(hn::Neg(hn::Abs(x)));
  const VF s = hn::Div(e, hn::Add(hn::Set(d, 2.0F), e));
  const VF z = hn::Mul(s, s);
  VF p = hn::Set(d, 2.0F / 15);
  p = hn::MulAdd(p, z, hn::Set(d, 2.0F / 13));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0F / 11));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0F / 9));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0F / 7));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0F / 5));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0F / 3));
  const VF log1p = hn::MulAdd(hn::Mul(p, z), s, hn::Add(s, s));
  // Not Min: it may drop a NaN.
  return hn::Sub(hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Zero(d), x), log1p);
}

/// The distribution function of the normal distribution, Phi(x) = erfc(-x / sqrt 2) / 2.
HWY_INLINE VF normal_cdf(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0F);
  const VF a = hn::Mul(hn::Abs(x), hn::Set(d, 0.70710678118654752F));
  const VF t = hn::Div(one, hn::MulAdd(a, hn::Set(d, 0.5F), one));
  VF p = hn::Set(d, kErfc[10]);
  for (int i = 9; i >= 0; --i) p = hn::MulAdd(p, t, hn::Set(d, kErfc[i]));
  // x^2 / 2, not a^2: it is exact to half a unit.
  const VF e = exp(hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5F)));
  const VF tail = hn::Mul(hn::Mul(hn::Set(d, 0.5F), e), hn::Mul(p, t));
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail));
}

/// x + x^3 P(x^2) near 0, where the exponentials would cancel, else 1 - 2 / (e^2|x| + 1).
HWY_INLINE VF tanh(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0F);
  const VF a = hn::Abs(x);
  const VF z = hn::Mul(x, x);
  VF p = hn::Set(d, kTanh11);
  p = hn::MulAdd(p, z, hn::Set(d, kTanh9));
  p = hn::MulAdd(p, z, hn::Set(d, kTanh7));
  p = hn::MulAdd(p, z, hn::Set(d, kTanh5));
  p = hn::MulAdd(p, z, hn::Set(d, kTanh3));
  const VF small = hn::MulAdd(hn::Mul(x, z), p, x);
  const VF e = exp(hn::Add(a, a));
  const VF large = hn::Sub(one, hn::Div(hn::Set(d, 2.0F), hn::Add(e, one)));
  return hn::CopySign(hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.625F)), small, large), x);
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
