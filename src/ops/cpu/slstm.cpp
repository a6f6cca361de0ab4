#include "ops/slstm.hpp"

#include <algorithm>
#include <cstring>

#include "core/threads.hpp"
#include "ops/cpu/convert.hpp"
#include "ops/cpu/matmul.hpp"
#include "ops/cpu/slstm_plan.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/slstm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/reduce-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// One step of one head of one sequence: raw [4][width] without W x, `wx` its W x (gates `stride`
/// apart), states [width]; h is the output too.
void slstm_step(const float* raw, const float* wx, std::int64_t stride, std::int64_t head_width,
                float* h, float* c, float* n, float* m) {
  const DF d;
  const auto width = static_cast<std::size_t>(head_width), gate = static_cast<std::size_t>(stride);
  const VF one = hn::Set(d, 1.0F);
  for (std::size_t j = 0; j < width; j += lanes()) {
    const std::size_t count = width - j;
    const auto raw_of = [&](std::size_t g) HWY_ATTR {
      return hn::Add(load_up_to(raw + g * width + j, count), load_up_to(wx + g * gate + j, count));
    };
    const VF raw_i = raw_of(0);
    const VF n_old = load_up_to(n + j, count);
    const VF lf = hn::Add(load_up_to(m + j, count), log_sigmoid(raw_of(1)));
    // The maximum by hand: NaN in either operand must stay.
    const VF larger = hn::IfThenElse(hn::Gt(lf, raw_i), lf, raw_i);
    const VF kept = hn::IfThenElse(hn::IsNaN(lf), lf, larger);
    const VF m_new = hn::IfThenElse(hn::Eq(n_old, hn::Zero(d)), raw_i, kept);
    const VF input = exp(hn::Sub(raw_i, m_new));  // at most 1: m is at least raw_i
    const VF f = exp(hn::Sub(lf, m_new));
    const VF forget = hn::IfThenElse(hn::Gt(f, one), one, f);  // above 1 in the first step only
    const VF c_new = hn::MulAdd(forget, load_up_to(c + j, count), hn::Mul(input, tanh(raw_of(2))));
    const VF n_new = hn::MulAdd(forget, n_old, input);
    store_up_to(c_new, c + j, count);
    store_up_to(n_new, n + j, count);
    store_up_to(m_new, m + j, count);
    store_up_to(hn::Div(hn::Mul(sigmoid(raw_of(3)), c_new), n_new), h + j, count);
  }
}

/// raw[row] += R[row] h for the rows of one head: R is read as it lies, once.
void slstm_matvec(const Tensor& r, std::int64_t head, const float* h, float* raw) {
  const std::int64_t rows = r.dim(1);
  const auto width = static_cast<std::size_t>(r.dim(2));
  for (std::int64_t row = 0; row < rows; ++row) {
    const WeightRow w(r, (head * rows + row) * r.dim(2));
    raw[row] += sum_over(width, [&](std::size_t k, std::size_t n)
                                    HWY_ATTR { return hn::Mul(w.at(k, n), load_up_to(h + k, n)); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(slstm_step);
HWY_EXPORT(slstm_matvec);

namespace {

// R of one head, transposed to [D / H, 4 D / H].
void transpose_r(const Tensor& r, std::int64_t head, float* to) {
  const std::int64_t rows = r.dim(1), width = r.dim(2);
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t k = 0; k < width; ++k)
      to[k * rows + row] = load_f32(r, (head * rows + row) * width + k);
}

class Task {
 public:
  Task(const SlstmArgs& a, const SlstmPlan& plan, std::int64_t index, const float* r, float* memory)
      : a_(a),
        width_(plan.width),
        head_(index / plan.groups),
        first_(plan.first_of(index % plan.groups)),
        count_(plan.first_of(index % plan.groups + 1) - first_),
        r_(r + head_ * plan.r_floats()) {
    const std::int64_t largest = plan.largest();
    for (float** part : {&h_, &c_, &n_, &m_}) {
      *part = memory;
      memory += largest * width_;
    }
    raw_ = memory;
    bias_ = raw_ + largest * 4 * width_;
  }

  void run() {
    for (std::int64_t g = 0; g < 4; ++g)
      for (std::int64_t j = 0; j < width_; ++j)
        bias_[g * width_ + j] = load_f32(a_.b, (g * a_.r.dim(0) + head_) * width_ + j);
    for (std::int64_t s = 0; s < count_; ++s)
      each_state(s, [](float* mine, float* slot, std::size_t n) { std::memcpy(mine, slot, n); });

    // Sequences side by side as long as they last; those with tokens left are found anew each step.
    for (std::int64_t t = 0;; ++t) {
      const std::int64_t live = step(t);
      if (live == 0) break;
    }
    for (std::int64_t s = 0; s < count_; ++s)
      each_state(s, [](float* mine, float* slot, std::size_t n) { std::memcpy(slot, mine, n); });
  }

 private:
  std::int64_t length(std::int64_t s) const {
    const auto at = static_cast<std::size_t>(first_ + s);
    return a_.batch.offsets[at + 1] - a_.batch.offsets[at];
  }

  // body(task's copy, record's part, bytes) for h, c, n and m of sequence s.
  template <class Body>
  void each_state(std::int64_t s, Body&& body) {
    std::byte* slot = a_.batch.slots[static_cast<std::size_t>(first_ + s)];
    const auto part = [&](float* mine, std::size_t offset) {
      body(mine + s * width_, reinterpret_cast<float*>(slot + offset) + head_ * width_,
           static_cast<std::size_t>(width_) * sizeof(float));
    };
    part(h_, a_.state.h);
    part(c_, a_.state.c);
    part(n_, a_.state.n);
    part(m_, a_.state.m);
  }

  // Step t of the sequences that have one; returns how many.
  std::int64_t step(std::int64_t t) {
    std::int64_t live = 0;
    for (std::int64_t s = 0; s < count_; ++s) {
      if (t >= length(s)) continue;
      std::copy_n(bias_, 4 * width_, raw_ + s * 4 * width_);
      ++live;
    }
    // Runs of neighbours that are live: usually all. A sequence of one token takes R as it is.
    const auto in_run = [&](std::int64_t s) { return t < length(s) && length(s) > 1; };
    for (std::int64_t s = 0; s < count_;) {
      if (!in_run(s)) {
        if (t < length(s)) {
          HWY_DYNAMIC_DISPATCH(slstm_matvec)(a_.r, head_, h_ + s * width_, raw_ + s * 4 * width_);
          cell(s, t);
        }
        ++s;
        continue;
      }
      std::int64_t end = s + 1;
      while (end < count_ && in_run(end)) ++end;
      sgemm(false, false, end - s, 4 * width_, width_, 1.0F, h_ + s * width_, width_, r_,
            4 * width_, 1.0F, raw_ + s * 4 * width_, 4 * width_);
      for (; s < end; ++s) cell(s, t);
    }
    return live;
  }

  void cell(std::int64_t s, std::int64_t t) {
    const std::int64_t token = a_.batch.offsets[static_cast<std::size_t>(first_ + s)] + t;
    const std::int64_t at = s * width_;
    HWY_DYNAMIC_DISPATCH(slstm_step)
    (raw_ + 4 * at, a_.wx.row<float>(token) + head_ * width_, a_.r.dim(0) * width_, width_, h_ + at,
     c_ + at, n_ + at, m_ + at);
    std::copy_n(h_ + at, width_, a_.h.row<float>(token) + head_ * width_);
  }

  const SlstmArgs& a_;
  std::int64_t width_, head_, first_, count_;
  const float* r_;
  float *h_ = nullptr, *c_ = nullptr, *n_ = nullptr, *m_ = nullptr;  ///< [sequences, width]
  float* raw_ = nullptr;                                             ///< [sequences, 4 width]
  float* bias_ = nullptr;                                            ///< [4 width]
};

}  // namespace

void slstm(Context& context, const SlstmArgs& a) {
  const SlstmPlan plan(a, context.threads());
  const ArenaScope scope(context.arena());
  auto* r = reinterpret_cast<float*>(context.arena().take(plan.bytes()));
  float* memory = r + plan.heads * plan.r_floats();
  parallel_for(context.threads(), plan.heads,
               [&](std::int64_t head) { transpose_r(a.r, head, r + head * plan.r_floats()); });
  parallel_for(context.threads(), plan.tasks,
               [&](std::int64_t i) { Task(a, plan, i, r, memory + i * plan.task_floats()).run(); });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
