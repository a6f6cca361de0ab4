#pragma once
// The blocks of the first xLSTM (specification B.2 to B.4).

#include <array>

#include "core/context.hpp"
#include "model/hyperparameters.hpp"
#include "model/state_layout.hpp"
#include "ops/activation.hpp"
#include "ops/batch.hpp"

namespace xlstm::model {

/// x += W_down( (LN_head(mLSTM(q, k, v, i, f)) + skip c) SiLU(z) ) with [xm, z] = W_up LN(x),
/// c = SiLU(conv(xm)), q and k from c, v from xm, i and f from q, k and v.
struct MlstmBlock {
  std::int64_t heads = 1, inner = 0;     ///< H, Din
  Tensor norm;                           ///< [D]
  std::array<Tensor, 1> w_up, b_up;      ///< [2 Din, D], [2 Din]
  Tensor conv, conv_bias;                ///< [Din, 1, taps], [Din]
  Tensor w_q, w_k, w_v;                  ///< [Din / block, block, block] each
  Tensor b_q, b_k, b_v;                  ///< [Din] each, or empty
  std::array<Tensor, 2> w_if, b_if;      ///< [H, 3 Din], [H] each
  Tensor head_norm, skip;                ///< [Din]
  std::array<Tensor, 1> w_down, b_down;  ///< [D, Din], [D]

  /// x [T, D] f32, updated in place; `state` says where this block's state lies in the records.
  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               const BlockState& state) const;
};

/// x += GN(sLSTM(i, f, z, o)) with i and f from SiLU(conv(LN(x))), z and o from LN(x); then
/// x += W_down( act(g) u ) with [g, u] = W_up LN(x).
struct SlstmBlock {
  std::int64_t heads = 1;     ///< H
  Tensor norm;                ///< [D]
  Tensor conv, conv_bias;     ///< [D, 1, taps], [D]; empty: the gates read LN(x) itself
  Tensor w_i, w_f, w_z, w_o;  ///< [H, DH, DH] each
  Tensor r, b;                ///< [H, 4 DH, DH], [4 D]: gates i, f, z, o
  Tensor group_norm;          ///< [D] or empty

  std::int64_t f = 0;  ///< F, 0: no feed-forward layer
  ops::Activation activation = ops::Activation::gelu;
  Tensor ffn_norm;                       ///< [D]
  std::array<Tensor, 1> w_up, b_up;      ///< [2 F, D], [2 F]
  std::array<Tensor, 1> w_down, b_down;  ///< [D, F], [D]

  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               const BlockState& state) const;

 private:
  void cell(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
            const BlockState& state) const;
  void feed_forward(Context& c, const Hyperparameters& hp, Tensor x) const;
};

}  // namespace xlstm::model
