#pragma once
// A whole model of the first xLSTM, composed of the oracle's ops (specification B.2 to
// B.4), taking weights under NX-AI's names (B.7).

#include <cstdint>
#include <span>
#include <vector>

#include "oracle/stack_ops.hpp"
#include "oracle/xlstm_large.hpp"

namespace oracle {

/// What one block remembers; the parts that it does not have stay empty.
template <class Real>
struct StackStateOf {
  MlstmStateOf<Real> mlstm;  ///< with keys that are not scaled
  SlstmStateOf<Real> slstm;
  std::vector<Real> window;  ///< [taps - 1, channels]
};
using StackState = StackStateOf<double>;
template <class Real = double>
std::vector<StackStateOf<Real>> make_stack_states(const xlstm::Config& config);

/// Which form of the mLSTM cell: NX-AI's model takes the quadratic one for whole sequences (from
/// the empty state; the mLSTM states do not move) and the recurrent one for steps.
enum class CellForm { parallel, recurrent };

/// Logits [T, V] of one sequence, moving `states` on. R lies as in NX-AI's vanilla backend. `Real`
/// is double, or Var for gradients.
template <class Real>
std::vector<Real> forward_stack(const xlstm::Config& config, const WeightsOf<Real>& weights,
                                std::span<const std::int32_t> ids, CellForm form,
                                std::vector<StackStateOf<Real>>& states);

}  // namespace oracle
