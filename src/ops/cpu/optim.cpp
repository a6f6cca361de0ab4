#include "ops/optim.hpp"

#include <algorithm>
#include <cmath>

#include "core/threads.hpp"
#include "ops/cpu/optim_plan.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/optim.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Elements [begin, end).
void adamw_range(const AdamwArgs& a, std::int64_t begin, std::int64_t end) {
  const DF d;
  const auto set = [d](double value) HWY_ATTR { return hn::Set(d, static_cast<float>(value)); };
  const auto steps = static_cast<double>(a.step);
  const VF grad_scale = set(a.grad_scale), decay = set(a.lr * a.weight_decay);
  const VF keep1 = set(a.beta1), take1 = set(1.0 - a.beta1);
  const VF keep2 = set(a.beta2), take2 = set(1.0 - a.beta2);
  const VF size = set(a.lr / (1.0 - std::pow(a.beta1, steps)));
  const VF correction = set(1.0 / (1.0 - std::pow(a.beta2, steps))), eps = set(a.eps);
  auto *ws = a.w.as<float>(), *ms = a.m.as<float>(), *vs = a.v.as<float>();
  const auto* gs = a.g.as<float>();
  auto* copy = static_cast<bfloat16_t*>(a.copy.data);
  for (std::int64_t at = begin; at < end; at += static_cast<std::int64_t>(lanes())) {
    const auto n = static_cast<std::size_t>(end - at);
    const VF g = hn::Mul(grad_scale, load_up_to(gs + at, n));
    const VF m = hn::MulAdd(keep1, load_up_to(ms + at, n), hn::Mul(take1, g));
    const VF v = hn::MulAdd(keep2, load_up_to(vs + at, n), hn::Mul(take2, hn::Mul(g, g)));
    const VF root = hn::Add(hn::Sqrt(hn::Mul(v, correction)), eps);
    VF w = load_up_to(ws + at, n);
    w = hn::NegMulAdd(decay, w, w);
    w = hn::Sub(w, hn::Div(hn::Mul(size, m), root));
    store_up_to(m, ms + at, n);
    store_up_to(v, vs + at, n);
    store_up_to(w, ws + at, n);
    if (copy != nullptr) store_up_to(w, copy + at, n);
  }
}

/// The sum of squares of x[0, count), in double from the first addition on.
double sum_of_squares(const float* x, std::int64_t count) {
#if HWY_HAVE_FLOAT64
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  std::int64_t i = 0;
  const auto at = [&](std::int64_t j) HWY_ATTR { return hn::PromoteTo(d, hn::LoadU(half, x + j)); };
  for (; i + 4 * step <= count; i += 4 * step) {
    const auto x0 = at(i), x1 = at(i + step), x2 = at(i + 2 * step), x3 = at(i + 3 * step);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
    sum2 = hn::MulAdd(x2, x2, sum2);
    sum3 = hn::MulAdd(x3, x3, sum3);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
#else
  double sum = 0;
  std::int64_t i = 0;
#endif
  for (; i < count; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

void scale_range(const ScaleArgs& a, std::int64_t begin, std::int64_t end) {
  auto* x = a.x.as<float>();
  const VF factor = hn::Set(DF(), a.factor);
  for (std::int64_t at = begin; at < end; at += static_cast<std::int64_t>(lanes())) {
    const auto n = static_cast<std::size_t>(end - at);
    store_up_to(hn::Mul(factor, load_up_to(x + at, n)), x + at, n);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(adamw_range);
HWY_EXPORT(sum_of_squares);
HWY_EXPORT(scale_range);

namespace {
constexpr std::int64_t kGrain = 1 << 14;  // elements that are worth a thread; whole vectors
}

void adamw(Context& context, const AdamwArgs& a) {
  parallel_ranges(context.threads(), a.w.count(), kGrain, [&](Range range) {
    HWY_DYNAMIC_DISPATCH(adamw_range)(a, range.begin, range.end);
  });
}

void squared_norm(Context& context, const SquaredNormArgs& a) {
  ArenaScope scope(context.arena());
  const std::int64_t blocks = squared_norm_blocks(a.x), count = a.x.count();
  auto* sums = reinterpret_cast<double*>(
      context.arena().take(static_cast<std::size_t>(blocks) * sizeof(double)));
  parallel_ranges(context.threads(), blocks, kGrain / kSquaredNormBlock, [&](Range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const std::int64_t begin = i * kSquaredNormBlock;
      sums[i] = HWY_DYNAMIC_DISPATCH(sum_of_squares)(a.x.as<float>() + begin,
                                                     std::min(kSquaredNormBlock, count - begin));
    }
  });
  double sum = 0;
  for (std::int64_t i = 0; i < blocks; ++i) sum += sums[i];
  *a.sum += sum;
}

void scale(Context& context, const ScaleArgs& a) {
  parallel_ranges(context.threads(), a.x.count(), kGrain, [&](Range range) {
    HWY_DYNAMIC_DISPATCH(scale_range)(a, range.begin, range.end);
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
