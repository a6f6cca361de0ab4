#pragma once
// The whole network as views of its weights: embedding, blocks, norm, head.

#include <variant>
#include <vector>

#include "model/feed_forward.hpp"
#include "model/mlstm_layer.hpp"
#include "model/stack_blocks.hpp"
#include "model/state_layout.hpp"

namespace xlstm::model {

/// A block of xLSTM-large.
struct LargeBlock {
  MlstmLayer mlstm;
  FeedForward feed_forward;

  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               const BlockState& state) const {
    mlstm.forward(c, hp, x, batch, state.mlstm);
    feed_forward.forward(c, hp, x);
  }
};

/// xLSTM-large is LargeBlocks; the first xLSTM is any mixture of the two others.
using Block = std::variant<LargeBlock, MlstmBlock, SlstmBlock>;

struct Network {
  Hyperparameters hp;
  StateLayout state;
  Tensor embedding;  ///< [V, D]
  std::vector<Block> blocks;
  Tensor out_norm, out_norm_bias;  ///< [D]; empty when the model has no output norm
  std::array<Tensor, 1> lm_head;   ///< [V, D]

  Network() = default;
  Network(const Network&) = delete;  // the registry points at these views
  Network& operator=(const Network&) = delete;

  /// Reads the batch's tokens into the states of its slots.
  /// @param ids     [T] token ids
  /// @param rows    tokens whose logits are wanted, rising; may be empty
  /// @param logits  [rows, V] f32, soft-capped
  void forward(Context& c, const ops::Batch& batch, std::span<const std::int32_t> ids,
               std::span<const std::int32_t> rows, Tensor logits) const;
};

}  // namespace xlstm::model
