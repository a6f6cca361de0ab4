#include "core/threads.hpp"
#include "ops/cpu/matmul.hpp"
#include "ops/cpu/slstm_run.hpp"
#include "ops/slstm.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/slstm_backward.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "ops/cpu/slstm-inl.hpp"

#ifndef XLSTM_OPS_CPU_SLSTM_BACKWARD
#define XLSTM_OPS_CPU_SLSTM_BACKWARD
namespace xlstm::ops::cpu {

/// One call: scratch memory is [row][head]([gate])[DH padded].
struct SlstmBackward {
  const SlstmBackwardArgs& a;
  const SlstmPlan& plan;
  const SlstmRows& rows;
  float* d_raw[2];   ///< [row][head][4][DH padded], of steps of even and of odd number
  float *d_c, *d_n;  ///< what flows to the step before
  float* excess;     ///< of the gradient of m over c d_c + n d_n
  float* packed;     ///< [head][unit][4][DH out][unit]

  std::int64_t at(std::int64_t row, std::int64_t head, std::int64_t j) const {
    return row * plan.stride() + head * plan.padded_dh() + j;
  }
  const float* record(std::span<std::byte* const> slots, std::int64_t row,
                      std::size_t offset) const {
    if (slots.empty()) return nullptr;
    const std::byte* slot = slots[rows.sequence(row)];
    return slot == nullptr ? nullptr : reinterpret_cast<const float*>(slot + offset);
  }
};

}  // namespace xlstm::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Up to one unit of features of a head.
struct SlstmBackwardUnit {
  std::int64_t head, j, count;
  float* panels;
};

SlstmBackwardUnit backward_unit(const SlstmBackward& b, std::int64_t index) {
  const std::int64_t width = unit_width(), units = (b.plan.dh + width - 1) / width;
  const std::int64_t head = index / units, j = index % units * width;
  const std::int64_t at = 4 * b.plan.dh * (head * b.plan.padded_dh() + j);
  return {head, j, std::min(width, b.plan.dh - j), b.packed + at};
}

void pack_backward(const SlstmBackward& b, const SlstmBackwardUnit& unit) {
  const Tensor& r = b.a.r;
  const auto width = static_cast<std::size_t>(unit_width()), vector = width / 2;
  const auto count = static_cast<std::size_t>(unit.count);
  float* to = unit.panels;
  for (std::int64_t i = 0; i < 4 * b.plan.dh; ++i, to += width) {
    const WeightRow row(r, unit.head * r.stride[0] + i * r.stride[1] + unit.j);
    for (std::size_t x = 0; x < width; x += vector)
      store(row.at(x, count > x ? count - x : 0), to + x);
  }
}

void pack_backward_units(const SlstmBackward& b, int part, int parts) {
  const std::int64_t width = unit_width(), units = (b.plan.dh + width - 1) / width;
  const Range own = split_range(b.plan.heads * units, parts, part);
  for (std::int64_t u = own.begin; u < own.end; ++u) pack_backward(b, backward_unit(b, u));
}

HWY_INLINE VF load_or_zero(const float* from, std::int64_t feature, std::size_t count) {
  return from == nullptr ? hn::Zero(DF()) : load_up_to(from + feature, count);
}

/// What came back through R: the sum of the four gates, a unit apart, clipped.
HWY_INLINE VF recurrent_gradient(const SlstmBackward& b, const float* pre) {
  const DF d;
  const std::int64_t width = unit_width();
  const VF sum = hn::Add(hn::Add(load(pre), load(pre + width)),
                         hn::Add(load(pre + 2 * width), load(pre + 3 * width)));
  if (b.a.recurrent_clip == 0.0F) return sum;
  const VF high = hn::Set(d, b.a.recurrent_clip), low = hn::Neg(high);
  const VF capped = hn::IfThenElse(hn::Gt(sum, high), high, sum);  // a NaN stays one
  return hn::IfThenElse(hn::Lt(capped, low), low, capped);
}

/// Asks for what the cell of another row or unit will read and write, as prefetch_forward().
HWY_INLINE void prefetch_backward(const SlstmBackwardArgs& a, std::int64_t t,
                                  std::int64_t feature) {
  const std::int64_t width = a.h.dim(1);
  const float* gates = a.saved.gates.row<float>(t) + feature;
  const float* d_wx = a.d_wx.row<float>(t) + feature;
  for (int g = 0; g < 4; ++g) {
    __builtin_prefetch(gates + g * width);
    __builtin_prefetch(d_wx + g * width, 1);
  }
  for (const Tensor* tensor : {&a.saved.closed, &a.h, &a.d_h})
    __builtin_prefetch(tensor->row<float>(t) + feature);
  __builtin_prefetch(a.saved.c.row<float>(t - 1) + feature);
  __builtin_prefetch(a.saved.n.row<float>(t - 1) + feature);
}

/// The cell of one vector of features, specification C.5. `pre` is null at a sequence's last token.
void backward_cell(const SlstmBackward& b, std::int64_t row, std::int64_t step,
                   const SlstmBackwardUnit& unit, std::int64_t x, const float* pre) {
  const DF d;
  const VF one = hn::Set(d, 1.0F), zero = hn::Zero(d);
  const SlstmBackwardArgs& a = b.a;
  const std::int64_t t = b.rows.begin(row) + step, j = unit.j + x;
  const std::int64_t feature = unit.head * b.plan.dh + j, width = b.plan.heads * b.plan.dh;
  const std::int64_t at = b.at(row, unit.head, j);
  const auto count = static_cast<std::size_t>(unit.count - x);

  const VF c = load_up_to(a.saved.c.row<float>(t) + feature, count);
  // Lanes past the head divide by one.
  VF n = one;
  if (count >= lanes())
    n = load(a.saved.n.row<float>(t) + feature);
  else
    n = hn::IfThenElse(hn::FirstN(d, count), load_up_to(a.saved.n.row<float>(t) + feature, count),
                       one);
  VF c_before, n_before;
  if (step > 0) {
    c_before = load_up_to(a.saved.c.row<float>(t - 1) + feature, count);
    n_before = load_up_to(a.saved.n.row<float>(t - 1) + feature, count);
  } else {
    c_before = load_or_zero(b.record(a.batch.slots, row, a.state.c), feature, count);
    n_before = load_or_zero(b.record(a.batch.slots, row, a.state.n), feature, count);
  }
  VF d_h = load_up_to(a.d_h.row<float>(t) + feature, count);
  VF d_c, d_n, excess;
  if (step + 1 == b.rows.length(row)) {
    d_h = hn::Add(d_h, load_or_zero(b.record(a.d_slots, row, a.state.h), feature, count));
    d_c = load_or_zero(b.record(a.d_slots, row, a.state.c), feature, count);
    d_n = load_or_zero(b.record(a.d_slots, row, a.state.n), feature, count);
    const VF d_m = load_or_zero(b.record(a.d_slots, row, a.state.m), feature, count);
    excess = hn::Sub(d_m, hn::MulAdd(c, d_c, hn::Mul(n, d_n)));
  } else {
    if (!a.recurrent_cut) d_h = hn::Add(d_h, recurrent_gradient(b, pre));
    d_c = load(b.d_c + at);
    d_n = load(b.d_n + at);
    excess = load(b.excess + at);
  }

  const float* gates = a.saved.gates.row<float>(t) + feature;
  const VF i = load_up_to(gates, count), forget = load_up_to(gates + width, count);
  const VF z = load_up_to(gates + 2 * width, count), o = load_up_to(gates + 3 * width, count);
  const VF closed = load_up_to(a.saved.closed.row<float>(t) + feature, count);
  const VF h = load_up_to(a.h.row<float>(t) + feature, count);

  const VF by_n = hn::Div(d_h, n);
  d_c = hn::MulAdd(by_n, o, d_c);
  d_n = hn::NegMulAdd(by_n, h, d_n);
  // The maximum took the forget branch if the other weight is below 1.
  const VF forget_excess = hn::IfThenElse(hn::Lt(i, one), excess, zero);
  const VF input_excess = hn::Sub(excess, forget_excess);
  const VF decay = hn::Mul(forget, hn::MulAdd(c_before, d_c, hn::Mul(n_before, d_n)));
  const VF d_raw[4] = {hn::MulAdd(i, hn::MulAdd(z, d_c, d_n), input_excess),
                       hn::Mul(hn::Add(decay, forget_excess), closed),
                       hn::Mul(hn::Mul(i, d_c), hn::Mul(hn::Sub(one, z), hn::Add(one, z))),
                       hn::Mul(hn::Mul(d_h, h), hn::Sub(one, o))};
  float* scratch =
      b.d_raw[step % 2] + row * b.plan.gate_stride() + 4 * unit.head * b.plan.padded_dh() + j;
  float* d_wx = a.d_wx.row<float>(t) + feature;
  for (int g = 0; g < 4; ++g) {
    store(d_raw[g], scratch + g * b.plan.padded_dh());
    store_up_to(d_raw[g], d_wx + g * width, count);
  }
  store(hn::Mul(forget, d_c), b.d_c + at);
  store(hn::Mul(forget, d_n), b.d_n + at);
  store(forget_excess, b.excess + at);
}

void multiply_back(const SlstmBackward& b, const SlstmShare& share, const SlstmBackwardUnit& unit,
                   std::int64_t step, std::int64_t row, std::int64_t count) {
  if (b.a.recurrent_cut || count <= 0) return;
  const std::int64_t dh = b.plan.padded_dh(), stride = b.plan.gate_stride();
  slstm_product<false>(count, b.d_raw[step % 2] + row * stride + 4 * unit.head * dh, stride, dh,
                       unit.panels, b.plan.dh, false, share.pre);
}

void backward_unit_step(const SlstmBackward& b, const SlstmShare& share,
                        const SlstmBackwardUnit& unit, std::int64_t step, SlstmNext next) {
  const std::int64_t width = unit_width(), vector = width / 2;
  const std::int64_t end = b.rows.end_at(share.row0, share.row1, step);
  const std::int64_t begun = b.rows.end_at(share.row0, end, step + 1);
  for (std::int64_t row = share.row0; row < end; row += SlstmPlan::kRowBlock) {
    const std::int64_t count = std::min(SlstmPlan::kRowBlock, end - row);
    multiply_back(b, share, unit, step + 1, row, std::min(count, begun - row));
    const std::int64_t ahead = std::min(kSlstmRowsAhead, count);
    for (std::int64_t r = 0; r < count; ++r) {
      const bool here = r + ahead < count;
      const std::int64_t t = b.rows.begin(row + r + ahead - (here ? 0 : count)) + step;
      const std::int64_t feature = unit.head * b.plan.dh + unit.j;
      for (std::int64_t x = 0; x < unit.count; x += vector) {
        prefetch_backward(b.a, t + (here ? 0 : next.tokens),
                          feature + x + (here ? 0 : next.features));
        backward_cell(b, row + r, step, unit, x, share.pre + r * 4 * width + x);
      }
    }
  }
}

/// Gradients of the initial states, where they are wanted.
void finish_unit(const SlstmBackward& b, const SlstmShare& share, const SlstmBackwardUnit& unit) {
  const SlstmBackwardArgs& a = b.a;
  const std::int64_t width = unit_width(), vector = width / 2;
  for (std::int64_t row0 = share.row0; row0 < share.row1; row0 += SlstmPlan::kRowBlock) {
    const std::int64_t rows = std::min(SlstmPlan::kRowBlock, share.row1 - row0);
    multiply_back(b, share, unit, 0, row0, rows);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::byte* slot = a.d_slots[b.rows.sequence(row0 + r)];
      if (slot == nullptr) continue;
      const auto put = [slot](VF v, std::size_t offset, std::int64_t feature, std::size_t count) {
        store_up_to(v, reinterpret_cast<float*>(slot + offset) + feature, count);
      };
      for (std::int64_t x = 0; x < unit.count; x += vector) {
        const std::int64_t feature = unit.head * b.plan.dh + unit.j + x;
        const std::int64_t at = b.at(row0 + r, unit.head, unit.j + x);
        const auto count = static_cast<std::size_t>(unit.count - x);
        const VF d_c = load(b.d_c + at), d_n = load(b.d_n + at);
        const VF c = load_or_zero(b.record(a.batch.slots, row0 + r, a.state.c), feature, count);
        const VF n = load_or_zero(b.record(a.batch.slots, row0 + r, a.state.n), feature, count);
        put(a.recurrent_cut ? hn::Zero(DF()) : recurrent_gradient(b, share.pre + r * 4 * width + x),
            a.state.h, feature, count);
        put(d_c, a.state.c, feature, count);
        put(d_n, a.state.n, feature, count);
        put(hn::Add(hn::MulAdd(c, d_c, hn::Mul(n, d_n)), load(b.excess + at)), a.state.m, feature,
            count);
      }
    }
  }
}

void run_backward(const SlstmBackward& b, const SlstmShare& share) {
  const std::int64_t width = unit_width(), units = (b.plan.dh + width - 1) / width;
  const Range split = split_range((share.head1 - share.head0) * units, share.parts, share.part);
  const Range own{share.head0 * units + split.begin, share.head0 * units + split.end};
  if (share.pack && !b.a.recurrent_cut)
    for (std::int64_t u = own.begin; u < own.end; ++u) pack_backward(b, backward_unit(b, u));
  for (std::int64_t step = b.rows.length(share.row0); step-- > 0;) {
    for (std::int64_t u = own.begin; u < own.end; ++u) {
      const SlstmBackwardUnit unit = backward_unit(b, u);
      const SlstmBackwardUnit after = backward_unit(b, u + 1 < own.end ? u + 1 : own.begin);
      const SlstmNext next{u + 1 < own.end ? 0 : -1,
                           (after.head - unit.head) * b.plan.dh + after.j - unit.j};
      backward_unit_step(b, share, unit, step, next);
    }
    share.meet();
  }
  if (b.a.d_slots.empty()) return;
  for (std::int64_t u = own.begin; u < own.end; ++u) finish_unit(b, share, backward_unit(b, u));
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(run_backward);
HWY_EXPORT(pack_backward_units);

namespace {

/// h before each token of [t0, t1), features of one head. `s` is the sequence of t0, and moves on.
void copy_h_before(const SlstmBackwardArgs& a, std::int64_t t0, std::int64_t t1, std::int64_t head,
                   std::size_t& s, float* to, std::int64_t stride) {
  const std::int64_t dh = a.r.dim(2);
  for (std::int64_t t = t0; t < t1; ++t, to += stride) {
    if (t == a.batch.offsets[s + 1]) ++s;
    const float* from = nullptr;
    if (t > a.batch.offsets[s])
      from = a.h.row<float>(t - 1);
    else if (a.batch.slots[s] != nullptr)
      from = reinterpret_cast<const float*>(a.batch.slots[s] + a.state.h);
    if (from == nullptr)
      std::fill_n(to, dh, 0.0F);
    else
      std::copy_n(from + head * dh, dh, to);
  }
}

/// Rows [j0, j0 + count) of one head of d_r and d_b: d_r += d_wx^T h_before, by blocks of tokens.
void add_weight_gradients(const SlstmBackwardArgs& a, const SlstmPlan& plan, std::int64_t head,
                          std::int64_t gate, std::int64_t j0, std::int64_t count, float* scratch) {
  constexpr std::int64_t kTokens = SlstmPlan::kTokenBlock;
  constexpr std::int64_t kRowsAhead = 8;
  constexpr std::int64_t kOutStride = SlstmPlan::kOutBlock + 16;
  const std::int64_t dh = plan.dh, stride = plan.padded_dh() + 16, tokens = a.batch.tokens();
  const std::int64_t column = (gate * plan.heads + head) * dh + j0;
  float* d_out = scratch;
  float* h_before = scratch + plan.out_floats();
  float* d_r = a.d_r.as<float>() + head * a.d_r.stride[0] + (gate * dh + j0) * a.d_r.stride[1];
  std::size_t sequence = 0;
  for (std::int64_t t = 0; t < tokens; t += kTokens) {
    const std::int64_t length = std::min(kTokens, tokens - t);
    float sums[SlstmPlan::kOutBlock] = {};
    for (std::int64_t k = 0; k < length; ++k) {
      const float* from = a.d_wx.row<float>(t + k) + column;
      for (std::int64_t j = 0; j < count; j += 16)  // rows lie a page apart
        __builtin_prefetch(from + kRowsAhead * a.d_wx.row_stride() + j);
      for (std::int64_t j = 0; j < count; ++j) {
        d_out[k * kOutStride + j] = from[j];
        sums[j] += from[j];
      }
    }
    if (a.d_b)
      for (std::int64_t j = 0; j < count; ++j) a.d_b.as<float>()[column + j] += sums[j];
    copy_h_before(a, t, t + length, head, sequence, h_before, stride);
    sgemm(true, false, count, dh, length, 1.0F, d_out, kOutStride, h_before, stride, 1.0F, d_r,
          a.d_r.stride[1]);
  }
}

}  // namespace

void slstm_backward(Context& context, const SlstmBackwardArgs& a) {
  const SlstmPlan plan(a.batch, a.r, context.threads());
  ArenaScope scope(context.arena());
  ScratchFloats scratch(context.arena().take(plan.backward_bytes()));
  const SlstmRows rows(a.batch, reinterpret_cast<std::int32_t*>(scratch.take(plan.order_floats())));
  const std::int64_t floats = plan.rows * plan.stride();
  const std::int64_t gate_floats = plan.rows * plan.gate_stride();
  const SlstmBackward b{
      .a = a,
      .plan = plan,
      .rows = rows,
      .d_raw = {scratch.take(gate_floats), scratch.take(gate_floats)},
      .d_c = scratch.take(floats),
      .d_n = scratch.take(floats),
      .excess = scratch.take(floats),
      .packed = scratch.take(std::max(4 * plan.dh * plan.width(), plan.packed_floats()))};
  float* pre = scratch.take(plan.most_workers * SlstmPlan::kPreFloats);
  const auto pack_all = [&b](int workers) {
    if (b.a.recurrent_cut) return;
    parallel_for(workers, workers, [&](std::int64_t part) {
      HWY_DYNAMIC_DISPATCH(pack_backward_units)(b, static_cast<int>(part), workers);
    });
  };
  run_slstm_shares(plan, true, pre, b.packed, pack_all, [&b](const SlstmShare& share) {
    HWY_DYNAMIC_DISPATCH(run_backward)(b, share);
  });

  float* products = scratch.take(plan.most_workers * plan.product_floats());
  const std::int64_t blocks = (plan.dh + SlstmPlan::kOutBlock - 1) / SlstmPlan::kOutBlock;
  const std::int64_t tasks = plan.heads * 4 * blocks;
  const std::int64_t workers = std::min(plan.workers, tasks);
  std::atomic<std::int64_t> next{0};
  parallel_ranges(static_cast<int>(workers), workers, 1, [&](Range worker) {
    float* own = products + worker.begin * plan.product_floats();
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const std::int64_t block = task % blocks, gate = task / blocks % 4;
      const std::int64_t j0 = plan.dh * block / blocks, j1 = plan.dh * (block + 1) / blocks;
      add_weight_gradients(a, plan, task / blocks / 4, gate, j0, j1 - j0, own);
    }
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
