#include "ops/norm.hpp"

#include <algorithm>
#include <cmath>

#include "core/threads.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/norm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/reduce-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE float rms_scale(const float* x, std::size_t width, float eps) {
  const float sum = sum_over(width, [x](std::size_t d, std::size_t n) HWY_ATTR {
    const VF v = load_up_to(x + d, n);
    return hn::Mul(v, v);
  });
  return reciprocal_root(sum / static_cast<float>(width), eps);
}

/// x * scale * w + b
struct NormedRow {
  const float* x;
  VF scale;
  WeightRow w, b;

  HWY_INLINE VF at(std::size_t d, std::size_t n) const {
    return at(d, n, w.at(d, n), b ? b.at(d, n) : hn::Zero(DF()));
  }
  /// The same with the weights already loaded, for rows that share them.
  HWY_INLINE VF at(std::size_t d, std::size_t n, VF weight, VF bias) const {
    return hn::Add(hn::Mul(hn::Mul(load_up_to(x + d, n), scale), weight), bias);
  }
};

void rms_norm_rows(const RmsNormArgs& a, std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(a.x.dim(1));
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = a.x.row<float>(t);
    const NormedRow u{x, hn::Set(DF(), rms_scale(x, width, a.eps)), {a.w, 0}, {a.b, 0}};
    const ResultRow y(a.y, t);
    for (std::size_t d = 0; d < width; d += lanes()) y.put(u.at(d, width - d), d, width - d);
  }
}

/// Dot products of kTokens normed rows with kHeads rows of w, from row `first` on. The rows are
/// normed again for every group of heads, which is cheaper than keeping them. Every product sums in
/// the same order whatever the two counts.
template <class T, int kTokens, int kHeads>
HWY_INLINE void dot_block(const NormedRow* u, std::size_t width, const Tensor& w,
                          std::int64_t first, float* const* result) {
  VF sum[kTokens][kHeads];
  const T* row[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    row[h] = static_cast<const T*>(w.data) + (first + h) * w.row_stride();
    for (int t = 0; t < kTokens; ++t) sum[t][h] = hn::Zero(DF());
  }
  const WeightRow norm_w = u->w, norm_b = u->b;
  const auto add = [&](std::size_t d, std::size_t n) HWY_ATTR {
    const VF w_d = norm_w.at(d, n), b_d = norm_b ? norm_b.at(d, n) : hn::Zero(DF());
    VF value[kTokens];
    for (int t = 0; t < kTokens; ++t) value[t] = u[t].at(d, n, w_d, b_d);
    for (int h = 0; h < kHeads; ++h) {
      const VF weight = load_up_to(row[h] + d, n);
      for (int t = 0; t < kTokens; ++t) sum[t][h] = hn::MulAdd(value[t], weight, sum[t][h]);
    }
  };
  const std::size_t step = lanes(), whole = width / step * step;
  for (std::size_t d = 0; d < whole; d += step) add(d, step);
  if (whole < width) add(whole, width - whole);
  for (int t = 0; t < kTokens; ++t)
    for (int h = 0; h < kHeads; ++h) result[t][first + h] = sum_of_lanes(sum[t][h]);
}

constexpr int kTokenBlock = 4;

/// All heads' dot products of one token or of kTokenBlock.
template <class T>
void dots(const NormedRow* u, bool block, std::size_t width, const Tensor& w,
          float* const* result) {
  const std::int64_t heads = w.dim(0);
  std::int64_t h = 0;
  if (block) {
    for (; h + 4 <= heads; h += 4) dot_block<T, kTokenBlock, 4>(u, width, w, h, result);
    for (; h < heads; ++h) dot_block<T, kTokenBlock, 1>(u, width, w, h, result);
  } else {
    for (; h + 8 <= heads; h += 8) dot_block<T, 1, 8>(u, width, w, h, result);
    for (; h + 4 <= heads; h += 4) dot_block<T, 1, 4>(u, width, w, h, result);
    for (; h < heads; ++h) dot_block<T, 1, 1>(u, width, w, h, result);
  }
}

HWY_INLINE float weight_at(const Tensor& w, std::int64_t i) {
  return hn::GetLane(WeightRow(w, i).at(0, 1));
}

/// result = cap(W u + b), the caps in double: they are few, and exact near the limits.
void gates(const NormedRow* u, int tokens, std::size_t width, const Tensor& w, const Tensor& b,
           float cap, float* const* result) {
  const bool block = tokens == kTokenBlock;
  if (w.dtype == DType::f32)
    dots<float>(u, block, width, w, result);
  else if (w.dtype == DType::bf16)
    dots<bfloat16_t>(u, block, width, w, result);
  else
    dots<float16_t>(u, block, width, w, result);
  for (std::int64_t h = 0; h < w.dim(0); ++h) {
    const double bias = weight_at(b, h);
    for (int t = 0; t < tokens; ++t) {
      const double z = static_cast<double>(result[t][h]) + bias;
      result[t][h] = static_cast<float>(cap == 0.0F ? z : cap * std::tanh(z / cap));
    }
  }
}

/// min(z, 0) - log(1 + e^-|z|)
HWY_INLINE float log_sigmoid_of(double z) {
  return static_cast<float>((z > 0 ? 0.0 : z) - std::log1p(std::exp(-std::abs(z))));
}

void rms_norm_gates_rows(const RmsNormGatesArgs& a, std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(a.x.dim(1));
  const NormedRow none{nullptr, hn::Zero(DF()), {a.w, 0}, {a.b, 0}};
  for (std::int64_t t = begin; t < end;) {
    const int tokens = end - t >= kTokenBlock ? kTokenBlock : 1;
    NormedRow u[kTokenBlock] = {none, none, none, none};
    float *i[kTokenBlock], *log_f[kTokenBlock];
    for (int k = 0; k < tokens; ++k) {
      u[k].x = a.x.row<float>(t + k);
      u[k].scale = hn::Set(DF(), rms_scale(u[k].x, width, a.eps));
      i[k] = a.i.row<float>(t + k);
      log_f[k] = a.log_f.row<float>(t + k);
    }
    gates(u, tokens, width, a.w_i, a.b_i, a.cap, i);
    gates(u, tokens, width, a.w_f, a.b_f, a.cap, log_f);
    for (int k = 0; k < tokens; ++k) {
      for (std::int64_t h = 0; h < a.w_f.dim(0); ++h) {
        log_f[k][h] = log_sigmoid_of(log_f[k][h]);
        if (a.sigmoid_input) i[k][h] = log_sigmoid_of(i[k][h]);
      }
      const ResultRow y(a.u, t + k);
      for (std::size_t d = 0; d < width; d += lanes()) y.put(u[k].at(d, width - d), d, width - d);
    }
    t += tokens;
  }
}

void head_norm_rows(const HeadNormArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t head_width = a.h.dim(1) / a.heads;
  const auto width = static_cast<std::size_t>(head_width);
  for (std::int64_t t = begin; t < end; ++t) {
    for (std::int64_t head = 0; head < a.heads; ++head) {
      const std::int64_t first = head * head_width;
      const float* h = a.h.row<float>(t) + first;
      const float* o = a.o.row<float>(t) + first;
      const Moments moments = moments_of(h, width, a.eps);
      const WeightRow w(a.w, first), b(a.b, first);
      const ResultRow y(a.y, t, first);
      for (std::size_t d = 0; d < width; d += lanes()) {
        const std::size_t n = width - d;
        VF v = hn::Mul(moments.normed(load_up_to(h + d, n)), w.at(d, n));
        if (b) v = hn::Add(v, b.at(d, n));
        y.put(hn::Mul(sigmoid(load_up_to(o + d, n)), v), d, n);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(rms_norm_rows);
HWY_EXPORT(rms_norm_gates_rows);
HWY_EXPORT(head_norm_rows);

namespace {
/// Rows that are worth waking a thread for: some 10 us of work.
std::int64_t row_grain(std::int64_t width, std::int64_t passes) {
  constexpr std::int64_t kElementsPerThread = 1 << 16;
  return std::max<std::int64_t>(1, kElementsPerThread / (width * passes));
}
}  // namespace

void rms_norm(Context& context, const RmsNormArgs& a) {
  parallel_ranges(context.threads(), a.x.dim(0), row_grain(a.x.dim(1), 2), [&](Range rows) {
    HWY_DYNAMIC_DISPATCH(rms_norm_rows)(a, rows.begin, rows.end);
  });
}

void rms_norm_gates(Context& context, const RmsNormGatesArgs& a) {
  const std::int64_t passes = 2 + a.w_i.dim(0) + a.w_f.dim(0);
  parallel_ranges(context.threads(), a.x.dim(0), row_grain(a.x.dim(1), passes), [&](Range rows) {
    HWY_DYNAMIC_DISPATCH(rms_norm_gates_rows)(a, rows.begin, rows.end);
  });
}

void head_norm(Context& context, const HeadNormArgs& a) {
  parallel_ranges(context.threads(), a.h.dim(0), row_grain(a.h.dim(1), 8), [&](Range rows) {
    HWY_DYNAMIC_DISPATCH(head_norm_rows)(a, rows.begin, rows.end);
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
