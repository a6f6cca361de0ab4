#pragma once
// The mLSTM half of a block (specification A.3).

#include <array>

#include "core/context.hpp"
#include "model/hyperparameters.hpp"
#include "ops/batch.hpp"

namespace xlstm::model {

/// x += W_out( sigmoid(o) * LN_head( mLSTM(q, k, v, i, f) ) ), all of them products with RMS(x).
struct MlstmLayer {
  Tensor norm, norm_bias;              ///< [D]
  std::array<Tensor, 4> w_qkvo;        ///< [H dqk, D] twice, [H dv, D] twice
  std::array<Tensor, 4> b_qkvo;        ///< rows of each, or empty
  Tensor w_i, b_i, w_f, b_f;           ///< [H, D], [H]
  Tensor head_norm, head_norm_bias;    ///< [H dv]
  std::array<Tensor, 1> w_out, b_out;  ///< [D, H dv], [D]

  /// x [T, D] f32, updated in place; `state` says where this block's state lies in the records.
  void forward(Context& c, const Hyperparameters& h, Tensor x, const ops::Batch& batch,
               ops::MlstmStateOffsets state) const;
};

}  // namespace xlstm::model
