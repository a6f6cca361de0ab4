#pragma once
// Loss and gradients of a network: the forward pass that keeps what the backward pass needs, and
// the backward pass.

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "model/network.hpp"

namespace xlstm::model {

/// What the backward pass computes again instead of keeping it. The mLSTM always keeps nothing but
/// its inputs and outputs, and computes again inside its chunks.
enum class Recompute : std::uint8_t {
  none,
  norms,  ///< norms and activations: a third to a half of the memory, a few percent of the time
  blocks  ///< whole blocks: the memory of one block, a third more time
};

/// One step of training without its optimiser. Activations lie in arenas that grow with the largest
/// batch and are used again.
class TrainingPass {
 public:
  struct Input {
    /// Sequences laid end to end. A null slot starts from the empty state; others are read, and
    /// then hold the final state.
    const ops::Batch& batch;
    std::span<const std::int32_t> ids;      ///< [T]
    std::span<const std::int32_t> targets;  ///< [T] the next ids; -1: not scored
  };
  struct Score {
    double loss = 0;           ///< sum of the cross entropies over the targets
    std::int64_t correct = 0;  ///< targets that have the largest logit
  };

  /// @param gradients  a network of the same shape, whose views are float32 and are added to
  TrainingPass(const Network& network, Network& gradients, Context& context,
               Recompute recompute = Recompute::none);

  /// Sum of the cross entropies, whose gradient times `scale` is added to the gradients.
  /// @param key      of the dropout of this pass
  /// @param d_slots  empty, or records as the states': gradients of the final states on entry, of
  ///                 the initial ones on exit, null where neither is there nor wanted
  double run(const Input& input, float scale, std::uint64_t key = 0,
             std::span<std::byte* const> d_slots = {});

  /// Bytes of activations that run() takes for such an input.
  std::size_t bytes(const Input& input);

  /// Neither dropout nor gradients.
  Score evaluate(const Input& input);

  /// Where the first number that is not finite appears ("block 3, an sLSTM"), or nothing. States
  /// stay as they are.
  std::string find_nonfinite(const Input& input);

 private:
  struct Step {
    const Input& input;
    float scale;
    std::uint64_t key;
    std::span<std::byte* const> d_slots;
    std::span<std::byte* const> initial;  ///< copies of the slots as they were
    std::span<std::byte* const> scratch;  ///< room for more copies
  };
  using Saved = std::variant<LargeBlock::Saved, MlstmBlock::Saved, SlstmBlock::Saved>;

  template <class Body>
  auto measured(Body&& body);
  double forward_backward(const Step& step);
  Score forward(const Input& input);
  void embed(const Input& input, const Tensor& x, std::uint64_t key);
  void block_forward(std::size_t i, const Tensor& x, const ops::Batch& batch, const Saved* saved);
  void block_backward(std::size_t i, const Step& step, const Tensor& d_x);
  Saved make_saved(std::size_t i, Arena& arena, std::int64_t tokens, std::uint64_t key) const;
  /// The loss at the end of the network; d_x [T, D], if it is there, becomes the gradient of the
  /// residual stream x.
  Score loss(const Tensor& x, std::span<const std::int32_t> targets, float scale,
             const Tensor& d_x);
  Score loss_of_rows(const Tensor& x, std::span<const std::int32_t> targets, float scale,
                     const Tensor& d_x);
  std::vector<std::byte*> copies(std::span<std::byte* const> slots, std::vector<Buffer>& records);

  const Network& network_;
  Network& gradients_;
  Context& context_;
  Recompute recompute_;
  Arena saved_;
  std::vector<Saved> blocks_;
  std::vector<Tensor> inputs_;  ///< of the blocks, where those are computed again
  std::vector<Buffer> initial_, scratch_;
};

}  // namespace xlstm::model
