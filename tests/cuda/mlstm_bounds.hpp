#pragma once
// How far the chunkwise mLSTM kernels of bf16 numbers may be from the oracle in double, by norms.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/mlstm_call.hpp"
#include "cuda/norm_error.hpp"
#include "ops/cuda/level.hpp"

namespace xlstm::ops::test {

/// Of h, of its worst row, and of C, n and m of the states.
struct MlstmBounds {
  double h = 4e-3, row = 2e-2, c = 2.5e-3, n = 1e-5, m = 1e-6;

  /// Of the kernels of the card's level.
  static MlstmBounds of_level() {
    MlstmBounds bounds;
    if (cuda::level(test_device()) == cuda::Level::sm90) bounds.row = 3e-2;
    return bounds;
  }
  /// In a regime of the gates. C is one token's k v where a huge gate was: where q.k nearly
  /// cancels, h is what is left of it over what is left of l, and C in bf16 does not cancel as l
  /// does. The kernels then take all of C; a row of small h is only so good.
  static MlstmBounds of(MlstmGate gate, Regime regime) {
    MlstmBounds bounds = of_level();
    if (regime == Regime::one_huge) bounds.row = gate == MlstmGate::sigmoid ? 0.3 : 0.5;
    return bounds;
  }
};

/// States after a run beside those of the oracle.
inline void expect_state_near(const MlstmCall& call, std::size_t s, const oracle::MlstmState& want,
                              const MlstmBounds& bounds) {
  if (!call.has_record[s]) {
    EXPECT_EQ(call.records[s], call.initial[s]);
    return;
  }
  const auto part = [&](std::size_t begin, std::size_t end) {
    return std::vector<double>(call.records[s].begin() + std::ptrdiff_t(begin),
                               call.records[s].begin() + std::ptrdiff_t(end));
  };
  EXPECT_LE(distance(part(0, call.n_at), want.c), bounds.c) << s;
  EXPECT_LE(distance(part(call.n_at, call.m_at), want.n), bounds.n) << s;
  EXPECT_LE(distance(part(call.m_at, call.records[s].size()), want.m), bounds.m) << s;
}

/// By how much more than q C the terms of its sum are, of each token and head of sequence s: the
/// root of the sum of their squares, beside |q C|, and 1 at least. C is one token's k v for long
/// after a huge gate, and then q C is next to nothing where q.k happens to be. No C that is rounded
/// has such a row to a part of itself; q and k in bf16 do not have it either.
inline std::vector<double> cancellation(const MlstmCall& call, std::size_t s) {
  const auto in = call.inputs<double>(s);
  auto state = call.state<double>(s);
  auto one = in;
  std::vector<double> factors;
  const int heads = in.heads, tokens = in.tokens();
  for (int t = 0; t < tokens; ++t) {
    const auto cut = [&](const oracle::Vector& from, oracle::Vector& to) {
      const auto width = std::ptrdiff_t(from.size()) / tokens;
      to.assign(from.begin() + t * width, from.begin() + (t + 1) * width);
    };
    cut(in.q, one.q);
    cut(in.k, one.k);
    cut(in.v, one.v);
    cut(in.i, one.i);
    cut(in.log_f, one.log_f);
    oracle::mlstm_recurrent(one, state);
    const double* c = state.c.data();
    for (int head = 0; head < heads; ++head) {
      std::vector<double> sums(static_cast<std::size_t>(in.dv));
      double terms = 0, result = 0;
      for (int a = 0; a < in.dqk; ++a)
        for (double& sum : sums) {
          const double term = one.q[static_cast<std::size_t>(head * in.dqk + a)] * *c++;
          sum += term;
          terms += term * term;
        }
      for (double sum : sums) result += sum * sum;
      factors.push_back(std::max(1.0, std::sqrt(terms / result)));
    }
  }
  return factors;
}

/// h and the states of all sequences after a run.
/// @param cancels  whether errors of h count beside what cancels in it
inline void expect_results_near(const MlstmCall& call, const MlstmBounds& bounds = {},
                                bool cancels = false) {
  for (std::size_t s = 0; s < call.initial.size(); ++s) {
    auto state = call.state<double>(s);
    const auto want = oracle::mlstm_recurrent(call.inputs<double>(s), state);
    const auto width = static_cast<std::size_t>(call.shape.dv);
    const NormError h(call.h(s), want, width);
    EXPECT_LE(h.all, bounds.h) << s;
    if (cancels)
      EXPECT_LE(NormError(call.h(s), want, width, cancellation(call, s)).worst_row, bounds.row)
          << s;
    else
      EXPECT_LE(h.worst_row, bounds.row) << s;
    expect_state_near(call, s, state, bounds);
  }
}

}  // namespace xlstm::ops::test
