#pragma once
// The mLSTM cell and its gradients token by token, straight from the recurrent form: every stored
// quantity, m too, is a variable of its own.

#include <vector>

#include "ops/mlstm.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {

struct CellKind {
  MlstmGate gate = MlstmGate::exponential;
  bool normalise = true;
  bool exact = true;  ///< false: N and m are constants
};

template <class Real>
struct MlstmGradients {
  std::vector<Real> q, k, v, i, log_f;
  oracle::MlstmStateOf<Real> state;  ///< of the initial state
};

/// h, and `state` moved on.
template <class Real>
std::vector<Real> mlstm_cell(const oracle::MlstmInputsOf<Real>& in,
                             oracle::MlstmStateOf<Real>& state, const CellKind& kind);

/// Gradients of sum(d_h h) + <d_last, last state>.
template <class Real>
MlstmGradients<Real> mlstm_gradients(const oracle::MlstmInputsOf<Real>& in,
                                     const oracle::MlstmStateOf<Real>& initial,
                                     const std::vector<Real>& d_h,
                                     const oracle::MlstmStateOf<Real>& d_last,
                                     const CellKind& kind);

}  // namespace xlstm::ops::test
