#pragma once
// The sLSTM cell with memory mixing (specification B.4).

#include "ops/batch.hpp"
#include "ops/op.hpp"

namespace xlstm::ops {

/// Where one block's sLSTM state lies in every record of a batch (bytes from the record's start),
/// [D] f32 each.
struct SlstmStateOffsets {
  std::size_t h = 0, c = 0, n = 0, m = 0;
};

/// h = sLSTM(W x) for every sequence of a ragged batch, from and into its state. Per feature, with
/// the gates i, f, z, o of raw = W x + b + R h_{t-1}:
///   lf = m_{t-1} + log sigmoid(raw_f);  m = raw_i if n_{t-1} = 0, else max(raw_i, lf)
///   i' = min(e^(raw_i - m), 1);  f' = min(e^(lf - m), 1)
///   c = f' c + i' tanh(raw_z);  n = f' n + i';  h = sigmoid(raw_o) c / n
/// A sequence's result depends on its own tokens and state only.
struct SlstmArgs {
  Tensor wx;  ///< [T, 4 D] f32: i, f, z, o one after the other, heads side by side in each
  Tensor r;   ///< [H, 4 D / H, D / H], rows i, f, z, o of one head
  Tensor b;   ///< [4 D], as wx
  const Batch& batch;
  SlstmStateOffsets state;  ///< in and out
  Tensor h;                 ///< [T, D] f32
};
XLSTM_OP(slstm, SlstmArgs)

}  // namespace xlstm::ops
