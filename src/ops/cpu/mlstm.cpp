#include "ops/mlstm.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/threads.hpp"
#include "ops/cpu/matmul.hpp"
#include "ops/cpu/mlstm_plan.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/mlstm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

#ifndef XLSTM_OPS_CPU_MLSTM_TASK
#define XLSTM_OPS_CPU_MLSTM_TASK
namespace xlstm::ops::cpu {

/// Value columns [x0, x1) of one head of one sequence, with the worker's scratch.
struct MlstmTask {
  const MlstmArgs& args;
  const MlstmPlan& plan;
  std::int64_t head, x0, x1;
  float* c;  ///< the state C [dqk, dv], updated in place
  float* n;  ///< a copy of the normaliser [dqk], updated
  double m;  ///< a float32 value
  float scale;
  float *q_scaled, *k_scaled;  ///< [chunk, dqk]
  float* scores;               ///< [chunk, chunk_stride]
  float* rows;                 ///< [kChunkRows, chunk_stride]

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
  /// 1 / (max(|l|, e^-m) + eps); the comparison keeps a NaN.
  double reciprocal(double l, double floor) const {
    const double magnitude = std::abs(l);
    return 1.0 / ((magnitude <= floor ? floor : magnitude) + static_cast<double>(args.eps));
  }
};

}  // namespace xlstm::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE float dot(const float* a, const float* b, std::size_t count) {
  VF sum = hn::Zero(DF());
  for (std::size_t i = 0; i < count; i += lanes())
    sum = hn::MulAdd(load_up_to(a + i, count - i), load_up_to(b + i, count - i), sum);
  return sum_of_lanes(sum);
}

/// kRows rows of C at once: C = F C + I k v^T and num (+)= C^T q.
template <int kRows>
HWY_INLINE void step_rows(float* HWY_RESTRICT c, std::size_t c_stride, VF forget, const VF* k,
                          const VF* q, const float* HWY_RESTRICT v, float* HWY_RESTRICT num,
                          bool first, std::size_t width) {
  for (std::size_t x = 0; x < width; x += lanes()) {
    const std::size_t count = width - x;
    const VF value = load_up_to(v + x, count);
    VF sum = first ? hn::Zero(DF()) : load_up_to(num + x, count);
    for (int r = 0; r < kRows; ++r) {
      float* at = c + static_cast<std::size_t>(r) * c_stride + x;
      const VF state = hn::MulAdd(k[r], value, hn::Mul(forget, load_up_to(at, count)));
      store_up_to(state, at, count);
      sum = hn::MulAdd(q[r], state, sum);
    }
    store_up_to(sum, num + x, count);
  }
}

/// Specification A.4 (1): one token, one pass over C. Memory bound.
void step(MlstmTask& task, std::int64_t t) {
  constexpr int kRows = 4;
  const auto dqk = static_cast<std::size_t>(task.plan.dqk);
  const auto dv = static_cast<std::size_t>(task.plan.dv);
  const auto width = static_cast<std::size_t>(task.x1 - task.x0);
  const DF d;

  // Weights are relative to the unrounded m: where nothing new is larger, F is exactly 1 and C
  // collects no rounding errors.
  const double decayed = task.log_f(t) + task.m, i = task.i(t);
  const double m = i > decayed ? i : decayed;
  task.m = static_cast<float>(m);
  const auto f_weight = static_cast<float>(std::exp(decayed - m));
  const auto i_weight = static_cast<float>(std::exp(i - m));

  const float *q = task.q(t), *k = task.k(t), *v = task.v(t) + task.x0;
  const VF forget = hn::Set(d, f_weight), input = hn::Set(d, i_weight);
  VF l = hn::Zero(d);
  for (std::size_t a = 0; a < dqk; a += lanes()) {
    const std::size_t count = dqk - a;
    const VF n =
        hn::MulAdd(input, load_up_to(k + a, count), hn::Mul(forget, load_up_to(task.n + a, count)));
    store_up_to(n, task.n + a, count);
    l = hn::MulAdd(n, load_up_to(q + a, count), l);
  }

  float* h = task.h(t) + task.x0;
  std::size_t a = 0;
  for (; a + kRows <= dqk; a += kRows) {
    VF ks[kRows], qs[kRows];
    for (std::size_t r = 0; r < kRows; ++r) {
      ks[r] = hn::Set(d, i_weight * k[a + r]);
      qs[r] = hn::Set(d, q[a + r]);
    }
    step_rows<kRows>(task.c + a * dv + task.x0, dv, forget, ks, qs, v, h, a == 0, width);
  }
  for (; a < dqk; ++a) {
    const VF ks = hn::Set(d, i_weight * k[a]), qs = hn::Set(d, q[a]);
    step_rows<1>(task.c + a * dv + task.x0, dv, forget, &ks, &qs, v, h, a == 0, width);
  }
  const double reciprocal = task.reciprocal(task.scale * sum_of_lanes(l), std::exp(-m));
  const VF out = hn::Set(d, static_cast<float>(task.scale * reciprocal));
  for (std::size_t x = 0; x < width; x += lanes())
    store_up_to(hn::Mul(out, load_up_to(h + x, width - x)), h + x, width - x);
}

/// to = factor * from, and sum += the same.
HWY_INLINE void scale_row(const float* from, float factor, float* to, std::size_t count,
                          float* sum) {
  const VF by = hn::Set(DF(), factor);
  for (std::size_t i = 0; i < count; i += lanes()) {
    const VF value = hn::Mul(by, load_up_to(from + i, count - i));
    store_up_to(value, to + i, count - i);
    if (sum != nullptr)
      store_up_to(hn::Add(value, load_up_to(sum + i, count - i)), sum + i, count - i);
  }
}

/// Row t of the scores times its decays, zero after the diagonal; returns the sum. Exponents are
/// differences of sums over the chunk, so both sides come as an upper and a lower float.
HWY_INLINE float weigh_scores(float* scores, const float* beta_hi, const float* beta_lo, double mu,
                              std::size_t t, std::size_t length) {
  const DF d;
  const auto upper = static_cast<float>(mu);
  const VF mu_hi = hn::Set(d, upper), mu_lo = hn::Set(d, static_cast<float>(mu - upper));
  VF sum = hn::Zero(d);
  std::size_t j = 0;
  for (; j <= t; j += lanes()) {
    const VF exponent =
        hn::Add(hn::Sub(load(beta_hi + j), mu_hi), hn::Sub(load(beta_lo + j), mu_lo));
    const VF weight = hn::Mul(load(scores + j), exp(exponent));
    const VF kept = hn::IfThenElseZero(hn::FirstN(d, std::min(lanes(), t + 1 - j)), weight);
    store(kept, scores + j);
    sum = hn::Add(sum, kept);
  }
  for (; j < length; j += lanes()) store(hn::Zero(d), scores + j);
  return sum_of_lanes(sum);
}

/// Specification A.4 (3) for tokens [t0, t0 + length). With b the sums of log f, beta_j = i_j - b_j
/// and mu_t = max(m_prev, max_{j<=t} beta_j), the stabiliser is m_t = b_t + mu_t: a scan of the
/// gates. No exponent below is positive (but by rounding), so nothing overflows in any regime.
void chunk(MlstmTask& task, std::int64_t t0, std::int64_t length) {
  const MlstmPlan& plan = task.plan;
  const std::int64_t stride = plan.chunk_stride;
  const auto count = static_cast<std::size_t>(length);
  const auto dqk = static_cast<std::size_t>(plan.dqk);
  float *beta_hi = task.rows, *beta_lo = beta_hi + stride, *q_weight = beta_lo + stride;
  float *k_weight = q_weight + stride, *floor = k_weight + stride;
  auto* mu = reinterpret_cast<double*>(floor + stride);  // two rows of floats

  double b = 0, high = task.m;
  for (std::size_t j = 0; j < count; ++j) {
    const std::int64_t t = t0 + static_cast<std::int64_t>(j);
    b += task.log_f(t);
    const double beta = task.i(t) - b;
    high = std::max(high, beta);
    mu[j] = high;
    beta_hi[j] = static_cast<float>(beta);
    beta_lo[j] = static_cast<float>(beta - beta_hi[j]);
    q_weight[j] = static_cast<float>(task.m - high);
    floor[j] = static_cast<float>(-(b + high));
  }
  for (std::size_t j = 0; j < count; ++j)  // k_j enters the state with e^(beta_j - mu_L)
    k_weight[j] = static_cast<float>(static_cast<double>(beta_hi[j]) + beta_lo[j] - high);
  const auto decay = static_cast<float>(std::exp(task.m - high));
  task.m = static_cast<float>(b + high);
  for (std::size_t j = 0; j < count; j += lanes()) {
    store(exp(load(q_weight + j)), q_weight + j);
    store(exp(load(k_weight + j)), k_weight + j);
    store(exp(load(floor + j)), floor + j);
  }

  sgemm(false, true, length, length, plan.dqk, task.scale, task.q(t0), task.args.q.row_stride(),
        task.k(t0), task.args.k.row_stride(), 0.0F, task.scores, stride);
  const auto padded_dqk = static_cast<std::size_t>(MlstmPlan::padded(plan.dqk));
  for (std::size_t j = 0; j < count; ++j) {
    float* q = task.q_scaled + j * padded_dqk;
    scale_row(task.q(t0 + static_cast<std::int64_t>(j)), task.scale * q_weight[j], q, dqk, nullptr);
    const float inside = weigh_scores(task.scores + j * static_cast<std::size_t>(stride), beta_hi,
                                      beta_lo, mu[j], j, count);
    const double l = static_cast<double>(dot(q, task.n, dqk)) + inside;
    q_weight[j] = static_cast<float>(task.reciprocal(l, floor[j]));  // q is scaled: reuse its row
  }
  scale_row(task.n, decay, task.n, dqk, nullptr);
  for (std::size_t j = 0; j < count; ++j)
    scale_row(task.k(t0 + static_cast<std::int64_t>(j)), k_weight[j],
              task.k_scaled + j * padded_dqk, dqk, task.n);

  const std::int64_t h_stride = task.args.h.row_stride(), v_stride = task.args.v.row_stride();
  const auto q_stride = static_cast<std::int64_t>(padded_dqk);
  for (std::int64_t x = task.x0; x < task.x1; x += MlstmPlan::kUnit) {
    const std::int64_t width = std::min(MlstmPlan::kUnit, task.x1 - x);
    float *c = task.c + x, *h = task.h(t0) + x;
    const float* v = task.v(t0) + x;
    sgemm(false, false, length, width, plan.dqk, 1.0F, task.q_scaled, q_stride, c, plan.dv, 0.0F, h,
          h_stride);
    sgemm(false, false, length, width, length, 1.0F, task.scores, stride, v, v_stride, 1.0F, h,
          h_stride);
    sgemm(true, false, plan.dqk, width, length, 1.0F, task.k_scaled, q_stride, v, v_stride, decay,
          c, plan.dv);
  }
  for (std::size_t j = 0; j < count; ++j) {
    float* h = task.h(t0 + static_cast<std::int64_t>(j)) + task.x0;
    scale_row(h, q_weight[j], h, static_cast<std::size_t>(task.x1 - task.x0), nullptr);
  }
}

HWY_INLINE bool all_finite(const float* x, std::size_t count) {
  VF sum = hn::Zero(DF());
  for (std::size_t i = 0; i < count; i += lanes())
    sum = hn::MulAdd(load_up_to(x + i, count - i), hn::Zero(DF()), sum);  // 0 x NaN, 0 x Inf = NaN
  return sum_of_lanes(sum) == 0.0F;
}

/// True if no NaN or infinity enters in tokens [t0, t0 + length).
bool finite_inputs(const MlstmTask& task, std::int64_t t0, std::int64_t length) {
  for (std::int64_t t = t0; t < t0 + length; ++t) {
    if (!std::isfinite(task.i(t)) || !std::isfinite(task.log_f(t)) ||
        !all_finite(task.q(t), static_cast<std::size_t>(task.plan.dqk)) ||
        !all_finite(task.k(t), static_cast<std::size_t>(task.plan.dqk)) ||
        !all_finite(task.v(t), static_cast<std::size_t>(task.plan.dv)))
      return false;
  }
  return true;
}

void run_mlstm_task(MlstmTask& task, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; t += task.plan.chunk) {
    const std::int64_t length = std::min(task.plan.chunk, end - t);
    if (length > 1 && finite_inputs(task, t, length)) {
      chunk(task, t, length);
    } else {  // products over masked scores would carry a NaN backwards in time: 0 x NaN
      for (std::int64_t s = t; s < t + length; ++s) step(task, s);
    }
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
              float* results) {
  const std::int64_t pair = index / plan.groups, group = index % plan.groups;
  const std::int64_t head = pair % plan.heads;
  const auto sequence = static_cast<std::size_t>(pair / plan.heads);
  std::byte* slot = a.batch.slots[sequence];
  float* n = at<float>(slot, a.state.n) + head * plan.dqk;
  float* m = at<float>(slot, a.state.m) + head;

  float* local_n = scratch;
  float* q_scaled = local_n + MlstmPlan::padded(plan.dqk);
  float* k_scaled = q_scaled + plan.chunk * MlstmPlan::padded(plan.dqk);
  float* scores = k_scaled + plan.chunk * MlstmPlan::padded(plan.dqk);
  std::copy_n(n, plan.dqk, local_n);
  MlstmTask task{.args = a,
                 .plan = plan,
                 .head = head,
                 .x0 = plan.column(group),
                 .x1 = plan.column(group + 1),
                 .c = at<float>(slot, a.state.c) + head * plan.dqk * plan.dv,
                 .n = local_n,
                 .m = *m,
                 .scale = 1.0F / std::sqrt(static_cast<float>(plan.dqk)),
                 .q_scaled = q_scaled,
                 .k_scaled = k_scaled,
                 .scores = scores,
                 .rows = scores + plan.chunk * plan.chunk_stride};
  HWY_DYNAMIC_DISPATCH(run_mlstm_task)
  (task, a.batch.offsets[sequence], a.batch.offsets[sequence + 1]);
  if (group != 0) return;
  if (plan.groups > 1) {
    n = results + pair * (plan.dqk + 1);
    m = n + plan.dqk;
  }
  std::copy_n(local_n, plan.dqk, n);
  *m = static_cast<float>(task.m);
}

}  // namespace

void mlstm(Context& context, const MlstmArgs& a) {
  const MlstmPlan plan(a, context.threads());
  ArenaScope scope(context.arena());
  auto* scratch = reinterpret_cast<float*>(context.arena().take(plan.bytes()));
  float* results = scratch + plan.workers * plan.worker_floats();
  std::atomic<std::int64_t> next{0};
  // A call that touches little state runs faster on one thread than a second one wakes up.
  constexpr std::int64_t kWorthThreads = 1 << 15;
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
    const std::int64_t head = pair % plan.heads;
    const float* result = results + pair * (plan.dqk + 1);
    std::copy_n(result, plan.dqk, at<float>(slot, a.state.n) + head * plan.dqk);
    at<float>(slot, a.state.m)[head] = result[plan.dqk];
  }
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
