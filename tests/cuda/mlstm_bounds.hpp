#pragma once
// How far the chunkwise mLSTM kernels of bf16 numbers may be from the oracle in double, by norms.

#include <gtest/gtest.h>

#include <vector>

#include "cuda/mlstm_call.hpp"
#include "cuda/norm_error.hpp"

namespace xlstm::ops::test {

/// Of h, of its worst row, and of C, n and m of the states, in every regime of the gates.
struct MlstmBounds {
  double h = 4e-3, row = 2e-2, c = 1e-3, n = 1e-5, m = 1e-6;
};

/// States after a run beside those of the oracle.
inline void expect_state_near(const MlstmCall& call, std::size_t s, const oracle::MlstmState& want,
                              const MlstmBounds& bounds = {}) {
  if (!call.has_record[s]) {
    EXPECT_EQ(call.records[s], call.initial[s]);
    return;
  }
  const auto got = call.records[s].state<double>();
  EXPECT_LE(distance(got.c, want.c), bounds.c) << s;
  EXPECT_LE(distance(got.n, want.n), bounds.n) << s;
  EXPECT_LE(distance(got.m, want.m), bounds.m) << s;
}

/// h and the states of all sequences after a run.
inline void expect_results_near(const MlstmCall& call, const MlstmBounds& bounds = {}) {
  for (std::size_t s = 0; s < call.initial.size(); ++s) {
    auto state = call.state<double>(s);
    const auto want = oracle::mlstm_recurrent(call.inputs<double>(s), state);
    const NormError h(call.h(s), want, static_cast<std::size_t>(call.shape.dv));
    EXPECT_LE(h.all, bounds.h) << s;
    EXPECT_LE(h.worst_row, bounds.row) << s;
    expect_state_near(call, s, state, bounds);
  }
}

}  // namespace xlstm::ops::test
