#include <algorithm>

#include "core/threads.hpp"
#include "ops/cpu/norm_plan.hpp"
#include "ops/layer_norm.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/layer_norm_backward.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/reduce-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// One head of one row, g(d, n) being the gradient of x^: d_x (+)= r (g - mean(g) - x^ mean(g x^)).
template <class G>
HWY_INLINE void norm_backward_row(const float* x, std::size_t width, const Moments& moments, G g,
                                  bool accumulate, float* d_x) {
  const float count = static_cast<float>(width);
  const VF mean_g = hn::Set(DF(), sum_over(width, g) / count);
  // Lanes past the end: g is 0 there, but x^ is not and may be infinite.
  const VF mean_gx =
      hn::Set(DF(), sum_over(width, [x, moments, g](std::size_t d, std::size_t n) HWY_ATTR {
                      const VF gx = hn::Mul(g(d, n), moments.normed(load_up_to(x + d, n)));
                      return n >= lanes() ? gx : hn::IfThenElseZero(hn::FirstN(DF(), n), gx);
                    }) / count);
  for (std::size_t d = 0; d < width; d += lanes()) {
    const std::size_t n = width - d;
    const VF normed = moments.normed(load_up_to(x + d, n));
    VF v = hn::Mul(moments.scale, hn::NegMulAdd(normed, mean_gx, hn::Sub(g(d, n), mean_g)));
    if (accumulate) v = hn::Add(v, load_up_to(d_x + d, n));
    store_up_to(v, d_x + d, n);
  }
}

/// Rows [begin, end); d_w is a block's share, or null.
void layer_norm_backward_rows(const LayerNormBackwardArgs& a, float* d_w, std::int64_t begin,
                              std::int64_t end) {
  const std::int64_t head_width = a.x.dim(1) / a.heads;
  const auto width = static_cast<std::size_t>(head_width);
  const VF offset = hn::Set(DF(), a.w_offset);
  if (d_w != nullptr) std::fill_n(d_w, a.x.dim(1), 0.0F);
  for (std::int64_t t = begin; t < end; ++t)
    for (std::int64_t first = 0; first < a.x.dim(1); first += head_width) {
      const float *x = a.x.row<float>(t) + first, *d_y = a.d_y.row<float>(t) + first;
      const Moments moments = moments_of(x, width, a.eps);
      const WeightRow w(a.w, first);
      if (d_w != nullptr)
        for (std::size_t d = 0; d < width; d += lanes()) {
          const std::size_t n = width - d;
          const VF normed = moments.normed(load_up_to(x + d, n));
          add_to(d_w + first + d, hn::Mul(load_up_to(d_y + d, n), normed), n);
        }
      norm_backward_row(
          x, width, moments,
          [d_y, w, offset](std::size_t d, std::size_t n) HWY_ATTR {
            const VF dy = load_up_to(d_y + d, n);
            return w ? hn::Mul(dy, hn::Add(offset, w.at(d, n))) : dy;
          },
          a.accumulate, a.d_x.row<float>(t) + first);
    }
}

/// Rows [begin, end); d_w and d_skip are a block's shares.
void skip_gate_backward_rows(const SkipGateBackwardArgs& a, float* d_w, float* d_skip,
                             std::int64_t begin, std::int64_t end) {
  const std::int64_t head_width = a.h.dim(1) / a.heads;
  const auto width = static_cast<std::size_t>(head_width);
  const VF offset = hn::Set(DF(), a.w_offset);
  std::fill_n(d_w, a.h.dim(1), 0.0F);
  std::fill_n(d_skip, a.h.dim(1), 0.0F);
  for (std::int64_t t = begin; t < end; ++t)
    for (std::int64_t first = 0; first < a.h.dim(1); first += head_width) {
      const float *h = a.h.row<float>(t) + first, *c = a.c.row<float>(t) + first;
      const float *z = a.z.row<float>(t) + first, *d_y = a.d_y.row<float>(t) + first;
      float *d_h = a.d_h.row<float>(t) + first, *d_c = a.d_c.row<float>(t) + first;
      float* d_z = a.d_z.row<float>(t) + first;
      const Moments moments = moments_of(h, width, a.eps);
      const WeightRow w(a.w, first), skip(a.skip, first);
      for (std::size_t d = 0; d < width; d += lanes()) {
        const std::size_t n = width - d;
        const VF normed = moments.normed(load_up_to(h + d, n)), w_d = hn::Add(offset, w.at(d, n));
        const VF gate = load_up_to(z + d, n), c_d = load_up_to(c + d, n);
        const VF skip_d = skip.at(d, n), dy = load_up_to(d_y + d, n);
        const VF d_p = hn::Mul(dy, hn::Mul(gate, sigmoid(gate)));
        const VF p = hn::MulAdd(skip_d, c_d, hn::Mul(normed, w_d));
        add_to(d_w + first + d, hn::Mul(d_p, normed), n);
        add_to(d_skip + first + d, hn::Mul(d_p, c_d), n);
        store_up_to(hn::Mul(d_p, skip_d), d_c + d, n);
        store_up_to(hn::Mul(hn::Mul(dy, p), silu_slope(gate)), d_z + d, n);
        store_up_to(hn::Mul(d_p, w_d), d_h + d, n);
      }
      norm_backward_row(
          h, width, moments,
          [d_h](std::size_t d, std::size_t n) HWY_ATTR { return load_up_to(d_h + d, n); }, false,
          d_h);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(layer_norm_backward_rows);
HWY_EXPORT(skip_gate_backward_rows);

void layer_norm_backward(Context& context, const LayerNormBackwardArgs& a) {
  ArenaScope scope(context.arena());
  const NormBackwardPlan plan(a.x.dim(0), a.x.dim(1));
  auto* d_w = reinterpret_cast<float*>(context.arena().take(plan.bytes()));
  parallel_for(context.threads(), plan.blocks, [&](std::int64_t block) {
    const std::int64_t begin = block * NormBackwardPlan::kRows;
    HWY_DYNAMIC_DISPATCH(layer_norm_backward_rows)
    (a, a.d_w ? d_w + block * plan.stride : nullptr, begin,
     std::min(begin + NormBackwardPlan::kRows, plan.tokens));
  });
  add_shares(context.threads(), plan, d_w, a.d_w);
}

void skip_gate_backward(Context& context, const SkipGateBackwardArgs& a) {
  ArenaScope scope(context.arena());
  const NormBackwardPlan plan(a.h.dim(0), a.h.dim(1));
  auto* d_w = reinterpret_cast<float*>(context.arena().take(plan.bytes()));
  float* d_skip = d_w + plan.blocks * plan.stride;
  parallel_for(context.threads(), plan.blocks, [&](std::int64_t block) {
    const std::int64_t begin = block * NormBackwardPlan::kRows;
    HWY_DYNAMIC_DISPATCH(skip_gate_backward_rows)
    (a, d_w + block * plan.stride, d_skip + block * plan.stride, begin,
     std::min(begin + NormBackwardPlan::kRows, plan.tokens));
  });
  add_shares(context.threads(), plan, d_w, a.d_w);
  add_shares(context.threads(), plan, d_skip, a.d_skip);
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
