#pragma once
// Loss and gradients of a network: the forward pass that keeps what the backward pass needs, and
// the backward pass.

#include <cstdint>
#include <span>
#include <vector>

#include "model/network.hpp"

namespace xlstm::model {

/// One step of training without its optimiser, for models of the xLSTM-large family. Activations
/// lie in an arena that grows with the largest batch and is used again.
class TrainingPass {
 public:
  /// @param gradients  a network of the same shape, whose views are float32 and are added to
  /// @throws Error(unsupported) for models of the first xLSTM
  TrainingPass(const Network& network, Network& gradients, Context& context);

  /// Sum of the cross entropy over the targets, whose gradient times `scale` is added to the
  /// gradients.
  /// @param batch    documents laid end to end; a null slot starts from the empty state
  /// @param ids      [T]
  /// @param targets  [T] the next ids; -1: not scored
  double run(const ops::Batch& batch, std::span<const std::int32_t> ids,
             std::span<const std::int32_t> targets, float scale);

 private:
  struct SavedBlock {
    MlstmLayer::Saved mlstm;
    FeedForward::Saved feed_forward;
  };

  double forward_backward(const ops::Batch& batch, std::span<const std::int32_t> ids,
                          std::span<const std::int32_t> targets, float scale);
  /// The loss at the end of the network; d_x [T, D] becomes the gradient of the residual stream x.
  double loss(const Tensor& x, std::span<const std::int32_t> targets, float scale,
              const Tensor& d_x);

  const Network& network_;
  Network& gradients_;
  Context& context_;
  Arena saved_;
  std::vector<SavedBlock> blocks_;
};

}  // namespace xlstm::model
