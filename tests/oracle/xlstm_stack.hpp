#pragma once
// A whole model of the first xLSTM in double, composed of the oracle's ops (specification B.2 to
// B.4), taking weights under NX-AI's names (B.7).

#include <cstdint>
#include <span>
#include <vector>

#include "oracle/stack_ops.hpp"
#include "oracle/xlstm_large.hpp"

namespace oracle {

/// What one block remembers; the parts that it does not have stay empty.
struct StackState {
  MlstmState mlstm;  ///< with keys that are not scaled
  SlstmState slstm;
  Vector window;  ///< [taps - 1, channels]
};
std::vector<StackState> make_stack_states(const xlstm::Config& config);

/// Which form of the mLSTM cell: NX-AI's model takes the quadratic one for whole sequences (from
/// the empty state; the mLSTM states do not move) and the recurrent one for steps.
enum class CellForm { parallel, recurrent };

/// Logits [T, V] of one sequence, moving `states` on. R lies as in NX-AI's vanilla backend.
Vector forward_stack(const xlstm::Config& config, const Weights& weights,
                     std::span<const std::int32_t> ids, CellForm form,
                     std::vector<StackState>& states);

}  // namespace oracle
