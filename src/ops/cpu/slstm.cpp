#include "ops/slstm.hpp"

#include "core/convert.hpp"
#include "core/threads.hpp"
#include "ops/cpu/slstm_run.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/slstm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "ops/cpu/slstm-inl.hpp"

#ifndef XLSTM_OPS_CPU_SLSTM_FORWARD
#define XLSTM_OPS_CPU_SLSTM_FORWARD
namespace xlstm::ops::cpu {

/// One call: scratch memory is [row][head][DH padded], numbers past DH never reach a result.
struct SlstmForward {
  const SlstmArgs& a;
  const SlstmPlan& plan;
  const SlstmRows& rows;
  const float* bias;  ///< [4][head][DH padded]
  float* h[2];        ///< before steps of even and of odd number
  float *c, *n, *m;
  float* packed;  ///< [head][unit][4][DH in][unit]

  std::int64_t at(std::int64_t row, std::int64_t head, std::int64_t j) const {
    return row * plan.stride() + head * plan.padded_dh() + j;
  }
};

}  // namespace xlstm::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Up to one unit of features of a head.
struct SlstmUnit {
  std::int64_t head, j, count;
  float* panels;
};

SlstmUnit forward_unit(const SlstmForward& f, std::int64_t index, float* panel) {
  const std::int64_t width = unit_width(), units = (f.plan.dh + width - 1) / width;
  const std::int64_t head = index / units, j = index % units * width;
  const std::int64_t at = 4 * f.plan.dh * (head * f.plan.padded_dh() + j);
  return {head, j, std::min(width, f.plan.dh - j), f.plan.steps == 1 ? panel : f.packed + at};
}

/// Columns [k0, k0 + k) of the unit's rows of R.
void pack_forward(const SlstmForward& f, const SlstmUnit& unit, std::int64_t k0, std::int64_t k) {
  const Tensor& r = f.a.r;
  const std::int64_t row = r.stride[1];
  // Next come the same rows further on, and after their ends the rows of the next unit.
  const std::int64_t next = k0 + k < f.plan.dh ? k : k < f.plan.dh ? unit.count * row - k0 : 0;
  for (std::int64_t g = 0; g < 4; ++g) {
    const std::int64_t at = unit.head * r.stride[0] + (g * f.plan.dh + unit.j) * row + k0;
    float* to = unit.panels + g * k * unit_width();
    if (r.dtype == DType::f32)
      pack_columns(r.as<float>() + at, row, unit.count, k, next, to);
    else if (r.dtype == DType::f16)
      pack_columns(r.as<float16_t>() + at, row, unit.count, k, next, to);
    else
      pack_columns(r.as<bfloat16_t>() + at, row, unit.count, k, next, to);
  }
}

void pack_forward_units(const SlstmForward& f, int part, int parts) {
  const std::int64_t width = unit_width(), units = (f.plan.dh + width - 1) / width;
  const Range own = split_range(f.plan.heads * units, parts, part);
  for (std::int64_t u = own.begin; u < own.end; ++u)
    pack_forward(f, forward_unit(f, u, nullptr), 0, f.plan.dh);
}

void load_state(const SlstmForward& f, std::int64_t row, const SlstmUnit& unit) {
  const std::byte* slot = f.a.batch.slots[f.rows.sequence(row)];
  const std::int64_t feature = unit.head * f.plan.dh + unit.j;
  const auto load_one = [&](float* to, std::size_t offset) {
    to += f.at(row, unit.head, unit.j);
    std::fill_n(to, unit_width(), 0.0F);
    if (slot != nullptr)
      std::copy_n(reinterpret_cast<const float*>(slot + offset) + feature, unit.count, to);
  };
  load_one(f.h[0], f.a.state.h);
  load_one(f.c, f.a.state.c);
  load_one(f.n, f.a.state.n);
  load_one(f.m, f.a.state.m);
}

void store_state(const SlstmForward& f, std::int64_t row, const SlstmUnit& unit) {
  std::byte* slot = f.a.batch.slots[f.rows.sequence(row)];
  if (slot == nullptr) return;
  const std::int64_t feature = unit.head * f.plan.dh + unit.j;
  const auto store_one = [&](const float* from, std::size_t offset) {
    from += f.at(row, unit.head, unit.j);
    std::copy_n(from, unit.count, reinterpret_cast<float*>(slot + offset) + feature);
  };
  store_one(f.h[f.rows.length(row) % 2], f.a.state.h);
  store_one(f.c, f.a.state.c);
  store_one(f.n, f.a.state.n);
  store_one(f.m, f.a.state.m);
}

/// Asks for what the cell of another row or unit will read and write: rows of a step lie far
/// apart, so the hardware does not foresee them. `t` and `feature` may lie past the end.
HWY_INLINE void prefetch_forward(const SlstmArgs& a, std::int64_t t, std::int64_t feature) {
  const std::int64_t width = a.h.dim(1);
  const float* wx = a.wx.row<float>(t) + feature;
  for (int g = 0; g < 4; ++g) __builtin_prefetch(wx + g * width);
  __builtin_prefetch(a.h.row<float>(t) + feature, 1);
  if (!a.saved) return;
  const float* gates = a.saved.gates.row<float>(t) + feature;
  for (int g = 0; g < 4; ++g) __builtin_prefetch(gates + g * width, 1);
  for (const Tensor* tensor : {&a.saved.closed, &a.saved.c, &a.saved.n})
    __builtin_prefetch(tensor->row<float>(t) + feature, 1);
}

/// The cell of one vector of features. `pre` holds R h of the four gates, a unit apart.
HWY_INLINE void forward_cell(const SlstmForward& f, std::int64_t row, std::int64_t step,
                             const SlstmUnit& unit, std::int64_t x, const float* pre) {
  const DF d;
  const VF one = hn::Set(d, 1.0F);
  const std::int64_t t = f.rows.begin(row) + step, j = unit.j + x;
  const std::int64_t feature = unit.head * f.plan.dh + j, width = f.plan.heads * f.plan.dh;
  const std::int64_t at = f.at(row, unit.head, j);
  const auto count = static_cast<std::size_t>(unit.count - x);
  const float* wx = f.a.wx.row<float>(t) + feature;
  const float* bias = f.bias + unit.head * f.plan.padded_dh() + j;
  VF raw[4];
  for (int g = 0; g < 4; ++g)
    raw[g] = hn::Add(load(pre + g * unit_width()),
                     hn::Add(load_up_to(wx + g * width, count), load(bias + g * f.plan.width())));

  // e^-|x| serves log sigmoid, sigmoid and 1 - sigmoid alike.
  const VF e_f = exp_of_negative(hn::Neg(hn::Abs(raw[1])));
  const VF e_o = exp_of_negative(hn::Neg(hn::Abs(raw[3])));
  const VF z = tanh_of(raw[2]);
  // min(f~, 0), but a NaN stays one
  const auto open = hn::Gt(raw[1], hn::Zero(d));
  const VF negative = hn::IfThenElse(open, hn::Zero(d), raw[1]);
  const VF decayed = hn::Add(load(f.m + at), hn::Sub(negative, log1p_of_unit(e_f)));
  const VF n_before = load(f.n + at);
  const VF apart = hn::Sub(raw[0], decayed);
  // The larger of the two weights is 1, the other one this.
  const VF lesser = exp_of_negative(hn::Neg(hn::Abs(apart)));
  const auto first = hn::Eq(n_before, hn::Zero(d));
  const auto input_wins = hn::Or(first, hn::Ge(apart, hn::Zero(d)));
  const VF m = hn::IfThenElse(input_wins, raw[0], decayed);
  const VF i = hn::IfThenElse(input_wins, one, lesser);
  const VF forget = hn::IfThenElse(hn::Lt(apart, hn::Zero(d)), one, lesser);
  const VF c = hn::MulAdd(forget, load(f.c + at), hn::Mul(i, z));
  const VF n = hn::MulAdd(forget, n_before, i);
  // sigmoid(o~) c / n with one division
  const VF over_o = hn::Add(one, e_o);
  const VF o_part = hn::IfThenElse(hn::Lt(raw[3], hn::Zero(d)), e_o, one);
  const VF h = hn::Div(hn::Mul(o_part, c), hn::Mul(over_o, n));
  store(c, f.c + at);
  store(n, f.n + at);
  store(m, f.m + at);
  store(h, f.h[(step + 1) % 2] + at);
  store_up_to(h, f.a.h.row<float>(t) + feature, count);
  if (!f.a.saved) return;
  float* gates = f.a.saved.gates.row<float>(t) + feature;
  store_up_to(i, gates, count);
  store_up_to(forget, gates + width, count);
  store_up_to(z, gates + 2 * width, count);
  store_up_to(hn::Div(o_part, over_o), gates + 3 * width, count);
  const VF by = hn::Div(one, hn::Add(one, e_f));
  const VF closed = hn::IfThenElse(open, hn::Mul(e_f, by), by);
  store_up_to(closed, f.a.saved.closed.row<float>(t) + feature, count);
  store_up_to(c, f.a.saved.c.row<float>(t) + feature, count);
  store_up_to(n, f.a.saved.n.row<float>(t) + feature, count);
}

void forward_unit_step(const SlstmForward& f, const SlstmShare& share, const SlstmUnit& unit,
                       std::int64_t step, std::int64_t end, SlstmNext next) {
  constexpr std::int64_t kDepth = 32;
  const std::int64_t width = unit_width(), vector = width / 2;
  for (std::int64_t row = share.row0; row < end; row += SlstmPlan::kRowBlock) {
    const std::int64_t count = std::min(SlstmPlan::kRowBlock, end - row);
    // What is used once is packed in pieces that stay in the first-level cache.
    const std::int64_t depth = f.plan.steps == 1 ? kDepth : f.plan.dh;
    const float* h = f.h[step % 2] + f.at(row, unit.head, 0);
    for (std::int64_t k = 0; k < f.plan.dh; k += depth) {
      const std::int64_t part = std::min(depth, f.plan.dh - k);
      if (f.plan.steps == 1) pack_forward(f, unit, k, part);
      slstm_product<true>(count, h + k, f.plan.stride(), 0, unit.panels, part, k > 0, share.pre);
    }
    const std::int64_t ahead = std::min(kSlstmRowsAhead, count);
    for (std::int64_t r = 0; r < count; ++r) {
      const bool here = r + ahead < count;
      const std::int64_t t = f.rows.begin(row + r + ahead - (here ? 0 : count)) + step;
      const std::int64_t feature = unit.head * f.plan.dh + unit.j;
      for (std::int64_t x = 0; x < unit.count; x += vector) {
        prefetch_forward(f.a, t + (here ? 0 : next.tokens),
                         feature + x + (here ? 0 : next.features));
        forward_cell(f, row + r, step, unit, x, share.pre + r * 4 * width + x);
      }
    }
  }
}

void run_forward(const SlstmForward& f, const SlstmShare& share) {
  const std::int64_t width = unit_width(), units = (f.plan.dh + width - 1) / width;
  const Range split = split_range((share.head1 - share.head0) * units, share.parts, share.part);
  const Range own{share.head0 * units + split.begin, share.head0 * units + split.end};
  for (std::int64_t u = own.begin; u < own.end; ++u)
    for (std::int64_t row = share.row0; row < share.row1; ++row)
      load_state(f, row, forward_unit(f, u, nullptr));
  share.meet();
  const std::int64_t steps = f.rows.length(share.row0);
  for (std::int64_t step = 0; step < steps; ++step) {
    const std::int64_t end = f.rows.end_at(share.row0, share.row1, step);
    for (std::int64_t u = own.begin; u < own.end; ++u) {
      const SlstmUnit unit = forward_unit(f, u, share.panel);
      if (step == 0 && share.pack && f.plan.steps > 1) pack_forward(f, unit, 0, f.plan.dh);
      const SlstmUnit after = forward_unit(f, u + 1 < own.end ? u + 1 : own.begin, nullptr);
      const SlstmNext next{u + 1 < own.end ? 0 : 1,
                           (after.head - unit.head) * f.plan.dh + after.j - unit.j};
      forward_unit_step(f, share, unit, step, end, next);
    }
    if (step + 1 < steps) share.meet();
  }
  for (std::int64_t u = own.begin; u < own.end; ++u)
    for (std::int64_t row = share.row0; row < share.row1; ++row)
      store_state(f, row, forward_unit(f, u, nullptr));
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(run_forward);
HWY_EXPORT(pack_forward_units);

void slstm(Context& context, const SlstmArgs& a) {
  const SlstmPlan plan(a.batch, a.r, context.threads());
  ArenaScope scope(context.arena());
  ScratchFloats scratch(context.arena().take(plan.forward_bytes()));
  const SlstmRows rows(a.batch, reinterpret_cast<std::int32_t*>(scratch.take(plan.order_floats())));
  float* bias = scratch.take(4 * plan.width());
  std::fill_n(bias, 4 * plan.width(), 0.0F);
  if (a.b)
    for (std::int64_t i = 0; i < 4 * plan.heads; ++i)  // [gate][head]
      for (std::int64_t j = 0; j < plan.dh; ++j)
        bias[i * plan.padded_dh() + j] = load_f32(a.b, i * plan.dh + j);
  const std::int64_t floats = plan.rows * plan.stride();
  SlstmForward f{.a = a,
                 .plan = plan,
                 .rows = rows,
                 .bias = bias,
                 .h = {scratch.take(floats), scratch.take(floats)},
                 .c = scratch.take(floats),
                 .n = scratch.take(floats),
                 .m = scratch.take(floats),
                 .packed = scratch.take(plan.packed_floats())};
  run_slstm_shares(
      plan, plan.steps > 1, scratch.take(plan.most_workers * SlstmPlan::kPreFloats), f.packed,
      [&f](int workers) {
        parallel_for(workers, workers, [&](std::int64_t part) {
          HWY_DYNAMIC_DISPATCH(pack_forward_units)(f, static_cast<int>(part), workers);
        });
      },
      [&f](const SlstmShare& share) {
        HWY_DYNAMIC_DISPATCH(run_forward)
        (f, share);
      });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
