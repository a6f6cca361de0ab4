#include "ops/loss.hpp"

#include <algorithm>
#include <cmath>

#include "core/threads.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/loss.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// c tanh(x / c), or x when c == 0
struct Cap {
  float c;
  HWY_INLINE VF of(VF x) const {
    if (c == 0.0F) return x;
    const VF by = hn::Set(DF(), c);
    return hn::Mul(by, tanh(hn::Div(x, by)));
  }
};

float largest(const float* x, std::size_t width) {
  VF most = hn::Set(DF(), x[0]);
  std::size_t j = 0;
  for (; j + lanes() <= width; j += lanes()) most = hn::Max(most, load(x + j));
  float result = hn::GetLane(hn::MaxOfLanes(DF(), most));
  for (; j < width; ++j) result = std::max(result, x[j]);
  return result;
}

/// The loss of row t; its logits become the gradient if that is wanted. The cap keeps order, so the
/// largest logit is known before any is capped.
double cross_entropy_row(const CrossEntropyArgs& a, std::int64_t t) {
  constexpr std::size_t kBlock = 512;  // terms summed in float
  const std::int32_t target = a.targets[static_cast<std::size_t>(t)];
  float* x = a.logits.row<float>(t);
  const auto width = static_cast<std::size_t>(a.logits.dim(1));
  if (target < 0) {
    if (a.gradient) std::fill_n(x, width, 0.0F);
    return 0.0;
  }
  const Cap cap{a.cap};
  const VF top = cap.of(hn::Set(DF(), largest(x, width)));
  const double highest = hn::GetLane(top);
  const double wanted = hn::GetLane(cap.of(hn::Set(DF(), x[target])));
  double total = 0;
  for (std::size_t block = 0; block < width; block += kBlock) {
    VF sum = hn::Zero(DF());
    for (std::size_t j = block; j < std::min(block + kBlock, width); j += lanes()) {
      const std::size_t n = width - j;
      const VF y = cap.of(load_up_to(x + j, n));
      if (a.gradient) store_up_to(y, x + j, n);
      const VF e = exp(hn::Sub(y, top));
      sum = hn::Add(sum, n >= lanes() ? e : hn::IfThenElseZero(hn::FirstN(DF(), n), e));
    }
    total += sum_of_lanes(sum);
  }
  const double log_total = std::log(total);
  const double loss = log_total + (highest - wanted);
  if (!a.gradient) return loss;

  const VF factor = hn::Set(DF(), static_cast<float>(a.scale / total));
  const VF one = hn::Set(DF(), 1.0F);
  const VF by_cap = hn::Set(DF(), a.cap == 0.0F ? 0.0F : 1.0F / a.cap);
  for (std::size_t j = 0; j < width; j += lanes()) {
    const std::size_t n = width - j;
    const VF y = load_up_to(x + j, n), ratio = hn::Mul(y, by_cap);
    VF p = hn::Mul(factor, exp(hn::Sub(y, top)));
    if (a.cap != 0.0F) p = hn::Mul(p, hn::NegMulAdd(ratio, ratio, one));
    store_up_to(p, x + j, n);
  }
  // p - 1 without cancellation
  const double ratio = a.cap == 0.0F ? 0.0 : wanted / a.cap;
  x[target] = static_cast<float>(a.scale * std::expm1(-loss) * (1.0 - ratio * ratio));
  return loss;
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(cross_entropy_row);

void cross_entropy(Context& context, const CrossEntropyArgs& a) {
  ArenaScope scope(context.arena());
  const auto tokens = static_cast<std::int64_t>(a.targets.size());
  auto* losses = reinterpret_cast<double*>(context.arena().take(a.targets.size() * sizeof(double)));
  constexpr std::int64_t kElementsPerThread = 1 << 14;
  parallel_ranges(context.threads(), tokens, 1 + kElementsPerThread / a.logits.dim(1),
                  [&](Range rows) {
                    for (std::int64_t t = rows.begin; t < rows.end; ++t)
                      losses[t] = HWY_DYNAMIC_DISPATCH(cross_entropy_row)(a, t);
                  });
  double sum = 0;
  for (std::int64_t t = 0; t < tokens; ++t) sum += losses[t];
  *a.loss_sum += sum;
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
