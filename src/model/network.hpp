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

  struct Saved {
    MlstmLayer::Saved mlstm;
    FeedForward::Saved feed_forward;
  };
  static Saved make_saved(Arena& arena, const Hyperparameters& hp, std::int64_t tokens, Keep keep,
                          std::uint64_t key) {
    return {MlstmLayer::make_saved(arena, hp, tokens, keep, mix64(key)),
            FeedForward::make_saved(arena, hp, tokens, keep, mix64(key + 1))};
  }

  void forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
               const BlockState& state, const Saved* saved = nullptr,
               const Wanted* wanted = nullptr) const {
    mlstm.forward(c, hp, x, batch, state.mlstm, saved == nullptr ? nullptr : &saved->mlstm, wanted);
    if (wanted != nullptr && wanted->none()) return;
    feed_forward.forward(c, hp, wanted != nullptr ? wanted->x : x, batch,
                         saved == nullptr ? nullptr : &saved->feed_forward);
  }
  void backward(Context& c, const Hyperparameters& hp, Tensor d_x, const ops::Batch& batch,
                std::span<std::byte* const> d_slots, const BlockState& state, const Saved& saved,
                LargeBlock& grads) const {
    feed_forward.backward(c, hp, d_x, saved.feed_forward, grads.feed_forward);
    mlstm.backward(c, hp, d_x, batch, d_slots, state.mlstm, saved.mlstm, grads.mlstm);
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
  std::array<ops::PackedWeights, 1> packed_head = {};

  Network() = default;
  Network(const Network&) = delete;  // the registry points at these views
  Network& operator=(const Network&) = delete;

  /// Reads the batch's tokens into the states of its slots.
  /// @param ids     [T] token ids
  /// @param rows    tokens whose logits are wanted, rising; may be empty
  /// @param logits  [rows, V] f32, soft-capped
  void forward(Context& c, const ops::Batch& batch, Ids ids, Ids rows, Tensor logits) const;
  /// The same without embedding and head: outputs [T, D] f32 = the blocks on rows `ids` of
  /// `vectors` [.., D] f32, after the norm. `outputs` may be `vectors`, with ids 0, 1, 2, ...
  void forward_vectors(Context& c, const ops::Batch& batch, Ids ids, Tensor vectors,
                       Tensor outputs) const;

 private:
  /// x [T, D] = rows `ids` of `table` through the blocks
  /// @param wanted  null, or what of the last block is wanted: it goes there, not to x
  void run_blocks(Context& c, const ops::Batch& batch, Ids ids, Tensor table, Tensor x,
                  const Wanted* wanted = nullptr) const;
  bool has_norm() const { return out_norm && hp.apply_out_norm; }
  void run_norm(Context& c, Tensor x, Tensor y) const;
};

}  // namespace xlstm::model
