#include "ops/mlstm.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/check.hpp"
#include "core/threads.hpp"
#include "ops/cpu/matmul.hpp"
#include "ops/cpu/mlstm_plan.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/mlstm.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

#ifndef XLSTM_OPS_CPU_MLSTM_TASK
#define XLSTM_OPS_CPU_MLSTM_TASK
namespace xlstm::ops::cpu {

/// Value columns [x0, x1) of one head of one sequence, with the worker's scratch.
struct MlstmTask {
  const MlstmArgs& args;
  const MlstmPlan& plan;
  std::int64_t sequence, head, x0, x1;
  float* c;   ///< the state C [dqk, dv], updated in place
  double* n;  ///< a copy of the normaliser [dqk], updated
  double m;
  float scale;
  double *n_before = nullptr,
         *n_scratch = nullptr;  ///< [dqk], n as it was before a chunk, and room for another
  float *q_rows = nullptr, *k_rows = nullptr;      ///< [chunk, qk_stride]
  float *v_rows = nullptr, *numerators = nullptr;  ///< [chunk, v_stride], one unit of columns
  float* scores = nullptr;                         ///< [chunk, chunk_stride]
  float* rows = nullptr;                           ///< [kChunkRows, chunk_stride]

  const float* q(std::int64_t t) const { return args.q.row<float>(t) + head * plan.dqk; }
  const float* k(std::int64_t t) const { return args.k.row<float>(t) + head * plan.dqk; }
  const float* v(std::int64_t t) const { return args.v.row<float>(t) + head * plan.dv; }
  float* h(std::int64_t t) const { return args.h.row<float>(t) + head * plan.dv; }
  double i(std::int64_t t) const { return args.i.row<float>(t)[head]; }
  /// log f, but not below where e^log f is 0 in any format: sums of it stay exact and finite.
  double log_f(std::int64_t t) const {
    const double value = args.log_f.row<float>(t)[head];
    return value < -1e4 ? -1e4 : value;
  }
  bool has_stabiliser() const { return args.gate == MlstmGate::exponential; }
  // What is saved of token t is the same for all columns: the task that has the first writes it.
  void save_l(std::int64_t t, double l) const {
    if (args.saved && x0 == 0) args.saved.l.row<float>(t)[head] = static_cast<float>(l);
  }
  void save_m(std::int64_t t, double value) const {
    if (args.saved && x0 == 0) args.saved.m.row<float>(t)[head] = static_cast<float>(value);
  }
  /// The state before token t, at a border.
  void save_state(std::int64_t t) const {
    const std::int64_t begin = args.batch.offsets[static_cast<std::size_t>(sequence)];
    const std::int64_t state = MlstmSaved::state(begin, sequence, t - begin, args.saved.border);
    const std::int64_t index = state * plan.heads + head;
    float* to = args.saved.c.as<float>() + index * plan.dqk * plan.dv;
    for (std::int64_t a = 0; a < plan.dqk; ++a)
      std::copy(c + a * plan.dv + x0, c + a * plan.dv + x1, to + a * plan.dv + x0);
    if (x0 > 0) return;
    std::copy_n(n, plan.dqk, args.saved.n.as<float>() + index * plan.dqk);
    args.saved.state_m.as<float>()[index] = static_cast<float>(m);
  }
  /// 1 / (max(|l|, e^-m) + eps); the comparison keeps a NaN.
  double reciprocal(double l, double floor) const {
    if (!args.normalise) return 1.0;
    const double magnitude = std::abs(l);
    return 1.0 / ((magnitude <= floor ? floor : magnitude) + static_cast<double>(args.eps));
  }
};

}  // namespace xlstm::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// kRows rows of C at once: C = F C + I k v^T and num (+)= C^T q.
template <std::size_t kRows>
HWY_INLINE void step_rows(float* HWY_RESTRICT c, std::size_t c_stride, VF forget, const VF* k,
                          const VF* q, const float* HWY_RESTRICT v, float* HWY_RESTRICT num,
                          bool first, std::size_t width) {
  for (std::size_t x = 0; x < width; x += lanes()) {
    const std::size_t count = width - x;
    const VF value = load_up_to(v + x, count);
    VF sum = first ? hn::Zero(DF()) : load_up_to(num + x, count);
    for (std::size_t r = 0; r < kRows; ++r) {
      float* at = c + r * c_stride + x;
      // The next rows, to the second level: the hardware sees streams of one row only.
      __builtin_prefetch(at + kRows * c_stride, 0, 2);
      const VF state = hn::MulAdd(k[r], value, hn::Mul(forget, load_up_to(at, count)));
      store_up_to(state, at, count);
      sum = hn::MulAdd(q[r], state, sum);
    }
    store_up_to(sum, num + x, count);
  }
}

/// What one token does to every column of C, and the factor of its read-out.
struct Step {
  float forget, input, out;
  double l;
};

/// n = F n + I k of token t. Returns l.
double advance_n(const MlstmTask& task, std::int64_t t, double forget, double input, double* n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  const float *q = task.q(t), *k = task.k(t);
  const auto dqk = static_cast<std::size_t>(task.plan.dqk);
  const auto by_forget = hn::Set(d, forget), by_input = hn::Set(d, input);
  auto sum = hn::Zero(d);
  std::size_t a = 0;
  for (; a + hn::Lanes(d) <= dqk; a += hn::Lanes(d)) {
    const auto value = hn::MulAdd(by_input, hn::PromoteTo(d, hn::LoadU(half, k + a)),
                                  hn::Mul(by_forget, hn::LoadU(d, n + a)));
    hn::StoreU(value, d, n + a);
    sum = hn::MulAdd(value, hn::PromoteTo(d, hn::LoadU(half, q + a)), sum);
  }
  double l = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; a < dqk; ++a) {
    n[a] = forget * n[a] + input * static_cast<double>(k[a]);
    l += n[a] * static_cast<double>(q[a]);
  }
  return task.scale * l;
}

/// Moves n and m over token t.
Step advance(const MlstmTask& task, std::int64_t t, double* n, double& m) {
  const double decayed = task.log_f(t) + m, i = task.i(t);
  // Where nothing new is larger, F is exactly 1 and C collects no rounding errors.
  m = !task.has_stabiliser() ? 0.0 : i > decayed ? i : decayed;
  const double forget = std::exp(decayed - m), input = std::exp(i - m);
  const double l = advance_n(task, t, forget, input, n);
  const double reciprocal = task.reciprocal(l, std::exp(-m));
  return {static_cast<float>(forget), static_cast<float>(input),
          static_cast<float>(task.scale * reciprocal), l};
}

/// Columns [x0, x1) of C and h for token t, in one pass over C. Memory bound.
void step_columns(const MlstmTask& task, std::int64_t t, const Step& step, std::int64_t x0,
                  std::int64_t x1) {
  constexpr std::size_t kRows = 8;
  const DF d;
  const auto dqk = static_cast<std::size_t>(task.plan.dqk);
  const auto dv = static_cast<std::size_t>(task.plan.dv);
  const auto width = static_cast<std::size_t>(x1 - x0);
  const float *q = task.q(t), *k = task.k(t), *v = task.v(t) + x0;
  float *c = task.c + x0, *h = task.h(t) + x0;
  const VF forget = hn::Set(d, step.forget);
  std::size_t a = 0;
  for (; a + kRows <= dqk; a += kRows) {
    VF ks[kRows], qs[kRows];
    for (std::size_t r = 0; r < kRows; ++r) {
      ks[r] = hn::Set(d, step.input * k[a + r]);
      qs[r] = hn::Set(d, q[a + r]);
    }
    step_rows<kRows>(c + a * dv, dv, forget, ks, qs, v, h, a == 0, width);
  }
  for (; a < dqk; ++a) {
    const VF ks = hn::Set(d, step.input * k[a]), qs = hn::Set(d, q[a]);
    step_rows<1>(c + a * dv, dv, forget, &ks, &qs, v, h, a == 0, width);
  }
  const VF out = hn::Set(d, step.out);
  for (std::size_t x = 0; x < width; x += lanes())
    store_up_to(hn::Mul(out, load_up_to(h + x, width - x)), h + x, width - x);
}

/// Specification A.4 (1): one token after the other.
void steps(MlstmTask& task, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    const Step step = advance(task, t, task.n, task.m);
    task.save_l(t, step.l);
    task.save_m(t, task.m);
    step_columns(task, t, step, task.x0, task.x1);
  }
}

/// to = factor * from
HWY_INLINE void scale_row(const float* from, float factor, float* to, std::size_t count) {
  const VF by = hn::Set(DF(), factor);
  for (std::size_t i = 0; i < count; i += lanes())
    store_up_to(hn::Mul(by, load_up_to(from + i, count - i)), to + i, count - i);
}

/// Copies rows; false if any value is NaN or infinite.
bool copy_rows(const float* from, std::int64_t from_stride, float* to, std::int64_t to_stride,
               std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kAhead = 6;  // rows to prefetch: each lies in a page of its own
  VF sum = hn::Zero(DF());
  const auto count = static_cast<std::size_t>(columns);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::size_t i = 0; i < count; i += lanes()) {
      hwy::Prefetch(from + std::min(r + kAhead, rows - 1) * from_stride + i);
      const VF value = load_up_to(from + r * from_stride + i, count - i);
      store_up_to(value, to + r * to_stride + i, count - i);
      sum = hn::MulAdd(value, hn::Zero(DF()), sum);  // 0 x NaN and 0 x Inf are NaN
    }
  return sum_of_lanes(sum) == 0.0F;
}

bool finite_gates(const MlstmTask& task, std::int64_t t0, std::int64_t length) {
  for (std::int64_t t = t0; t < t0 + length; ++t)
    if (!std::isfinite(task.i(t)) || !std::isfinite(task.log_f(t))) return false;
  return true;
}

/// Row t of the scores times its decays, zero after the diagonal. Exponents are differences of sums
/// over the chunk, so both sides come as an upper and a lower float.
HWY_INLINE void weigh_scores(float* scores, const float* beta_hi, const float* beta_lo, double mu,
                             std::size_t t, std::size_t length) {
  const DF d;
  const auto upper = static_cast<float>(mu);
  const VF mu_hi = hn::Set(d, upper), mu_lo = hn::Set(d, static_cast<float>(mu - upper));
  std::size_t j = 0;
  for (; j <= t; j += lanes()) {
    const VF exponent =
        hn::Add(hn::Sub(load(beta_hi + j), mu_hi), hn::Sub(load(beta_lo + j), mu_lo));
    const VF weight = hn::Mul(load(scores + j), exp(exponent));
    const VF kept = hn::IfThenElseZero(hn::FirstN(d, std::min(lanes(), t + 1 - j)), weight);
    store(kept, scores + j);
  }
  for (; j < length; j += lanes()) store(hn::Zero(d), scores + j);
}

/// Specification A.4 (3) for tokens [t0, t0 + length). With b the sums of log f, beta_j = i_j - b_j
/// and mu_t = max(m_prev, max_{j<=t} beta_j), the stabiliser is m_t = b_t + mu_t: a scan of the
/// gates. No exponent below is positive, so nothing overflows in any regime. The sigmoid gate,
/// whose i is not positive, has m_t = 0.
///
/// Products with masked scores would carry a NaN backwards in time (0 x NaN): where one enters, the
/// tokens (by q, k or a gate) or the columns (by v) take the recurrent form.
void chunk(MlstmTask& task, std::int64_t t0, std::int64_t length) {
  const MlstmPlan& plan = task.plan;
  const MlstmArgs& args = task.args;
  constexpr std::int64_t kRowBlock = 32;
  const std::int64_t stride = plan.chunk_stride, qk_stride = plan.qk_stride();
  const auto count = static_cast<std::size_t>(length);
  const auto dqk = static_cast<std::size_t>(plan.dqk);
  const bool finite =
      copy_rows(task.q(t0), args.q.row_stride(), task.q_rows, qk_stride, length, plan.dqk) &&
      copy_rows(task.k(t0), args.k.row_stride(), task.k_rows, qk_stride, length, plan.dqk);
  if (!finite || !finite_gates(task, t0, length)) return steps(task, t0, t0 + length);

  float *beta_hi = task.rows, *beta_lo = beta_hi + stride, *q_weight = beta_lo + stride;
  float *k_weight = q_weight + stride, *out = k_weight + stride;
  auto* mu = reinterpret_cast<double*>(out + stride);  // two rows of floats
  const double m_before = task.m;
  double b = 0, high = task.m;
  std::copy_n(task.n, dqk, task.n_before);
  for (std::size_t j = 0; j < count; ++j) {
    const std::int64_t t = t0 + static_cast<std::int64_t>(j);
    b += task.log_f(t);
    const double beta = task.i(t) - b, before = high;
    high = task.has_stabiliser() ? std::max(high, beta) : -b;
    mu[j] = high;
    beta_hi[j] = static_cast<float>(beta);
    beta_lo[j] = static_cast<float>(beta - beta_hi[j]);
    q_weight[j] = static_cast<float>(m_before - high);
    const double l = advance_n(task, t, std::exp(before - high), std::exp(beta - high), task.n);
    out[j] = static_cast<float>(task.reciprocal(l, std::exp(-(b + high))));
    task.save_l(t, l);
    task.save_m(t, b + high);
  }
  for (std::size_t j = 0; j < count; ++j)  // k_j enters the state with e^(beta_j - mu_L)
    k_weight[j] = static_cast<float>(static_cast<double>(beta_hi[j]) + beta_lo[j] - high);
  const auto decay = static_cast<float>(std::exp(m_before - high));
  task.m = b + high;
  for (std::size_t j = 0; j < count; j += lanes()) {
    store(hn::Mul(hn::Set(DF(), task.scale), exp(load(q_weight + j))), q_weight + j);
    store(exp(load(k_weight + j)), k_weight + j);
  }

  // Products with scores go by blocks of rows, leaving out the blocks above the diagonal.
  for (std::int64_t r = 0; r < length; r += kRowBlock) {
    const std::int64_t rows = std::min(kRowBlock, length - r);
    sgemm(false, true, rows, r + rows, plan.dqk, task.scale, task.q_rows + r * qk_stride, qk_stride,
          task.k_rows, qk_stride, 0.0F, task.scores + r * stride, stride);
  }
  for (std::size_t j = 0; j < count; ++j) {
    const auto row = static_cast<std::int64_t>(j);
    weigh_scores(task.scores + row * stride, beta_hi, beta_lo, mu[j], j, count);
    scale_row(task.k_rows + row * qk_stride, k_weight[j], task.k_rows + row * qk_stride, dqk);
  }

  const std::int64_t v_stride = plan.v_stride();
  for (std::int64_t x = task.x0; x < task.x1; x += MlstmPlan::kUnit) {
    const std::int64_t width = std::min(MlstmPlan::kUnit, task.x1 - x);
    float *c = task.c + x, *num = task.numerators;
    if (!copy_rows(task.v(t0) + x, args.v.row_stride(), task.v_rows, v_stride, length, width)) {
      double m = m_before;
      std::copy_n(task.n_before, dqk, task.n_scratch);
      for (std::int64_t t = t0; t < t0 + length; ++t)
        step_columns(task, t, advance(task, t, task.n_scratch, m), x, x + width);
      continue;
    }
    sgemm(false, false, length, width, plan.dqk, 1.0F, task.q_rows, qk_stride, c, plan.dv, 0.0F,
          num, v_stride);
    for (std::int64_t j = 0; j < length; ++j)
      scale_row(num + j * v_stride, q_weight[j], num + j * v_stride,
                static_cast<std::size_t>(width));
    for (std::int64_t r = 0; r < length; r += kRowBlock) {
      const std::int64_t rows = std::min(kRowBlock, length - r);
      sgemm(false, false, rows, width, r + rows, 1.0F, task.scores + r * stride, stride,
            task.v_rows, v_stride, 1.0F, num + r * v_stride, v_stride);
    }
    for (std::int64_t j = 0; j < length; ++j)
      scale_row(num + j * v_stride, out[j], task.h(t0 + j) + x, static_cast<std::size_t>(width));
    sgemm(true, false, plan.dqk, width, length, 1.0F, task.k_rows, qk_stride, task.v_rows, v_stride,
          decay, c, plan.dv);
  }
}

void run_mlstm_task(MlstmTask& task, std::int64_t begin, std::int64_t end) {
  const MlstmSaved& saved = task.args.saved;
  const std::int64_t stretch = saved ? saved.border : end - begin;
  for (std::int64_t t = begin; t < end;) {
    const std::int64_t done = (t - begin) % stretch;
    if (saved && done == 0) task.save_state(t);
    const std::int64_t length = std::min({task.plan.chunk, stretch - done, end - t});
    if (length > 1)
      chunk(task, t, length);
    else
      steps(task, t, t + length);
    t += length;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(run_mlstm_task);

namespace {

template <class T>
T* at(std::byte* slot, std::size_t offset) {
  return reinterpret_cast<T*>(slot + offset);
}

/// Runs task `index` (sequence, head, group of columns) with the scratch memory of one worker.
void run_task(const MlstmArgs& a, const MlstmPlan& plan, std::int64_t index, float* scratch,
              double* results) {
  const std::int64_t pair = index / plan.groups, group = index % plan.groups;
  const std::int64_t head = pair % plan.heads;
  const auto sequence = static_cast<std::size_t>(pair / plan.heads);
  std::byte* slot = a.batch.slots[sequence];
  double* n = slot == nullptr ? nullptr : at<double>(slot, a.state.n) + head * plan.dqk;
  double* m = slot == nullptr ? nullptr : at<double>(slot, a.state.m) + head;

  const auto take = [&scratch](std::int64_t floats) {
    float* begin = scratch;
    scratch += floats;
    return begin;
  };
  const auto take_n = [&] { return reinterpret_cast<double*>(take(plan.n_floats())); };
  double* local_n = take_n();
  float* c = nullptr;
  if (slot != nullptr) {
    std::copy_n(n, plan.dqk, local_n);
    c = at<float>(slot, a.state.c) + head * plan.dqk * plan.dv;
  } else {  // from the zero state
    std::fill_n(local_n, plan.dqk, 0.0);
    c = take(plan.own_c_floats());
    for (std::int64_t row = 0; row < plan.dqk; ++row)
      std::fill(c + row * plan.dv + plan.column(group), c + row * plan.dv + plan.column(group + 1),
                0.0F);
  }
  const bool has_m = slot != nullptr && a.gate == MlstmGate::exponential;
  MlstmTask task{.args = a,
                 .plan = plan,
                 .sequence = pair / plan.heads,
                 .head = head,
                 .x0 = plan.column(group),
                 .x1 = plan.column(group + 1),
                 .c = c,
                 .n = local_n,
                 .m = has_m ? *m : 0.0,
                 .scale = 1.0F / std::sqrt(static_cast<float>(plan.dqk))};
  if (plan.chunk > 1) {
    task.n_before = take_n();
    task.n_scratch = take_n();
    task.q_rows = take(plan.chunk * plan.qk_stride());
    task.k_rows = take(plan.chunk * plan.qk_stride());
    task.v_rows = take(plan.chunk * plan.v_stride());
    task.numerators = take(plan.chunk * plan.v_stride());
    task.scores = take(plan.chunk * plan.chunk_stride);
    task.rows = take(MlstmPlan::kChunkRows * plan.chunk_stride);
  }
  HWY_DYNAMIC_DISPATCH(run_mlstm_task)
  (task, a.batch.offsets[sequence], a.batch.offsets[sequence + 1]);
  if (group != 0 || slot == nullptr) return;
  if (plan.groups > 1) {
    n = results + pair * (plan.dqk + 1);
    m = n + plan.dqk;
  }
  std::copy_n(local_n, plan.dqk, n);
  *m = task.m;
}

}  // namespace

void mlstm(Context& context, const MlstmArgs& a) {
  XLSTM_CHECK(a.q.dtype == DType::f32 && a.h.dtype == DType::f32, unsupported,
              "mlstm: on the CPU q, k, v and h are f32, found {} and {}", to_string(a.q.dtype),
              to_string(a.h.dtype));
  XLSTM_CHECK(a.state.c_type == DType::f32, unsupported, "mlstm: on the CPU C is f32, found {}",
              to_string(a.state.c_type));
  const MlstmPlan plan(a, context.threads());
  ArenaScope scope(context.arena());
  auto* scratch = reinterpret_cast<float*>(context.arena().take(plan.bytes()));
  auto* results = reinterpret_cast<double*>(scratch + plan.workers * plan.worker_floats());
  std::atomic<std::int64_t> next{0};
  // A call that touches little state runs faster on one thread than a second one wakes up.
  constexpr std::int64_t kWorthThreads = 1 << 17;
  const bool small = a.batch.tokens() * plan.heads * plan.dqk * plan.dv < kWorthThreads;
  const int workers = small ? 1 : static_cast<int>(plan.workers);
  parallel_ranges(workers, workers, 1, [&](Range worker) {
    float* own = scratch + worker.begin * plan.worker_floats();
    for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < plan.tasks();)
      run_task(a, plan, task, own, results);
  });
  if (plan.groups == 1) return;
  for (std::int64_t pair = 0; pair < plan.sequences * plan.heads; ++pair) {
    std::byte* slot = a.batch.slots[static_cast<std::size_t>(pair / plan.heads)];
    if (slot == nullptr) continue;
    const std::int64_t head = pair % plan.heads;
    const double* result = results + pair * (plan.dqk + 1);
    std::copy_n(result, plan.dqk, at<double>(slot, a.state.n) + head * plan.dqk);
    at<double>(slot, a.state.m)[head] = result[plan.dqk];
  }
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
