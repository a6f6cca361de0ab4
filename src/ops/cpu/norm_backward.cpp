#include <algorithm>
#include <cmath>

#include "core/threads.hpp"
#include "ops/cpu/norm_plan.hpp"
#include "ops/norm.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/norm_backward.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/reduce-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Rows [begin, end): with g = d_y w and r = 1 / sqrt(mean(x^2) + eps),
///   d_x += r (g - x r^2 mean(g x));  d_w += d_y x r;  d_b += d_y
/// d_w and d_b are a block's shares, or null; `scales` [T] receives r.
void rms_norm_backward_rows(const RmsNormBackwardArgs& a, float* d_w, float* d_b, float* scales,
                            std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(a.x.dim(1));
  const WeightRow w(a.w, 0);
  if (d_w != nullptr) std::fill_n(d_w, width, 0.0F);
  if (d_b != nullptr) std::fill_n(d_b, width, 0.0F);
  for (std::int64_t t = begin; t < end; ++t) {
    const float *x = a.x.row<float>(t), *d_y = a.d_y.row<float>(t);
    float* d_x = a.d_x.row<float>(t);
    const float squares = sum_over(width, [x](std::size_t d, std::size_t n) HWY_ATTR {
      const VF v = load_up_to(x + d, n);
      return hn::Mul(v, v);
    });
    const float product = sum_over(width, [x, d_y, w](std::size_t d, std::size_t n) HWY_ATTR {
      return hn::Mul(hn::Mul(load_up_to(d_y + d, n), w.at(d, n)), load_up_to(x + d, n));
    });
    const float scale = reciprocal_root(squares / static_cast<float>(width), a.eps);
    scales[t] = scale;
    const VF r = hn::Set(DF(), scale);
    // r^2 (g . x) / D first: r^3 alone may overflow where the product does not.
    const VF c = hn::Set(DF(), scale * scale * (product / static_cast<float>(width)));
    for (std::size_t d = 0; d < width; d += lanes()) {
      const std::size_t n = width - d;
      const VF dy = load_up_to(d_y + d, n), x_d = load_up_to(x + d, n);
      const VF g = hn::Mul(dy, w.at(d, n));
      add_to(d_x + d, hn::Mul(r, hn::NegMulAdd(c, x_d, g)), n);
      if (d_w != nullptr) add_to(d_w + d, hn::Mul(dy, hn::Mul(x_d, r)), n);
      if (d_b != nullptr) add_to(d_b + d, dy, n);
    }
  }
}

/// Rows [begin, end) of one block: with s = sigmoid(o), x^ = (h - mean) r and g = d_y s w,
///   d_h = r (g - mean(g) - x^ mean(g x^));  d_o = d_y (x^ w + b) s (1 - s)
///   d_w += d_y s x^;  d_b += d_y s
void head_norm_backward_rows(const HeadNormBackwardArgs& a, float* d_w, float* d_b,
                             std::int64_t begin, std::int64_t end) {
  const std::int64_t head_width = a.h.dim(1) / a.heads;
  const auto width = static_cast<std::size_t>(head_width);
  std::fill_n(d_w, a.h.dim(1), 0.0F);
  if (d_b != nullptr) std::fill_n(d_b, a.h.dim(1), 0.0F);
  const VF one = hn::Set(DF(), 1.0F);
  for (std::int64_t t = begin; t < end; ++t) {
    for (std::int64_t head = 0; head < a.heads; ++head) {
      const std::int64_t first = head * head_width;
      const float *h = a.h.row<float>(t) + first, *o = a.o.row<float>(t) + first;
      const float* d_y = a.d_y.row<float>(t) + first;
      float *d_h = a.d_h.row<float>(t) + first, *d_o = a.d_o.row<float>(t) + first;
      const Moments moments = moments_of(h, width, a.eps);
      const WeightRow w(a.w, first), b(a.b, first);
      VF sum_g = hn::Zero(DF()), sum_gx = hn::Zero(DF());
      for (std::size_t d = 0; d < width; d += lanes()) {
        const std::size_t n = width - d;
        const VF x = moments.normed(load_up_to(h + d, n)), w_d = w.at(d, n);
        const VF dy = load_up_to(d_y + d, n), s = sigmoid(load_up_to(o + d, n));
        const VF dp = hn::Mul(dy, s), g = hn::Mul(dp, w_d);
        // Lanes past the end: dy is 0 there, but x is not and may be infinite.
        const VF gx = hn::Mul(g, x);
        sum_g = hn::Add(sum_g, g);
        sum_gx = hn::Add(sum_gx, n >= lanes() ? gx : hn::IfThenElseZero(hn::FirstN(DF(), n), gx));
        VF p = hn::Mul(x, w_d);
        if (b) p = hn::Add(p, b.at(d, n));
        add_to(d_w + first + d, hn::Mul(dp, x), n);
        if (d_b != nullptr) add_to(d_b + first + d, dp, n);
        store_up_to(hn::Mul(hn::Mul(dp, p), hn::Sub(one, s)), d_o + d, n);
        store_up_to(g, d_h + d, n);
      }
      const float count = static_cast<float>(width);
      const VF mean_g = hn::Set(DF(), sum_of_lanes(sum_g) / count);
      const VF mean_gx = hn::Set(DF(), sum_of_lanes(sum_gx) / count);
      for (std::size_t d = 0; d < width; d += lanes()) {
        const std::size_t n = width - d;
        const VF x = moments.normed(load_up_to(h + d, n));
        const VF centred = hn::Sub(load_up_to(d_h + d, n), mean_g);
        store_up_to(hn::Mul(moments.scale, hn::NegMulAdd(x, mean_gx, centred)), d_h + d, n);
      }
    }
  }
}

/// to[d] += the rows of `shares`, `stride` apart, for columns [begin, end).
void add_share_columns(const float* shares, std::int64_t stride, std::int64_t count, float* to,
                       std::int64_t begin, std::int64_t end) {
  const auto step = static_cast<std::int64_t>(lanes());
  for (std::int64_t d = begin; d < end; d += step) {
    const auto n = static_cast<std::size_t>(end - d);
    VF sum = hn::Zero(DF());
    for (std::int64_t i = 0; i < count; ++i)
      sum = hn::Add(sum, load_up_to(shares + i * stride + d, n));
    add_to(to + d, sum, n);
  }
}

/// The gradient of a gate's pre-activation z from that of its value: of cap(z), or of
/// log sigmoid(cap(z)). 1 - tanh^2 comes from the value.
double gate_gradient(double value, double gradient, bool log_sigmoid, double cap) {
  double capped = value;
  if (log_sigmoid) {
    const double complement = -std::expm1(value);  // 1 - sigmoid
    gradient *= complement;
    if (cap == 0.0 || complement == 0.0) return gradient;
    capped = value - std::log(complement);
  }
  if (cap == 0.0) return gradient;
  const double ratio = capped / cap;
  return gradient * std::max(0.0, 1.0 - ratio * ratio);
}

/// Rows [begin, end): d_i and d_log_f become the gradients of the pre-activations, and
/// d_u += W_i^T d_i + W_f^T d_f.
void gates_backward_rows(const RmsNormGatesBackwardArgs& a, std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(a.x.dim(1));
  const std::int64_t heads = a.w_i.dim(0);
  for (std::int64_t t = begin; t < end; ++t) {
    float* d_u = a.d_u.row<float>(t);
    float *d_i = a.d_i.row<float>(t), *d_f = a.d_log_f.row<float>(t);
    const float *i = a.i.row<float>(t), *log_f = a.log_f.row<float>(t);
    for (std::int64_t h = 0; h < heads; ++h) {
      d_i[h] = static_cast<float>(gate_gradient(i[h], d_i[h], a.sigmoid_input, a.cap));
      d_f[h] = static_cast<float>(gate_gradient(log_f[h], d_f[h], true, a.cap));
    }
    for (std::int64_t h = 0; h < heads; ++h) {
      const WeightRow w_i(a.w_i, h * a.w_i.row_stride()), w_f(a.w_f, h * a.w_f.row_stride());
      const VF by_i = hn::Set(DF(), d_i[h]), by_f = hn::Set(DF(), d_f[h]);
      for (std::size_t d = 0; d < width; d += lanes()) {
        const std::size_t n = width - d;
        add_to(d_u + d, hn::MulAdd(by_i, w_i.at(d, n), hn::Mul(by_f, w_f.at(d, n))), n);
      }
    }
  }
}

/// d_w_i and d_w_f, columns [begin, end): sums over all rows of gate gradient times u, which is
/// computed again. Blocks of rows keep the error of the sums small.
void gate_weight_columns(const RmsNormGatesBackwardArgs& a, const float* scales, std::int64_t begin,
                         std::int64_t end) {
  constexpr int kHeads = 8;
  constexpr std::int64_t kBlock = NormBackwardPlan::kRows;
  const std::int64_t heads = a.w_i.dim(0), tokens = a.x.dim(0);
  const auto step = static_cast<std::int64_t>(lanes());
  const WeightRow w(a.w, 0), b(a.b, 0);
  for (std::int64_t t0 = 0; t0 < tokens; t0 += kBlock)
    for (std::int64_t d = begin; d < end; d += step) {
      const auto n = static_cast<std::size_t>(end - d);
      const auto at = static_cast<std::size_t>(d);
      const VF w_d = w.at(at, n), b_d = b ? b.at(at, n) : hn::Zero(DF());
      for (std::int64_t h0 = 0; h0 < heads; h0 += kHeads) {
        const int count = static_cast<int>(std::min<std::int64_t>(kHeads, heads - h0));
        VF sum_i[kHeads], sum_f[kHeads];
        for (int h = 0; h < kHeads; ++h) sum_i[h] = sum_f[h] = hn::Zero(DF());
        for (std::int64_t t = t0; t < std::min(t0 + kBlock, tokens); ++t) {
          const VF x = hn::Mul(load_up_to(a.x.row<float>(t) + d, n), hn::Set(DF(), scales[t]));
          const VF u = hn::MulAdd(x, w_d, b_d);
          const float *d_i = a.d_i.row<float>(t) + h0, *d_f = a.d_log_f.row<float>(t) + h0;
          for (int h = 0; h < count; ++h) {
            sum_i[h] = hn::MulAdd(hn::Set(DF(), d_i[h]), u, sum_i[h]);
            sum_f[h] = hn::MulAdd(hn::Set(DF(), d_f[h]), u, sum_f[h]);
          }
        }
        for (int h = 0; h < count; ++h) {
          add_to(a.d_w_i.row<float>(h0 + h) + d, sum_i[h], n);
          add_to(a.d_w_f.row<float>(h0 + h) + d, sum_f[h], n);
        }
      }
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(rms_norm_backward_rows);
HWY_EXPORT(head_norm_backward_rows);
HWY_EXPORT(add_share_columns);
HWY_EXPORT(gates_backward_rows);
HWY_EXPORT(gate_weight_columns);

namespace {

constexpr std::int64_t kColumnGrain = 64;  // whole vectors and cache lines

/// The shares of all blocks, and what follows them in the workspace.
struct Shares {
  NormBackwardPlan plan;
  float *d_w, *d_b, *scales;

  Shares(const NormBackwardPlan& p, float* memory)
      : plan(p),
        d_w(memory),
        d_b(memory + p.blocks * p.stride),
        scales(memory + 2 * p.blocks * p.stride) {}

  void add(int threads, const float* shares, const Tensor& to) const {
    add_shares(threads, plan, shares, to);
  }
};

void rms_rows(int threads, const RmsNormBackwardArgs& a, const Shares& shares) {
  const NormBackwardPlan& plan = shares.plan;
  parallel_for(threads, plan.blocks, [&](std::int64_t block) {
    const std::int64_t begin = block * NormBackwardPlan::kRows;
    HWY_DYNAMIC_DISPATCH(rms_norm_backward_rows)
    (a, a.d_w ? shares.d_w + block * plan.stride : nullptr,
     a.d_b ? shares.d_b + block * plan.stride : nullptr, shares.scales, begin,
     std::min(begin + NormBackwardPlan::kRows, plan.tokens));
  });
  shares.add(threads, shares.d_w, a.d_w);
  shares.add(threads, shares.d_b, a.d_b);
}

/// to[h] += the sum of column h, in double.
void add_few_columns(const Tensor& from, const Tensor& to) {
  for (std::int64_t h = 0; h < to.dim(0); ++h) {
    double sum = 0;
    for (std::int64_t t = 0; t < from.dim(0); ++t) sum += from.row<float>(t)[h];
    to.as<float>()[h] += static_cast<float>(sum);
  }
}

}  // namespace

void add_shares(int threads, const NormBackwardPlan& plan, const float* shares, const Tensor& to) {
  if (!to) return;
  parallel_ranges(threads, to.dim(0), kColumnGrain, [&](Range range) {
    HWY_DYNAMIC_DISPATCH(add_share_columns)
    (shares, plan.stride, plan.blocks, to.as<float>(), range.begin, range.end);
  });
}

void rms_norm_backward(Context& context, const RmsNormBackwardArgs& a) {
  ArenaScope scope(context.arena());
  const NormBackwardPlan plan(a.x.dim(0), a.x.dim(1));
  auto* memory = reinterpret_cast<float*>(context.arena().take(plan.bytes()));
  rms_rows(context.threads(), a, Shares(plan, memory));
}

void rms_norm_gates_backward(Context& context, const RmsNormGatesBackwardArgs& a) {
  const int threads = context.threads();
  ArenaScope scope(context.arena());
  const NormBackwardPlan plan(a.x.dim(0), a.x.dim(1));
  const Shares shares(plan, reinterpret_cast<float*>(context.arena().take(plan.bytes())));
  parallel_for(threads, plan.blocks, [&](std::int64_t block) {
    const std::int64_t begin = block * NormBackwardPlan::kRows;
    HWY_DYNAMIC_DISPATCH(gates_backward_rows)
    (a, begin, std::min(begin + NormBackwardPlan::kRows, plan.tokens));
  });
  rms_rows(
      threads,
      {.x = a.x, .w = a.w, .eps = a.eps, .d_y = a.d_u, .d_x = a.d_x, .d_w = a.d_w, .d_b = a.d_b},
      shares);
  parallel_ranges(threads, a.x.dim(1), kColumnGrain, [&](Range range) {
    HWY_DYNAMIC_DISPATCH(gate_weight_columns)(a, shares.scales, range.begin, range.end);
  });
  add_few_columns(a.d_i, a.d_b_i);
  add_few_columns(a.d_log_f, a.d_b_f);
}

void head_norm_backward(Context& context, const HeadNormBackwardArgs& a) {
  ArenaScope scope(context.arena());
  const NormBackwardPlan plan(a.h.dim(0), a.h.dim(1));
  const Shares shares(plan, reinterpret_cast<float*>(context.arena().take(plan.bytes())));
  parallel_for(context.threads(), plan.blocks, [&](std::int64_t block) {
    const std::int64_t begin = block * NormBackwardPlan::kRows;
    HWY_DYNAMIC_DISPATCH(head_norm_backward_rows)
    (a, shares.d_w + block * plan.stride, a.d_b ? shares.d_b + block * plan.stride : nullptr, begin,
     std::min(begin + NormBackwardPlan::kRows, plan.tokens));
  });
  shares.add(context.threads(), shares.d_w, a.d_w);
  shares.add(context.threads(), shares.d_b, a.d_b);
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
