#pragma once
// The blocks of the first xLSTM (specification B.2 to B.4).

#include <array>

#include "core/context.hpp"
#include "model/residual.hpp"
#include "model/state_layout.hpp"
#include "ops/activation.hpp"
#include "ops/batch.hpp"
#include "ops/slstm.hpp"

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

  /// What backward() needs of forward().
  struct Saved {
    Tensor x;         ///< [T, D] f32, the residual stream before this block
    Tensor u;         ///< [T, D] f32 or bf16
    Tensor up;        ///< [T, 2 Din] f32
    Tensor c;         ///< [T, Din] f32
    Tensor qkv;       ///< [T, 3 Din] f32
    Tensor i, log_f;  ///< [T, H] f32
    Tensor h, y;      ///< [T, Din] f32, and f32 or bf16
    Dropout dropout;
  };
  /// Without x, u and y where they are not kept. `key` is dropout's.
  Saved make_saved(Arena& arena, const Hyperparameters& hp, std::int64_t tokens, Keep keep,
                   std::uint64_t key = 0, DType cell = DType::f32) const;

  /// x [T, D] f32, updated in place; `state` says where this block's state lies in the records.
  /// @param saved   filled for backward(), or null in inference
  /// @param wanted  in inference: gets its rows of the result, and x is left as it was
  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               const BlockState& state, const Saved* saved = nullptr,
               const Wanted* wanted = nullptr) const;
  /// d_x [T, D] f32: the gradient of the residual stream after this block on entry, before it on
  /// exit. Gradients of the parameters are added to those of `grads`, which are f32.
  /// @param batch    with records of the states before forward()
  /// @param d_slots  gradients of the states (ops/batch.hpp), or empty
  void backward(Context& c, const Hyperparameters& hp, Tensor d_x, const ops::Batch& batch,
                std::span<std::byte* const> d_slots, const BlockState& state, const Saved& saved,
                MlstmBlock& grads) const;
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

  /// What backward() needs of forward().
  struct Saved {
    Tensor x, u, c;  ///< [T, D] f32: the residual stream before this block; inputs of the gates
    ops::SlstmSaved cell;
    Tensor h;         ///< [T, D] f32
    Dropout dropout;  ///< of h, before the norm
    Tensor x_ffn;     ///< [T, D] f32, the residual stream before the feed-forward layer
    Tensor u_ffn;     ///< [T, D] f32 or bf16
    Tensor gate_up;   ///< [T, 2 F] f32
    Tensor y_ffn;     ///< [T, F] f32 or bf16
    Dropout ffn_dropout;
  };
  /// Without x, u, x_ffn, u_ffn and y_ffn where they are not kept. `key` is dropout's.
  Saved make_saved(Arena& arena, const Hyperparameters& hp, std::int64_t tokens, Keep keep,
                   std::uint64_t key = 0) const;

  /// As MlstmBlock's.
  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               const BlockState& state, const Saved* saved = nullptr,
               const Wanted* wanted = nullptr) const;
  void backward(Context& c, const Hyperparameters& hp, Tensor d_x, const ops::Batch& batch,
                std::span<std::byte* const> d_slots, const BlockState& state, const Saved& saved,
                SlstmBlock& grads) const;

 private:
  void cell(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
            const BlockState& state, const Saved& saved, const Wanted* wanted = nullptr) const;
  void feed_forward(Context& c, const Hyperparameters& hp, Tensor x, const Saved& saved) const;
  void cell_backward(Context& c, const Hyperparameters& hp, Tensor d_x, const ops::Batch& batch,
                     std::span<std::byte* const> d_slots, const BlockState& state,
                     const Saved& saved, SlstmBlock& grads) const;
  void feed_forward_backward(Context& c, const Hyperparameters& hp, Tensor d_x, const Saved& saved,
                             SlstmBlock& grads) const;
};

}  // namespace xlstm::model
