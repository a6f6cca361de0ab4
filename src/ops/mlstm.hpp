#pragma once
// The mLSTM cell with exponential input gate (specification A.4).

#include "ops/batch.hpp"
#include "ops/op.hpp"

namespace xlstm::ops {

/// Tokens per chunk that the engine takes by itself: the fastest on the CPU (docs/performance.md).
inline constexpr std::int64_t kDefaultChunk = 32;

/// h = mLSTM(q, k, v, i, log f) for every sequence of a ragged batch, from and into its state.
/// Sequences of one token take the recurrent form, longer ones the chunkwise form; there is no rule
/// about lengths. A sequence's result depends on its own tokens and state only.
struct MlstmArgs {
  Tensor q, k;   ///< [T, H dqk] f32
  Tensor v;      ///< [T, H dv] f32
  Tensor i;      ///< [T, H] f32, input gate after its cap
  Tensor log_f;  ///< [T, H] f32, log sigmoid of the forget gate
  const Batch& batch;
  MlstmStateOffsets state;             ///< in and out
  std::int64_t chunk = kDefaultChunk;  ///< L, tokens per chunk; any number
  float eps = 1e-6F;
  Tensor h;  ///< [T, H dv] f32
};
XLSTM_OP(mlstm, MlstmArgs)

}  // namespace xlstm::ops
