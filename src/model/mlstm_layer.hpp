#pragma once
// The mLSTM half of a block (specification A.3).

#include <array>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "model/residual.hpp"
#include "ops/batch.hpp"

namespace xlstm::model {

/// x += W_out( sigmoid(o) * LN_head( mLSTM(q, k, v, i, f) ) ), all of them products with RMS(x).
struct MlstmLayer {
  Tensor norm, norm_bias;                         ///< [D]
  std::array<Tensor, 4> w_qkvo;                   ///< [H dqk, D] twice, [H dv, D] twice
  std::array<Tensor, 4> b_qkvo;                   ///< rows of each, or empty
  Tensor w_i, b_i, w_f, b_f;                      ///< [H, D], [H]
  Tensor head_norm, head_norm_bias;               ///< [H dv]
  std::array<Tensor, 1> w_out, b_out;             ///< [D, H dv], [D]
  std::array<ops::E4m3Matrix, 4> e4m3_qkvo = {};  ///< for prompts; with that of out, or empty
  std::array<ops::E4m3Matrix, 1> e4m3_out = {};
  std::array<ops::PackedWeights, 4> packed_qkvo = {};  ///< for few tokens, or empty
  std::array<ops::PackedWeights, 1> packed_out = {};

  /// What backward() needs of forward().
  struct Saved {
    Tensor x;         ///< [T, D] f32, the residual stream before this layer
    Tensor u;         ///< [T, D] f32 or bf16
    Tensor i, log_f;  ///< [T, H] f32
    Tensor qkvo;      ///< [T, 2 H dqk + 2 H dv] f32
    Tensor h, y;      ///< [T, H dv] f32, and f32 or bf16
    Dropout dropout;
  };
  /// Without x, u and y where they are not kept. `key` is dropout's.
  static Saved make_saved(Arena& arena, const Hyperparameters& hp, std::int64_t tokens, Keep keep,
                          std::uint64_t key = 0, DType cell = DType::f32);

  /// x [T, D] f32, updated in place; `state` says where this block's state lies in the records.
  /// @param saved   filled for backward(), or null in inference
  /// @param wanted  in inference: gets its rows of the result, and x is left as it was
  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               ops::MlstmStateOffsets state, const Saved* saved = nullptr,
               const Wanted* wanted = nullptr) const;
  /// d_x [T, D] f32: the gradient of the residual stream after this layer on entry, before it on
  /// exit. Gradients of the parameters are added to those of `grads`, which are f32.
  /// @param batch    with records of the states before forward()
  /// @param d_slots  gradients of the states (ops/batch.hpp), or empty
  void backward(Context& c, const Hyperparameters& hp, Tensor d_x, const ops::Batch& batch,
                std::span<std::byte* const> d_slots, ops::MlstmStateOffsets state,
                const Saved& saved, MlstmLayer& grads) const;
};

}  // namespace xlstm::model
