#pragma once
// What the phases of mlstm_backward hand to each other, and the scratch of one of them.

#include <algorithm>
#include <cstdint>

#include "ops/cpu/mlstm_backward_plan.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::ops::cpu {

/// One head of one sequence. Chunk c of `chunks` holds tokens [first(c), first(c) + length(c)); its
/// numbers per token start at c * chunk_stride of every row below. State c is the one before chunk
/// c, state `chunks` the last.
struct MlstmBackwardPair {
  const MlstmBackwardArgs& args;
  const MlstmBackwardPlan& plan;
  std::int64_t head, begin, end, chunks;
  float scale;
  const float* c_initial = nullptr;  ///< null: the zero state
  const double* n_initial = nullptr;
  double m_initial = 0;
  float* d_c_slot = nullptr;  ///< null: no gradients
  double *d_n_slot = nullptr, *d_m_slot = nullptr;

  float *beta_hi = nullptr, *beta_lo = nullptr;  ///< beta_j = i_j - b_j, an upper and a lower float
  float *mu_hi = nullptr, *mu_lo = nullptr;      ///< mu_t = m_t - b_t
  float* q_weight = nullptr;           ///< s e^(m_before - mu_t), with which q_t reads the state
  float* k_weight = nullptr;           ///< e^(beta_j - mu_L), with which k_j enters it
  float* floor = nullptr;              ///< e^-m_t
  float* opened = nullptr;             ///< 1 where m_t comes from i_t, else 0
  float* r = nullptr;                  ///< 1 / N_t
  float* d_l = nullptr;                ///< the gradient of l_t
  float* d_m = nullptr;                ///< the gradient that m_t gets from N_t
  float* decay = nullptr;              ///< [chunks] of the state over a chunk
  float *n = nullptr, *d_n = nullptr;  ///< [chunks + 1, padded dqk]
  float* c = nullptr;                  ///< [chunks + 1, dqk, v_stride]
  float* d_c = nullptr;                ///< those of them that are kept
  float* weights = nullptr;            ///< W [chunks kept, chunk, chunk_stride]

  std::int64_t first(std::int64_t chunk) const { return begin + chunk * plan.chunk; }
  std::int64_t length(std::int64_t chunk) const { return std::min(plan.chunk, end - first(chunk)); }
  std::int64_t n_stride() const { return MlstmBackwardPlan::padded(plan.dqk); }
  std::int64_t c_size() const { return plan.dqk * plan.v_stride(); }
  std::int64_t kept(std::int64_t index) const { return plan.whole_pairs ? index % 2 : index; }
  float* d_c_at(std::int64_t state) const { return d_c + kept(state) * c_size(); }
  float* weights_at(std::int64_t chunk) const {
    return weights + kept(chunk) * plan.chunk * plan.chunk_stride;
  }

  const float* q(std::int64_t t) const { return args.q.row<float>(t) + head * plan.dqk; }
  const float* k(std::int64_t t) const { return args.k.row<float>(t) + head * plan.dqk; }
  const float* v(std::int64_t t) const { return args.v.row<float>(t) + head * plan.dv; }
  const float* h(std::int64_t t) const { return args.h.row<float>(t) + head * plan.dv; }
  const float* d_h(std::int64_t t) const { return args.d_h.row<float>(t) + head * plan.dv; }
  /// i and log f, but not below where their exponentials are 0 in any format: sums of them stay
  /// exact and finite. The comparisons keep a NaN.
  double i(std::int64_t t) const { return at_least(args.i.row<float>(t)[head]); }
  double log_f(std::int64_t t) const { return at_least(args.log_f.row<float>(t)[head]); }
  static double at_least(double value) { return value < -1e4 ? -1e4 : value; }
  bool has_stabiliser() const { return args.gate == MlstmGate::exponential; }
};

/// Scratch of one worker.
struct MlstmBackwardRows {
  float *q, *k, *d_qk;         ///< [chunk, qk_stride]
  float *v, *d_num, *d_v;      ///< [chunk, v_stride]
  float* p;                    ///< [chunk, chunk_stride]
  float *sums, *read, *write;  ///< [chunk_stride]

  MlstmBackwardRows(const MlstmBackwardPlan& plan, float* memory) {
    const auto take = [&memory](std::int64_t floats) {
      float* begin = memory;
      memory += floats;
      return begin;
    };
    for (float** rows : {&q, &k, &d_qk}) *rows = take(plan.chunk * plan.qk_stride());
    for (float** rows : {&v, &d_num, &d_v}) *rows = take(plan.chunk * plan.v_stride());
    p = take(plan.chunk * plan.chunk_stride);
    for (float** rows : {&sums, &read, &write}) *rows = take(plan.chunk_stride);
  }
};

}  // namespace xlstm::ops::cpu
