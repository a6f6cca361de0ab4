#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/threads.hpp"
#include "ops/cpu/matmul.hpp"
#include "ops/cpu/mlstm_backward_pair.hpp"
#include "ops/cpu/mlstm_backward_plan.hpp"
#include "ops/mlstm.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/mlstm_backward.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/reduce-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr std::int64_t kRowBlock = 32;  // of products with lower triangles

HWY_INLINE float dot_of(const float* a, const float* b, std::size_t count) {
  return sum_over(count, [a, b](std::size_t d, std::size_t n) HWY_ATTR {
    return hn::Mul(load_up_to(a + d, n), load_up_to(b + d, n));
  });
}

/// to = factor * from
HWY_INLINE void scaled_copy(const float* from, float factor, float* to, std::size_t count) {
  const VF by = hn::Set(DF(), factor);
  for (std::size_t i = 0; i < count; i += lanes())
    store_up_to(hn::Mul(by, load_up_to(from + i, count - i)), to + i, count - i);
}

/// to += factor * from
HWY_INLINE void add_scaled(const float* from, float factor, float* to, std::size_t count) {
  const VF by = hn::Set(DF(), factor);
  for (std::size_t i = 0; i < count; i += lanes()) {
    const std::size_t some = count - i;
    store_up_to(hn::MulAdd(by, load_up_to(from + i, some), load_up_to(to + i, some)), to + i, some);
  }
}

/// row = factor (row + other_factor other)
HWY_INLINE void add_and_scale(float* row, const float* other, float other_factor, float factor,
                              std::size_t count) {
  const VF by = hn::Set(DF(), factor), other_by = hn::Set(DF(), other_factor);
  for (std::size_t i = 0; i < count; i += lanes()) {
    const std::size_t some = count - i;
    const VF sum = hn::MulAdd(other_by, load_up_to(other + i, some), load_up_to(row + i, some));
    store_up_to(hn::Mul(by, sum), row + i, some);
  }
}

/// <A, B> of a state [dqk, v_stride] and another, rows in float and their sum in double.
double frobenius(const MlstmBackwardPair& pair, const float* a, const float* b,
                 std::int64_t b_stride) {
  double sum = 0;
  for (std::int64_t row = 0; row < pair.plan.dqk; ++row)
    sum += dot_of(a + row * pair.plan.v_stride(), b + row * b_stride,
                  static_cast<std::size_t>(pair.plan.dv));
  return sum;
}

void copy_state_columns(const MlstmBackwardPair& pair, const float* from, std::int64_t from_stride,
                        float* to, std::int64_t to_stride, std::int64_t x0, std::int64_t x1) {
  for (std::int64_t row = 0; row < pair.plan.dqk; ++row) {
    float* at = to + row * to_stride;
    if (from == nullptr)
      std::fill(at + x0, at + x1, 0.0F);
    else
      std::copy(from + row * from_stride + x0, from + row * from_stride + x1, at + x0);
  }
}

}  // namespace

/// Phase 0: a scan of the gates, as the forward pass makes it.
void mlstm_backward_gates(MlstmBackwardPair& pair) {
  double m = pair.has_stabiliser() ? pair.m_initial : 0.0;
  for (std::int64_t c = 0; c < pair.chunks; ++c) {
    const std::int64_t at = c * pair.plan.chunk_stride, length = pair.length(c);
    double b = 0, high = m;
    for (std::int64_t j = 0; j < length; ++j) {
      const std::int64_t t = pair.first(c) + j;
      b += pair.log_f(t);
      const double beta = pair.i(t) - b;
      pair.opened[at + j] = beta > high ? 1.0F : 0.0F;
      if (!pair.has_stabiliser())
        high = -b;
      else if (!(beta <= high))  // a NaN too
        high = beta;
      pair.beta_hi[at + j] = static_cast<float>(beta);
      pair.beta_lo[at + j] = static_cast<float>(beta - pair.beta_hi[at + j]);
      pair.mu_hi[at + j] = static_cast<float>(high);
      pair.mu_lo[at + j] = static_cast<float>(high - pair.mu_hi[at + j]);
      pair.q_weight[at + j] = pair.scale * static_cast<float>(std::exp(m - high));
      pair.floor[at + j] = static_cast<float>(std::exp(-(b + high)));
    }
    for (std::int64_t j = 0; j < length; ++j) {
      const double beta = static_cast<double>(pair.beta_hi[at + j]) + pair.beta_lo[at + j];
      pair.k_weight[at + j] = static_cast<float>(std::exp(beta - high));
    }
    pair.decay[c] = static_cast<float>(std::exp(m - high));
    m = b + high;
  }
}

/// Phase 1: value columns of unit `unit` of all states; the first one also makes n.
void mlstm_backward_states(const MlstmBackwardPair& pair, std::int64_t unit, float* memory) {
  const MlstmBackwardPlan& plan = pair.plan;
  const MlstmBackwardRows rows(plan, memory);
  const std::int64_t x0 = unit * plan.unit, x1 = std::min(plan.dv, x0 + plan.unit);
  const auto dqk = static_cast<std::size_t>(plan.dqk);
  copy_state_columns(pair, pair.c_initial, plan.dv, pair.c, plan.v_stride(), x0, x1);
  if (unit == 0) {
    if (pair.n_initial == nullptr)
      std::fill_n(pair.n, dqk, 0.0F);
    else
      std::copy_n(pair.n_initial, dqk, pair.n);
  }
  for (std::int64_t c = 0; c < pair.chunks; ++c) {
    const std::int64_t at = c * plan.chunk_stride, length = pair.length(c);
    float *n = pair.n + c * pair.n_stride(), *n_next = n + pair.n_stride();
    if (unit == 0) scaled_copy(n, pair.decay[c], n_next, dqk);
    for (std::int64_t j = 0; j < length; ++j) {
      const std::int64_t t = pair.first(c) + j;
      std::copy_n(pair.k(t), dqk, rows.k + j * plan.qk_stride());
      scaled_copy(pair.v(t) + x0, pair.k_weight[at + j], rows.v + j * plan.v_stride(),
                  static_cast<std::size_t>(x1 - x0));
      if (unit == 0) add_scaled(pair.k(t), pair.k_weight[at + j], n_next, dqk);
    }
    float *state = pair.c + c * pair.c_size(), *next = state + pair.c_size();
    sgemm_from(true, false, plan.dqk, x1 - x0, length, 1.0F, rows.k, plan.qk_stride(), rows.v,
               plan.v_stride(), pair.decay[c], state + x0, next + x0, plan.v_stride());
  }
}

/// Phase 2: W of one chunk, its denominators and what the gradients of h mean for them (C.1).
void mlstm_backward_denominators(const MlstmBackwardPair& pair, std::int64_t c, float* memory) {
  const MlstmBackwardPlan& plan = pair.plan;
  const MlstmBackwardRows rows(plan, memory);
  const std::int64_t at = c * plan.chunk_stride, length = pair.length(c);
  const std::int64_t stride = plan.chunk_stride, qk_stride = plan.qk_stride();
  const auto dqk = static_cast<std::size_t>(plan.dqk);
  const auto count = static_cast<std::size_t>(length);
  for (std::int64_t j = 0; j < length; ++j) {
    std::copy_n(pair.q(pair.first(c) + j), dqk, rows.q + j * qk_stride);
    std::copy_n(pair.k(pair.first(c) + j), dqk, rows.k + j * qk_stride);
  }
  float* weights = pair.weights_at(c);
  for (std::int64_t row = 0; row < length; row += kRowBlock) {
    const std::int64_t some = std::min(kRowBlock, length - row);
    sgemm(false, true, some, row + some, plan.dqk, pair.scale, rows.q + row * qk_stride, qk_stride,
          rows.k, qk_stride, 0.0F, weights + row * stride, stride);
  }
  const float *beta_hi = pair.beta_hi + at, *beta_lo = pair.beta_lo + at;
  for (std::size_t t = 0; t < count; ++t) {
    float* row = weights + static_cast<std::int64_t>(t) * stride;
    const VF mu_hi = hn::Set(DF(), pair.mu_hi[at + static_cast<std::int64_t>(t)]);
    const VF mu_lo = hn::Set(DF(), pair.mu_lo[at + static_cast<std::int64_t>(t)]);
    VF sum = hn::Zero(DF());
    std::size_t j = 0;
    for (; j <= t; j += lanes()) {
      const VF exponent =
          hn::Add(hn::Sub(load(beta_hi + j), mu_hi), hn::Sub(load(beta_lo + j), mu_lo));
      const VF weight = hn::Mul(load(row + j), exp(exponent));
      const VF kept = hn::IfThenElseZero(hn::FirstN(DF(), std::min(lanes(), t + 1 - j)), weight);
      store(kept, row + j);
      sum = hn::Add(sum, kept);
    }
    for (; j < static_cast<std::size_t>(stride); j += lanes()) store(hn::Zero(DF()), row + j);

    const std::int64_t own = at + static_cast<std::int64_t>(t);
    const std::int64_t token = pair.first(c) + static_cast<std::int64_t>(t);
    pair.r[own] = 1.0F;
    pair.d_l[own] = pair.d_m[own] = 0.0F;
    if (!pair.args.normalise) continue;
    const double before = dot_of(rows.q + static_cast<std::int64_t>(t) * qk_stride,
                                 pair.n + c * pair.n_stride(), dqk);
    const double l = pair.q_weight[own] * before + sum_of_lanes(sum);
    const double magnitude = std::abs(l), floor = pair.floor[own], eps = pair.args.eps;
    const double reciprocal = 1.0 / ((magnitude <= floor ? floor : magnitude) + eps);
    pair.r[own] = static_cast<float>(reciprocal);
    if (!pair.args.exact) continue;
    const double d_n =
        -reciprocal * dot_of(pair.d_h(token), pair.h(token), static_cast<std::size_t>(plan.dv));
    if (magnitude > floor) pair.d_l[own] = static_cast<float>(l < 0 ? -d_n : d_n);
    if (pair.has_stabiliser()) pair.d_m[own] = static_cast<float>(eps * d_n);
  }
}

/// Phase 3, before its first chunk: value columns of unit `unit` of the gradient of the last state.
void mlstm_backward_last_state(const MlstmBackwardPair& pair, std::int64_t unit) {
  const MlstmBackwardPlan& plan = pair.plan;
  const std::int64_t x0 = unit * plan.unit, x1 = std::min(plan.dv, x0 + plan.unit);
  copy_state_columns(pair, pair.d_c_slot, plan.dv, pair.d_c_at(pair.chunks), plan.v_stride(), x0,
                     x1);
  if (unit != 0) return;
  float* last = pair.d_n + pair.chunks * pair.n_stride();
  if (pair.d_n_slot == nullptr || !pair.args.exact)
    std::fill_n(last, plan.dqk, 0.0F);
  else
    std::copy_n(pair.d_n_slot, plan.dqk, last);
}

/// Phase 3, value columns of unit `unit` of the gradient of the state before chunk c; the first
/// unit also makes that of n. `loaded`: rows.q and rows.d_num hold the chunk.
void mlstm_backward_state(const MlstmBackwardPair& pair, std::int64_t unit, std::int64_t c,
                          const MlstmBackwardRows& rows, bool loaded) {
  const MlstmBackwardPlan& plan = pair.plan;
  const std::int64_t x0 = unit * plan.unit, x1 = std::min(plan.dv, x0 + plan.unit);
  const std::int64_t at = c * plan.chunk_stride, length = pair.length(c);
  const auto dqk = static_cast<std::size_t>(plan.dqk);
  if (c == 0 && pair.d_c_slot == nullptr) return;  // nobody wants it
  float *d_n = pair.d_n + c * pair.n_stride(), *d_n_next = d_n + pair.n_stride();
  if (unit == 0) scaled_copy(d_n_next, pair.decay[c], d_n, dqk);
  for (std::int64_t j = 0; j < length; ++j) {
    const std::int64_t t = pair.first(c) + j;
    const float* q = loaded ? rows.q + j * plan.qk_stride() : pair.q(t);
    float* weighted = rows.d_qk + j * plan.qk_stride();
    scaled_copy(q, pair.q_weight[at + j], weighted, dqk);
    if (!loaded)
      scaled_copy(pair.d_h(t) + x0, pair.r[at + j], rows.d_num + j * plan.v_stride() + x0,
                  static_cast<std::size_t>(x1 - x0));
    if (unit == 0) add_scaled(weighted, pair.d_l[at + j], d_n, dqk);
  }
  sgemm_from(true, false, plan.dqk, x1 - x0, length, 1.0F, rows.d_qk, plan.qk_stride(),
             rows.d_num + x0, plan.v_stride(), pair.decay[c], pair.d_c_at(c + 1) + x0,
             pair.d_c_at(c) + x0, plan.v_stride());
}

void mlstm_backward_state_gradients(const MlstmBackwardPair& pair, std::int64_t unit,
                                    float* memory) {
  const MlstmBackwardRows rows(pair.plan, memory);
  mlstm_backward_last_state(pair, unit);
  for (std::int64_t c = pair.chunks - 1; c >= 0; --c)
    mlstm_backward_state(pair, unit, c, rows, false);
}

namespace {

/// From the last token of a chunk to the first: row t of P = dW D, where `p` holds dW without d_l;
/// of Z = dW W, which is the gradient of log weights; and from the sums of Z the gates' gradients
/// inside the chunk: i_j gets the sum over t >= j, log f_r that over t >= r and j < r.
void gate_gradients_inside(const MlstmBackwardPair& pair, std::int64_t c,
                           const MlstmBackwardRows& rows, const float* weights, float* d_i,
                           float* d_f) {
  const std::int64_t at = c * pair.plan.chunk_stride, stride = pair.plan.chunk_stride;
  const float *beta_hi = pair.beta_hi + at, *beta_lo = pair.beta_lo + at;
  std::fill_n(rows.sums, stride, 0.0F);
  for (std::int64_t t = pair.length(c) - 1; t >= 0; --t) {
    float* p = rows.p + t * stride;
    const VF mu_hi = hn::Set(DF(), pair.mu_hi[at + t]), mu_lo = hn::Set(DF(), pair.mu_lo[at + t]);
    const VF d_l = hn::Set(DF(), pair.d_l[at + t]);
    const auto end = static_cast<std::size_t>(t) + 1;
    VF before = hn::Zero(DF());  // the sum over j < t
    std::size_t j = 0;
    for (; j < end; j += lanes()) {
      const auto inside = hn::FirstN(DF(), std::min(lanes(), end - j));
      const VF d_w = hn::IfThenElseZero(inside, hn::Add(load(p + j), d_l));
      const VF exponent =
          hn::Add(hn::Sub(load(beta_hi + j), mu_hi), hn::Sub(load(beta_lo + j), mu_lo));
      store(hn::IfThenElseZero(inside, hn::Mul(d_w, exp(exponent))), p + j);
      const VF sum = hn::MulAdd(d_w, load(weights + t * stride + j), load(rows.sums + j));
      store(sum, rows.sums + j);
      const auto earlier = hn::FirstN(DF(), std::min(lanes(), end - 1 - j));
      before = hn::Add(before, hn::IfThenElseZero(earlier, sum));
    }
    for (; j < static_cast<std::size_t>(stride); j += lanes()) store(hn::Zero(DF()), p + j);
    d_i[t] = rows.sums[t];
    d_f[t] = sum_of_lanes(before);
  }
}

}  // namespace

/// Phase 4: the gradients of q, k, v and the gates of one chunk (C.1, C.2), but for what goes
/// through m. `loaded`: rows.q and rows.k hold the chunk.
void mlstm_backward_chunk(const MlstmBackwardPair& pair, std::int64_t c, float* memory,
                          bool loaded) {
  const MlstmBackwardPlan& plan = pair.plan;
  const MlstmBackwardArgs& args = pair.args;
  const MlstmBackwardRows rows(plan, memory);
  const std::int64_t at = c * plan.chunk_stride, length = pair.length(c), t0 = pair.first(c);
  const std::int64_t stride = plan.chunk_stride, qk = plan.qk_stride(), vs = plan.v_stride();
  const auto dqk = static_cast<std::size_t>(plan.dqk);
  const auto dv = static_cast<std::size_t>(plan.dv);
  const float* weights = pair.weights_at(c);
  const float *c_before = pair.c + c * pair.c_size(), *n_before = pair.n + c * pair.n_stride();
  const float* d_c = pair.d_c_at(c + 1);
  const float* d_n = pair.d_n + (c + 1) * pair.n_stride();
  for (std::int64_t j = 0; j < length; ++j) {
    if (!loaded) {
      std::copy_n(pair.q(t0 + j), dqk, rows.q + j * qk);
      std::copy_n(pair.k(t0 + j), dqk, rows.k + j * qk);
    }
    std::copy_n(pair.v(t0 + j), dv, rows.v + j * vs);
    scaled_copy(pair.d_h(t0 + j), pair.r[at + j], rows.d_num + j * vs, dv);
  }
  for (std::int64_t row = 0; row < length; row += kRowBlock) {
    const std::int64_t some = std::min(kRowBlock, length - row);
    sgemm(false, true, some, row + some, plan.dv, 1.0F, rows.d_num + row * vs, vs, rows.v, vs, 0.0F,
          rows.p + row * stride, stride);
  }
  // rows.read and rows.write first hold the gates' gradients inside the chunk.
  gate_gradients_inside(pair, c, rows, weights, rows.read, rows.write);
  for (std::int64_t j = 0; j < length; ++j) {
    args.d_i.row<float>(t0 + j)[pair.head] = rows.read[j];
    args.d_log_f.row<float>(t0 + j)[pair.head] = rows.write[j];
  }

  // What q_t reads from the state before the chunk, then from the chunk.
  sgemm(false, true, length, plan.dqk, plan.dv, 1.0F, rows.d_num, vs, c_before, vs, 0.0F, rows.d_qk,
        qk);
  for (std::int64_t t = 0; t < length; ++t) {
    add_and_scale(rows.d_qk + t * qk, n_before, pair.d_l[at + t], pair.q_weight[at + t], dqk);
    rows.read[t] = dot_of(rows.d_qk + t * qk, rows.q + t * qk, dqk);
  }
  for (std::int64_t row = 0; row < length; row += kRowBlock) {
    const std::int64_t some = std::min(kRowBlock, length - row);
    sgemm(false, false, some, plan.dqk, row + some, pair.scale, rows.p + row * stride, stride,
          rows.k, qk, 1.0F, rows.d_qk + row * qk, qk);
  }
  for (std::int64_t t = 0; t < length; ++t)
    std::copy_n(rows.d_qk + t * qk, dqk, args.d_q.row<float>(t0 + t) + pair.head * plan.dqk);

  // What k_j and v_j write into the state after the chunk, and into the chunk.
  sgemm(false, true, length, plan.dqk, plan.dv, 1.0F, rows.v, vs, d_c, vs, 0.0F, rows.d_qk, qk);
  for (std::int64_t j = 0; j < length; ++j) {
    add_and_scale(rows.d_qk + j * qk, d_n, 1.0F, pair.k_weight[at + j], dqk);
    rows.write[j] = dot_of(rows.d_qk + j * qk, rows.k + j * qk, dqk);
  }
  sgemm(false, false, length, plan.dv, plan.dqk, 1.0F, rows.k, qk, d_c, vs, 0.0F, rows.d_v, vs);
  for (std::int64_t j = 0; j < length; ++j)
    scaled_copy(rows.d_v + j * vs, pair.k_weight[at + j], rows.d_v + j * vs, dv);
  for (std::int64_t row = 0; row < length; row += kRowBlock) {
    const std::int64_t some = std::min(kRowBlock, length - row), from = row * stride + row;
    sgemm(true, false, some, plan.dqk, length - row, pair.scale, rows.p + from, stride,
          rows.q + row * qk, qk, 1.0F, rows.d_qk + row * qk, qk);
    sgemm(true, false, some, plan.dv, length - row, 1.0F, weights + from, stride,
          rows.d_num + row * vs, vs, 1.0F, rows.d_v + row * vs, vs);
  }
  for (std::int64_t j = 0; j < length; ++j) {
    std::copy_n(rows.d_qk + j * qk, dqk, args.d_k.row<float>(t0 + j) + pair.head * plan.dqk);
    std::copy_n(rows.d_v + j * vs, dv, args.d_v.row<float>(t0 + j) + pair.head * plan.dv);
  }

  // The gates' gradients across the borders of the chunk: log f_r carries what lies before the
  // chunk to t >= r, j < r to what lies after it, and the one to the other.
  double through = frobenius(pair, c_before, d_c, vs) + dot_of(n_before, d_n, dqk);
  through *= pair.decay[c];
  for (std::int64_t j = 0; j < length; ++j) {
    args.d_i.row<float>(t0 + j)[pair.head] += rows.write[j];
    args.d_log_f.row<float>(t0 + j)[pair.head] += static_cast<float>(through);
    through += rows.write[j];
  }
  double read = 0;
  for (std::int64_t t = length - 1; t >= 0; --t) {
    read += rows.read[t];
    args.d_log_f.row<float>(t0 + t)[pair.head] += static_cast<float>(read);
  }
}

/// Phase 5: gradients through m, and those of the initial state.
void mlstm_backward_finish(const MlstmBackwardPair& pair) {
  const MlstmBackwardPlan& plan = pair.plan;
  const MlstmBackwardArgs& args = pair.args;
  const auto dqk = static_cast<std::size_t>(plan.dqk);
  const auto inner = [&](std::int64_t state, const float* d_c, std::int64_t stride) {
    return frobenius(pair, pair.c + state * pair.c_size(), d_c, stride) +
           dot_of(pair.n + state * pair.n_stride(), pair.d_n + state * pair.n_stride(), dqk);
  };
  const bool through_m = args.exact && pair.has_stabiliser();
  double d_m = 0;
  if (through_m) {
    // The last state is stored relative to e^m.
    if (pair.d_c_slot != nullptr) d_m = *pair.d_m_slot - inner(pair.chunks, pair.d_c_slot, plan.dv);
    for (std::int64_t c = pair.chunks - 1; c >= 0; --c)
      for (std::int64_t j = pair.length(c) - 1; j >= 0; --j) {
        const std::int64_t at = c * plan.chunk_stride + j, t = pair.first(c) + j;
        d_m += pair.d_m[at];
        const bool opened = pair.opened[at] != 0.0F;
        const Tensor& gate = opened ? args.d_i : args.d_log_f;
        gate.row<float>(t)[pair.head] += static_cast<float>(d_m);
        if (opened) d_m = 0;
      }
  }
  if (pair.d_c_slot == nullptr) return;
  const float* d_c = pair.d_c_at(0);
  copy_state_columns(pair, d_c, plan.v_stride(), pair.d_c_slot, plan.dv, 0, plan.dv);
  std::copy_n(pair.d_n, dqk, pair.d_n_slot);
  if (!args.exact) std::fill_n(pair.d_n_slot, dqk, 0.0);
  *pair.d_m_slot = through_m ? d_m + inner(0, d_c, plan.v_stride()) : 0.0;
}

/// All phases of one pair, on one thread: the same work in the same order per sum.
void mlstm_backward_whole(MlstmBackwardPair& pair, float* memory) {
  const MlstmBackwardRows rows(pair.plan, memory);
  mlstm_backward_gates(pair);
  mlstm_backward_states(pair, 0, memory);
  mlstm_backward_last_state(pair, 0);
  for (std::int64_t c = pair.chunks - 1; c >= 0; --c) {
    mlstm_backward_denominators(pair, c, memory);
    mlstm_backward_chunk(pair, c, memory, true);
    mlstm_backward_state(pair, 0, c, rows, true);
  }
  mlstm_backward_finish(pair);
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(mlstm_backward_gates);
HWY_EXPORT(mlstm_backward_states);
HWY_EXPORT(mlstm_backward_denominators);
HWY_EXPORT(mlstm_backward_state_gradients);
HWY_EXPORT(mlstm_backward_chunk);
HWY_EXPORT(mlstm_backward_finish);
HWY_EXPORT(mlstm_backward_whole);

namespace {

MlstmBackwardPair make_pair(const MlstmBackwardArgs& a, const MlstmBackwardPlan& plan,
                            std::int64_t index, float* memory) {
  const std::int64_t head = index % plan.heads;
  const auto s = static_cast<std::size_t>(index / plan.heads);
  const std::int64_t begin = a.batch.offsets[s], end = a.batch.offsets[s + 1];
  MlstmBackwardPair pair{.args = a,
                         .plan = plan,
                         .head = head,
                         .begin = begin,
                         .end = end,
                         .chunks = plan.chunks(end - begin),
                         .scale = 1.0F / std::sqrt(static_cast<float>(plan.dqk))};
  const auto c_of = [&](std::byte* slot) {
    return reinterpret_cast<float*>(slot + a.state.c) + head * plan.dqk * plan.dv;
  };
  const auto n_of = [&](std::byte* slot) {
    return reinterpret_cast<double*>(slot + a.state.n) + head * plan.dqk;
  };
  const auto m_of = [&](std::byte* slot) {
    return reinterpret_cast<double*>(slot + a.state.m) + head;
  };
  if (std::byte* slot = a.batch.slots[s]; slot != nullptr) {
    pair.c_initial = c_of(slot);
    pair.n_initial = n_of(slot);
    pair.m_initial = *m_of(slot);
  }
  if (std::byte* slot = a.d_slots.empty() ? nullptr : a.d_slots[s]; slot != nullptr) {
    pair.d_c_slot = c_of(slot);
    pair.d_n_slot = n_of(slot);
    pair.d_m_slot = m_of(slot);
  }
  const auto take = [&memory](std::int64_t floats) {
    float* first = memory;
    memory += floats;
    return first;
  };
  for (float** row : {&pair.beta_hi, &pair.beta_lo, &pair.mu_hi, &pair.mu_lo, &pair.q_weight,
                      &pair.k_weight, &pair.floor, &pair.opened, &pair.r, &pair.d_l, &pair.d_m})
    *row = take(plan.most_chunks * plan.chunk_stride);
  const std::int64_t states = plan.most_chunks + 1;
  pair.decay = take(MlstmBackwardPlan::padded(states));
  for (float** n : {&pair.n, &pair.d_n}) *n = take(states * pair.n_stride());
  pair.c = take(states * pair.c_size());
  pair.d_c = take(plan.kept(states) * pair.c_size());
  pair.weights = take(plan.kept(plan.most_chunks) * plan.chunk * plan.chunk_stride);
  return pair;
}

/// Calls all phases of a wave of pairs through
/// run(tasks per pair, body(pair, task, scratch)).
template <class Run>
void run_phases(const MlstmBackwardPlan& plan, Run&& run) {
  using Pair = MlstmBackwardPair;
  run(1, [](Pair& p, std::int64_t, float*) { HWY_DYNAMIC_DISPATCH(mlstm_backward_gates)(p); });
  run(plan.units, [](Pair& p, std::int64_t unit, float* scratch) {
    HWY_DYNAMIC_DISPATCH(mlstm_backward_states)(p, unit, scratch);
  });
  run(plan.most_chunks, [](Pair& p, std::int64_t c, float* scratch) {
    if (c < p.chunks) HWY_DYNAMIC_DISPATCH(mlstm_backward_denominators)(p, c, scratch);
  });
  run(plan.units, [](Pair& p, std::int64_t unit, float* scratch) {
    HWY_DYNAMIC_DISPATCH(mlstm_backward_state_gradients)(p, unit, scratch);
  });
  run(plan.most_chunks, [](Pair& p, std::int64_t c, float* scratch) {
    if (c < p.chunks) HWY_DYNAMIC_DISPATCH(mlstm_backward_chunk)(p, c, scratch, false);
  });
  run(1, [](Pair& p, std::int64_t, float*) { HWY_DYNAMIC_DISPATCH(mlstm_backward_finish)(p); });
}

}  // namespace

void mlstm_backward(Context& context, const MlstmBackwardArgs& a) {
  const MlstmBackwardPlan plan(a, context.threads());
  ArenaScope scope(context.arena());
  auto* memory = reinterpret_cast<float*>(context.arena().take(plan.bytes()));
  float* scratch = memory + plan.wave * plan.pair_floats();
  const std::int64_t pairs = plan.sequences * plan.heads;

  if (plan.whole_pairs) {
    std::atomic<std::int64_t> next{0};
    const int workers = static_cast<int>(plan.workers);
    parallel_ranges(workers, workers, 1, [&](Range worker) {
      float* own = scratch + worker.begin * plan.worker_floats();
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pairs;) {
        MlstmBackwardPair pair = make_pair(a, plan, i, memory + worker.begin * plan.pair_floats());
        HWY_DYNAMIC_DISPATCH(mlstm_backward_whole)(pair, own);
      }
    });
    return;
  }
  const int workers = static_cast<int>(plan.workers);
  for (std::int64_t first = 0; first < pairs; first += plan.wave) {
    const std::int64_t count = std::min(plan.wave, pairs - first);
    run_phases(plan, [&](std::int64_t tasks, auto&& body) {
      std::atomic<std::int64_t> next{0};
      parallel_ranges(workers, workers, 1, [&](Range worker) {
        float* own = scratch + worker.begin * plan.worker_floats();
        for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count * tasks;) {
          const std::int64_t in_wave = i / tasks;
          MlstmBackwardPair pair =
              make_pair(a, plan, first + in_wave, memory + in_wave * plan.pair_floats());
          body(pair, i % tasks, own);
        }
      });
    });
  }
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
