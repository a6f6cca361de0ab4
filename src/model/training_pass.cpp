#include "model/training_pass.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "model/residual.hpp"
#include "ops/embed.hpp"
#include "ops/linear.hpp"
#include "ops/loss.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {
namespace {

// Tokens whose logits are held at a time: those of a large vocabulary are the largest activations.
constexpr std::int64_t kLossTokens = 256;

}  // namespace

TrainingPass::TrainingPass(const Network& network, Network& gradients, Context& context)
    : network_(network), gradients_(gradients), context_(context), saved_(context.device()) {
  XLSTM_CHECK(!network.hp.first_xlstm, unsupported,
              "training: expected a model of the xLSTM-large family, found one of the first xLSTM");
  XLSTM_ASSERT(gradients.blocks.size() == network.blocks.size());
}

double TrainingPass::run(const ops::Batch& batch, std::span<const std::int32_t> ids,
                         std::span<const std::int32_t> targets, float scale) {
  const auto tokens = static_cast<std::size_t>(batch.tokens());
  XLSTM_CHECK(ids.size() == tokens && targets.size() == tokens, invalid_argument,
              "training: expected {} ids and targets, as the batch says, found {} and {}", tokens,
              ids.size(), targets.size());
  // The same passes say how much memory they need, and then run.
  context_.start_measuring();
  saved_.start_measuring();
  try {
    forward_backward(batch, ids, targets, scale);
  } catch (...) {
    context_.finish_measuring();
    saved_.stop_measuring();
    throw;
  }
  context_.finish_measuring();
  saved_.reserve(saved_.stop_measuring());
  return forward_backward(batch, ids, targets, scale);
}

double TrainingPass::forward_backward(const ops::Batch& batch, std::span<const std::int32_t> ids,
                                      std::span<const std::int32_t> targets, float scale) {
  const ArenaScope saved_scope(saved_);
  const ArenaScope scope(context_.arena());
  Context& c = context_;
  const Hyperparameters& hp = network_.hp;
  const Tensor x = c.arena().tensor(DType::f32, {batch.tokens(), hp.d});
  const Tensor d_x = c.arena().tensor(DType::f32, {batch.tokens(), hp.d});

  ops::embed(c, {.ids = ids, .table = network_.embedding, .y = x});
  blocks_.clear();
  for (std::size_t i = 0; i < network_.blocks.size(); ++i) {
    const auto& block = std::get<LargeBlock>(network_.blocks[i]);
    const SavedBlock& a =
        blocks_.emplace_back(SavedBlock{MlstmLayer::make_saved(saved_, hp, batch.tokens()),
                                        FeedForward::make_saved(saved_, hp, batch.tokens())});
    block.mlstm.forward(c, hp, x, batch, network_.state.blocks()[i].mlstm, &a.mlstm);
    block.feed_forward.forward(c, hp, x, &a.feed_forward);
  }
  const double sum = loss(x, targets, scale, d_x);

  for (std::size_t i = network_.blocks.size(); i-- > 0;) {
    const auto& block = std::get<LargeBlock>(network_.blocks[i]);
    auto& grads = std::get<LargeBlock>(gradients_.blocks[i]);
    block.feed_forward.backward(c, hp, d_x, blocks_[i].feed_forward, grads.feed_forward);
    block.mlstm.backward(c, hp, d_x, batch, network_.state.blocks()[i].mlstm, blocks_[i].mlstm,
                         grads.mlstm);
  }
  ops::embed_backward(c, {.ids = ids, .d_y = d_x, .d_table = gradients_.embedding});
  return sum;
}

double TrainingPass::loss(const Tensor& x, std::span<const std::int32_t> targets, float scale,
                          const Tensor& d_x) {
  Context& c = context_;
  const Hyperparameters& hp = network_.hp;
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  Tensor u = x;
  Tensor d_u = d_x;
  if (network_.out_norm) {
    u = c.arena().tensor(hp.activation, {tokens, hp.d});
    d_u = c.arena().tensor(DType::f32, {tokens, hp.d});
    ops::rms_norm(
        c,
        {.x = x, .w = network_.out_norm, .b = network_.out_norm_bias, .eps = hp.norm_eps, .y = u});
  }
  const std::int64_t most = std::min(kLossTokens, tokens);
  const Tensor logits = c.arena().tensor(DType::f32, {most, hp.vocab});
  double sum = 0;
  for (std::int64_t begin = 0; begin < tokens; begin += most) {
    const std::int64_t count = std::min(most, tokens - begin);
    const Tensor slice = logits.rows(0, count);
    ops::linear(c, {.x = u.rows(begin, count), .w = network_.lm_head, .b = {}, .y = slice});
    ops::cross_entropy(c, {.logits = slice,
                           .targets = targets.subspan(static_cast<std::size_t>(begin),
                                                      static_cast<std::size_t>(count)),
                           .cap = hp.logit_cap,
                           .gradient = true,
                           .scale = scale,
                           .loss_sum = &sum});
    ops::linear_backward(c, {.x = u.rows(begin, count),
                             .w = network_.lm_head,
                             .d_y = slice,
                             .d_x = d_u.rows(begin, count),
                             .d_w = gradients_.lm_head,
                             .d_b = {}});
  }
  if (network_.out_norm) {
    zero_rows(c, d_x);
    ops::rms_norm_backward(c, {.x = x,
                               .w = network_.out_norm,
                               .eps = hp.norm_eps,
                               .d_y = d_u,
                               .d_x = d_x,
                               .d_w = gradients_.out_norm,
                               .d_b = gradients_.out_norm_bias});
  }
  return sum;
}

}  // namespace xlstm::model
