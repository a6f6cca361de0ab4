#include "ops/activation.hpp"

#include <cmath>

#include "core/hash.hpp"
#include "core/threads.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/activation.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Columns [begin, end) of row t.
void swiglu_row(const SwigluArgs& a, std::int64_t t, std::int64_t begin, std::int64_t end) {
  const float* gate = a.gate.row<float>(t) + begin;
  const float* up = a.up.row<float>(t) + begin;
  const ResultRow y(a.y, t, begin);
  const auto width = static_cast<std::size_t>(end - begin);
  for (std::size_t f = 0; f < width; f += lanes()) {
    const std::size_t n = width - f;
    const VF g = load_up_to(gate + f, n);
    y.put(hn::Mul(hn::Mul(g, sigmoid(g)), load_up_to(up + f, n)), f, n);
  }
}

/// With s = sigmoid(gate): d_up = d_y gate s, d_gate = d_y up s (1 + gate (1 - s)).
void swiglu_backward_row(const SwigluBackwardArgs& a, std::int64_t t, std::int64_t begin,
                         std::int64_t end) {
  const float *gate = a.gate.row<float>(t) + begin, *up = a.up.row<float>(t) + begin;
  const float* d_y = a.d_y.row<float>(t) + begin;
  float *d_gate = a.d_gate.row<float>(t) + begin, *d_up = a.d_up.row<float>(t) + begin;
  const auto width = static_cast<std::size_t>(end - begin);
  const VF one = hn::Set(DF(), 1.0F);
  for (std::size_t f = 0; f < width; f += lanes()) {
    const std::size_t n = width - f;
    const VF g = load_up_to(gate + f, n), u = load_up_to(up + f, n), s = sigmoid(g);
    const VF by_s = hn::Mul(load_up_to(d_y + f, n), s);
    store_up_to(hn::Mul(by_s, g), d_up + f, n);
    // 1 - s = sigmoid(-g), without cancellation where s is near 1
    const VF slope = hn::MulAdd(g, sigmoid(hn::Neg(g)), one);
    store_up_to(hn::Mul(hn::Mul(by_s, u), slope), d_gate + f, n);
  }
}

HWY_INLINE VF apply(Activation kind, VF x) {
  const VF zero = hn::Zero(DF());
  switch (kind) {
    case Activation::gelu: return hn::Mul(x, normal_cdf(x));
    // Comparisons with NaN are false, so NaN stays.
    case Activation::relu: return hn::IfThenElse(hn::Lt(x, zero), zero, x);
    case Activation::relu2: {
      const VF positive = hn::IfThenElse(hn::Lt(x, zero), zero, x);
      return hn::Mul(positive, positive);
    }
    case Activation::sigmoid: return sigmoid(x);
    case Activation::silu: return hn::Mul(x, sigmoid(x));
  }
  return x;
}

void gated_activation_row(const GatedActivationArgs& a, std::int64_t t, std::int64_t begin,
                          std::int64_t end) {
  const float* gate = a.gate.row<float>(t) + begin;
  const float* up = a.up.row<float>(t) + begin;
  const ResultRow y(a.y, t, begin);
  const auto width = static_cast<std::size_t>(end - begin);
  for (std::size_t f = 0; f < width; f += lanes()) {
    const std::size_t n = width - f;
    y.put(hn::Mul(apply(a.kind, load_up_to(gate + f, n)), load_up_to(up + f, n)), f, n);
  }
}

/// act(x) and act'(x).
HWY_INLINE void apply_with_slope(Activation kind, VF x, VF& value, VF& slope) {
  const DF d;
  const VF zero = hn::Zero(d), one = hn::Set(d, 1.0F);
  value = apply(kind, x);
  switch (kind) {
    case Activation::gelu: {
      // Phi(x) + x phi(x), phi the density of the normal distribution
      const VF density =
          hn::Mul(hn::Set(d, 0.39894228040143268F), exp(hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5F))));
      slope = hn::MulAdd(x, density, normal_cdf(x));
      break;
    }
    case Activation::relu: slope = hn::IfThenElse(hn::Gt(x, zero), one, zero); break;
    case Activation::relu2: {
      const VF positive = hn::IfThenElse(hn::Lt(x, zero), zero, x);
      slope = hn::Add(positive, positive);
      break;
    }
    case Activation::sigmoid: slope = hn::Mul(value, sigmoid(hn::Neg(x))); break;
    case Activation::silu: slope = silu_slope(x);
  }
}

void gated_activation_backward_row(const GatedActivationBackwardArgs& a, std::int64_t t,
                                   std::int64_t begin, std::int64_t end) {
  const float *gate = a.gate.row<float>(t) + begin, *up = a.up.row<float>(t) + begin;
  const float* d_y = a.d_y.row<float>(t) + begin;
  float *d_gate = a.d_gate.row<float>(t) + begin, *d_up = a.d_up.row<float>(t) + begin;
  const auto width = static_cast<std::size_t>(end - begin);
  for (std::size_t f = 0; f < width; f += lanes()) {
    const std::size_t n = width - f;
    const VF dy = load_up_to(d_y + f, n), u = load_up_to(up + f, n);
    VF value = dy, slope = dy;
    apply_with_slope(a.kind, load_up_to(gate + f, n), value, slope);
    store_up_to(hn::Mul(dy, value), d_up + f, n);
    store_up_to(hn::Mul(hn::Mul(dy, u), slope), d_gate + f, n);
  }
}

void soft_cap_row(const SoftCapArgs& a, std::int64_t t, std::int64_t begin, std::int64_t end) {
  float* x = a.x.row<float>(t) + begin;
  const auto width = static_cast<std::size_t>(end - begin);
  const VF cap = hn::Set(DF(), a.cap);
  for (std::size_t i = 0; i < width; i += lanes()) {
    const std::size_t n = width - i;
    store_up_to(hn::Mul(cap, tanh(hn::Div(load_up_to(x + i, n), cap))), x + i, n);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(swiglu_row);
HWY_EXPORT(swiglu_backward_row);
HWY_EXPORT(gated_activation_row);
HWY_EXPORT(gated_activation_backward_row);
HWY_EXPORT(soft_cap_row);

namespace {

/// Runs body(row, first column, last column) over a matrix, split over threads by elements so that
/// one long row is shared too. The functions are element-wise: where the split falls changes no
/// bit.
template <class Body>
void for_elements(Context& context, std::int64_t rows, std::int64_t columns, Body&& body) {
  constexpr std::int64_t kElementsPerThread = 1 << 14;  // about 10 us of work
  parallel_ranges(context.threads(), rows * columns, kElementsPerThread, [&](Range range) {
    for (std::int64_t at = range.begin; at < range.end;) {
      const std::int64_t row = at / columns;
      const std::int64_t end = range.end < (row + 1) * columns ? range.end : (row + 1) * columns;
      body(row, at - row * columns, end - row * columns);
      at = end;
    }
  });
}

}  // namespace

void swiglu(Context& context, const SwigluArgs& a) {
  for_elements(context, a.y.dim(0), a.y.dim(1),
               [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
                 HWY_DYNAMIC_DISPATCH(swiglu_row)(a, row, begin, end);
               });
}

void swiglu_backward(Context& context, const SwigluBackwardArgs& a) {
  for_elements(context, a.d_y.dim(0), a.d_y.dim(1),
               [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
                 HWY_DYNAMIC_DISPATCH(swiglu_backward_row)(a, row, begin, end);
               });
}

void gated_activation(Context& context, const GatedActivationArgs& a) {
  for_elements(context, a.y.dim(0), a.y.dim(1),
               [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
                 HWY_DYNAMIC_DISPATCH(gated_activation_row)(a, row, begin, end);
               });
}

void gated_activation_backward(Context& context, const GatedActivationBackwardArgs& a) {
  for_elements(context, a.gate.dim(0), a.gate.dim(1),
               [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
                 HWY_DYNAMIC_DISPATCH(gated_activation_backward_row)(a, row, begin, end);
               });
}

void dropout(Context& context, const DropoutArgs& a) {
  const auto width = static_cast<std::uint64_t>(a.x.dim(1));
  // 32 random bits an element, two elements a draw.
  const auto limit = static_cast<std::uint64_t>(std::ldexp(static_cast<double>(a.p), 32));
  const float scale = 1.0F / (1.0F - a.p);
  const std::uint64_t key = mix64(a.key);
  for_elements(context, a.x.dim(0), a.x.dim(1),
               [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
                 const float* x = a.x.row<float>(row);
                 float* y = a.y.row<float>(row);
                 for (std::int64_t j = begin; j < end; ++j) {
                   const std::uint64_t at =
                       static_cast<std::uint64_t>(row) * width + static_cast<std::uint64_t>(j);
                   const std::uint64_t bits = mix64(key + at / 2 * 0x9e3779b97f4a7c15ULL);
                   const bool kept = (at % 2 == 0 ? bits & 0xFFFFFFFFU : bits >> 32) >= limit;
                   const float value = kept ? x[j] * scale : 0.0F;
                   y[j] = a.accumulate ? y[j] + value : value;
                 }
               });
}

void soft_cap(Context& context, const SoftCapArgs& a) {
  for_elements(context, a.x.dim(0), a.x.dim(1),
               [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
                 HWY_DYNAMIC_DISPATCH(soft_cap_row)(a, row, begin, end);
               });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
