#include "ops/layer_norm.hpp"

#include <algorithm>

#include "core/threads.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/layer_norm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/reduce-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

void layer_norm_rows(const LayerNormArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t head_width = a.x.dim(1) / a.heads;
  const auto width = static_cast<std::size_t>(head_width);
  const VF offset = hn::Set(DF(), a.w_offset);
  for (std::int64_t t = begin; t < end; ++t) {
    for (std::int64_t first = 0; first < a.x.dim(1); first += head_width) {
      const float* x = a.x.row<float>(t) + first;
      const Moments moments = moments_of(x, width, a.eps);
      const WeightRow w(a.w, first), b(a.b, first);
      const ResultRow y(a.y, t, first);
      for (std::size_t d = 0; d < width; d += lanes()) {
        const std::size_t n = width - d;
        VF v = moments.normed(load_up_to(x + d, n));
        if (w) v = hn::Mul(v, hn::Add(offset, w.at(d, n)));
        if (b) v = hn::Add(v, b.at(d, n));
        if (a.accumulate) v = hn::Add(v, load_up_to(a.y.row<float>(t) + first + d, n));
        y.put(v, d, n);
      }
    }
  }
}

void skip_gate_rows(const SkipGateArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t head_width = a.h.dim(1) / a.heads;
  const auto width = static_cast<std::size_t>(head_width);
  const VF offset = hn::Set(DF(), a.w_offset);
  for (std::int64_t t = begin; t < end; ++t) {
    for (std::int64_t first = 0; first < a.h.dim(1); first += head_width) {
      const float* h = a.h.row<float>(t) + first;
      const float* c = a.c.row<float>(t) + first;
      const float* z = a.z.row<float>(t) + first;
      const Moments moments = moments_of(h, width, a.eps);
      const WeightRow w(a.w, first), skip(a.skip, first);
      const ResultRow y(a.y, t, first);
      for (std::size_t d = 0; d < width; d += lanes()) {
        const std::size_t n = width - d;
        const VF normed =
            hn::Mul(moments.normed(load_up_to(h + d, n)), hn::Add(offset, w.at(d, n)));
        const VF gate = load_up_to(z + d, n);
        y.put(hn::Mul(hn::MulAdd(skip.at(d, n), load_up_to(c + d, n), normed),
                      hn::Mul(gate, sigmoid(gate))),
              d, n);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(layer_norm_rows);
HWY_EXPORT(skip_gate_rows);

namespace {
/// Rows that are worth waking a thread for: some 10 us of work.
std::int64_t row_grain(std::int64_t width) { return std::max<std::int64_t>(1, (1 << 14) / width); }
}  // namespace

void layer_norm(Context& context, const LayerNormArgs& a) {
  parallel_ranges(context.threads(), a.x.dim(0), row_grain(a.x.dim(1)), [&](Range rows) {
    HWY_DYNAMIC_DISPATCH(layer_norm_rows)(a, rows.begin, rows.end);
  });
}

void skip_gate(Context& context, const SkipGateArgs& a) {
  parallel_ranges(context.threads(), a.h.dim(0), row_grain(a.h.dim(1)), [&](Range rows) {
    HWY_DYNAMIC_DISPATCH(skip_gate_rows)(a, rows.begin, rows.end);
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
