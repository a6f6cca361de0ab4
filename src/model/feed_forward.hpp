#pragma once
// The feed-forward half of a block: SwiGLU (specification A.3).

#include <array>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "model/residual.hpp"

namespace xlstm::model {

/// x += W_down( silu(W_gate u) * (W_up u) ), u = RMS(x).
struct FeedForward {
  Tensor norm, norm_bias;                            ///< [D]
  std::array<Tensor, 2> w_gate_up;                   ///< [F, D] each
  std::array<Tensor, 2> b_gate_up;                   ///< [F] each, or empty
  std::array<Tensor, 1> w_down, b_down;              ///< [D, F], [D]
  std::array<ops::E4m3Matrix, 2> e4m3_gate_up = {};  ///< for prompts; with that of down, or empty
  std::array<ops::E4m3Matrix, 1> e4m3_down = {};
  std::array<ops::PackedWeights, 2> packed_gate_up = {};  ///< for few tokens, or empty
  std::array<ops::PackedWeights, 1> packed_down = {};

  /// What backward() needs of forward().
  struct Saved {
    Tensor x;        ///< [T, D] f32, the residual stream before this layer
    Tensor u;        ///< [T, D] f32 or bf16
    Tensor gate_up;  ///< [T, 2 F] f32
    Tensor y;        ///< [T, F] f32 or bf16
    Dropout dropout;
  };
  /// Without x, u and y where they are not kept. `key` is dropout's.
  static Saved make_saved(Arena& arena, const Hyperparameters& hp, std::int64_t tokens, Keep keep,
                          std::uint64_t key = 0);

  /// x [T, D] f32, or of some of the batch's tokens, updated in place.
  /// @param saved  filled for backward(), or null in inference
  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               const Saved* saved = nullptr) const;
  /// forward() of a prompt by the e4m3 weights.
  void forward_e4m3(Context& c, const Hyperparameters& hp, Tensor x) const;
  /// d_x [T, D] f32: the gradient of the residual stream after this layer on entry, before it on
  /// exit. Gradients of the parameters are added to those of `grads`, which are f32.
  void backward(Context& c, const Hyperparameters& hp, Tensor d_x, const Saved& saved,
                FeedForward& grads) const;
};

}  // namespace xlstm::model
