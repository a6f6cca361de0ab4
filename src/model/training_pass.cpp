#include "model/training_pass.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/check.hpp"
#include "model/residual.hpp"
#include "ops/embed.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/loss.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {
namespace {

// Tokens whose logits are held at a time: those of a large vocabulary are the largest activations.
constexpr std::int64_t kLossTokens = 256;

void copy_records(std::span<std::byte* const> from, std::span<std::byte* const> to,
                  std::size_t bytes) {
  for (std::size_t s = 0; s < from.size(); ++s)
    if (from[s] != nullptr) std::memcpy(to[s], from[s], bytes);
}

bool all_finite(const Tensor& x) {
  for (std::int64_t t = 0; t < x.dim(0); ++t)
    for (std::int64_t d = 0; d < x.dim(1); ++d)
      if (!std::isfinite(x.row<float>(t)[d])) return false;
  return true;
}

std::int64_t count_correct(const Tensor& logits, std::span<const std::int32_t> targets) {
  std::int64_t correct = 0;
  for (std::int64_t t = 0; t < logits.dim(0); ++t) {
    const std::int32_t target = targets[static_cast<std::size_t>(t)];
    const float* row = logits.row<float>(t);
    if (target >= 0 && std::max_element(row, row + logits.dim(1)) == row + target) ++correct;
  }
  return correct;
}

}  // namespace

TrainingPass::TrainingPass(const Network& network, Network& gradients, Context& context,
                           Recompute recompute)
    : network_(network),
      gradients_(gradients),
      context_(context),
      recompute_(recompute),
      saved_(context.device()) {
  XLSTM_ASSERT(gradients.blocks.size() == network.blocks.size());
}

// The same calls say how much memory they need, and then run.
template <class Body>
auto TrainingPass::measured(Body&& body) {
  context_.start_measuring();
  saved_.start_measuring();
  try {
    body();
  } catch (...) {
    context_.finish_measuring();
    saved_.stop_measuring();
    throw;
  }
  context_.finish_measuring();
  saved_.reserve(saved_.stop_measuring());
  return body();
}

std::vector<std::byte*> TrainingPass::copies(std::span<std::byte* const> slots,
                                             std::vector<Buffer>& records) {
  std::vector<std::byte*> list(slots.size(), nullptr);
  std::size_t used = 0;
  for (std::size_t s = 0; s < slots.size(); ++s) {
    if (slots[s] == nullptr) continue;
    if (used == records.size()) records.emplace_back(network_.state.bytes(), context_.device());
    list[s] = records[used++].data();
  }
  copy_records(slots, list, network_.state.bytes());
  return list;
}

double TrainingPass::run(const Input& input, float scale, std::uint64_t key,
                         std::span<std::byte* const> d_slots) {
  const auto tokens = static_cast<std::size_t>(input.batch.tokens());
  XLSTM_CHECK(input.ids.size() == tokens && input.targets.size() == tokens, invalid_argument,
              "training: expected {} ids and targets, as the batch says, found {} and {}", tokens,
              input.ids.size(), input.targets.size());
  const std::vector<std::byte*> initial = copies(input.batch.slots, initial_);
  std::vector<std::byte*> scratch;
  if (recompute_ == Recompute::blocks) scratch = copies(input.batch.slots, scratch_);
  return measured([&] { return forward_backward({input, scale, key, d_slots, initial, scratch}); });
}

std::size_t TrainingPass::bytes(const Input& input) {
  context_.start_measuring();
  saved_.start_measuring();
  forward_backward({input, 1.0F, 0, {}, input.batch.slots, input.batch.slots});
  return context_.stop_measuring() + saved_.stop_measuring();
}

TrainingPass::Score TrainingPass::evaluate(const Input& input) {
  return measured([&] { return forward(input); });
}

double TrainingPass::forward_backward(const Step& step) {
  const ArenaScope saved_scope(saved_);
  const ArenaScope scope(context_.arena());
  Context& c = context_;
  const Hyperparameters& hp = network_.hp;
  const Input& input = step.input;
  const std::int64_t tokens = input.batch.tokens();
  const Tensor x = c.arena().tensor(DType::f32, {tokens, hp.d});
  const Tensor d_x = c.arena().tensor(DType::f32, {tokens, hp.d});

  embed(input, x, step.key);
  blocks_.clear();
  inputs_.clear();
  for (std::size_t i = 0; i < network_.blocks.size(); ++i) {
    if (recompute_ == Recompute::blocks) {
      copy_rows(c, x, inputs_.emplace_back(saved_.tensor(DType::f32, {tokens, hp.d})));
      // The same forward pass as later: dropout is on.
      const ArenaScope block_scope(c.arena());
      const Saved saved = make_saved(i, c.arena(), tokens, step.key);
      block_forward(i, x, input.batch, &saved);
    } else {
      blocks_.push_back(make_saved(i, saved_, tokens, step.key));
      block_forward(i, x, input.batch, &blocks_.back());
    }
  }
  const double sum = loss(x, input.targets, step.scale, d_x).loss;

  for (std::size_t i = network_.blocks.size(); i-- > 0;) block_backward(i, step, d_x);
  if (hp.embedding_dropout > 0)
    ops::dropout(c, {.x = d_x, .p = hp.embedding_dropout, .key = step.key, .y = d_x});
  ops::embed_backward(c, {.ids = input.ids, .d_y = d_x, .d_table = gradients_.embedding});
  return sum;
}

TrainingPass::Score TrainingPass::forward(const Input& input) {
  const ArenaScope scope(context_.arena());
  const Tensor x = context_.arena().tensor(DType::f32, {input.batch.tokens(), network_.hp.d});
  ops::embed(context_, {.ids = input.ids, .table = network_.embedding, .y = x});
  for (std::size_t i = 0; i < network_.blocks.size(); ++i)
    block_forward(i, x, input.batch, nullptr);
  return loss(x, input.targets, 0, {});
}

void TrainingPass::embed(const Input& input, const Tensor& x, std::uint64_t key) {
  ops::embed(context_, {.ids = input.ids, .table = network_.embedding, .y = x});
  const float p = network_.hp.embedding_dropout;
  if (p > 0) ops::dropout(context_, {.x = x, .p = p, .key = key, .y = x});
}

TrainingPass::Saved TrainingPass::make_saved(std::size_t i, Arena& arena, std::int64_t tokens,
                                             std::uint64_t key) const {
  const Keep keep = recompute_ == Recompute::norms ? Keep::cells : Keep::all;
  return std::visit(
      [&](const auto& block) -> Saved {
        return block.make_saved(arena, network_.hp, tokens, keep, mix64(key + i + 1));
      },
      network_.blocks[i]);
}

void TrainingPass::block_forward(std::size_t i, const Tensor& x, const ops::Batch& batch,
                                 const Saved* saved) {
  std::visit(
      [&](const auto& block) {
        using BlockSaved = typename std::decay_t<decltype(block)>::Saved;
        block.forward(context_, network_.hp, x, batch, network_.state.blocks()[i],
                      saved == nullptr ? nullptr : &std::get<BlockSaved>(*saved));
      },
      network_.blocks[i]);
}

void TrainingPass::block_backward(std::size_t i, const Step& step, const Tensor& d_x) {
  Context& c = context_;
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = d_x.dim(0);
  Saved again;
  if (recompute_ == Recompute::blocks) {
    const Tensor x = c.arena().tensor(DType::f32, {tokens, d_x.dim(1)});
    copy_rows(c, inputs_[i], x);
    again = make_saved(i, c.arena(), tokens, step.key);
    if (!c.measuring()) copy_records(step.initial, step.scratch, network_.state.bytes());
    block_forward(i, x, {step.input.batch.offsets, step.scratch}, &again);
  }
  const Saved& saved = recompute_ == Recompute::blocks ? again : blocks_[i];
  const ops::Batch batch{step.input.batch.offsets, step.initial};
  std::visit(
      [&](const auto& block) {
        using Kind = std::decay_t<decltype(block)>;
        block.backward(c, network_.hp, d_x, batch, step.d_slots, network_.state.blocks()[i],
                       std::get<typename Kind::Saved>(saved), std::get<Kind>(gradients_.blocks[i]));
      },
      network_.blocks[i]);
}

TrainingPass::Score TrainingPass::loss(const Tensor& x, std::span<const std::int32_t> targets,
                                       float scale, const Tensor& d_x) {
  // Only the rows that are scored go through the head, the largest matrix.
  std::vector<std::int32_t> rows, scored;
  for (std::size_t t = 0; t < targets.size(); ++t)
    if (targets[t] >= 0) {
      rows.push_back(static_cast<std::int32_t>(t));
      scored.push_back(targets[t]);
    }
  if (rows.size() == targets.size()) return loss_of_rows(x, targets, scale, d_x);
  if (d_x) zero_rows(context_, d_x);
  if (rows.empty()) return {};
  const ArenaScope scope(context_.arena());
  const auto count = static_cast<std::int64_t>(rows.size());
  const Tensor x_rows = context_.arena().tensor(DType::f32, {count, x.dim(1)});
  const Tensor d_rows = d_x ? context_.arena().tensor(DType::f32, {count, x.dim(1)}) : Tensor();
  ops::embed(context_, {.ids = rows, .table = x, .y = x_rows});
  const Score score = loss_of_rows(x_rows, scored, scale, d_rows);
  if (d_x) ops::embed_backward(context_, {.ids = rows, .d_y = d_rows, .d_table = d_x});
  return score;
}

TrainingPass::Score TrainingPass::loss_of_rows(const Tensor& x,
                                               std::span<const std::int32_t> targets, float scale,
                                               const Tensor& d_x) {
  Context& c = context_;
  const Hyperparameters& hp = network_.hp;
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const bool normed = network_.out_norm && hp.apply_out_norm;
  Tensor u = x;
  Tensor d_u = d_x;
  if (normed) {
    u = c.arena().tensor(hp.activation, {tokens, hp.d});
    if (d_x) d_u = c.arena().tensor(DType::f32, {tokens, hp.d});
    if (hp.first_xlstm)
      ops::layer_norm(c, {.x = x, .w = network_.out_norm, .b = {}, .eps = hp.norm_eps, .y = u});
    else
      ops::rms_norm(c, {.x = x,
                        .w = network_.out_norm,
                        .b = network_.out_norm_bias,
                        .eps = hp.norm_eps,
                        .y = u});
  }
  const std::int64_t most = std::min(kLossTokens, tokens);
  const Tensor logits = c.arena().tensor(DType::f32, {most, hp.vocab});
  Score score;
  for (std::int64_t begin = 0; begin < tokens; begin += most) {
    const std::int64_t count = std::min(most, tokens - begin);
    const Tensor slice = logits.rows(0, count);
    const auto wanted =
        targets.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
    ops::linear(c, {.x = u.rows(begin, count), .w = network_.lm_head, .b = {}, .y = slice});
    if (!d_x && !c.measuring()) score.correct += count_correct(slice, wanted);
    ops::cross_entropy(c, {.logits = slice,
                           .targets = wanted,
                           .cap = hp.logit_cap,
                           .gradient = static_cast<bool>(d_x),
                           .scale = scale,
                           .loss_sum = &score.loss});
    if (d_x)
      ops::linear_backward(c, {.x = u.rows(begin, count),
                               .w = network_.lm_head,
                               .d_y = slice,
                               .d_x = d_u.rows(begin, count),
                               .d_w = gradients_.lm_head,
                               .d_b = {}});
  }
  if (!normed || !d_x) return score;
  zero_rows(c, d_x);
  if (hp.first_xlstm)
    ops::layer_norm_backward(c, {.x = x,
                                 .w = network_.out_norm,
                                 .eps = hp.norm_eps,
                                 .d_y = d_u,
                                 .d_x = d_x,
                                 .d_w = gradients_.out_norm});
  else
    ops::rms_norm_backward(c, {.x = x,
                               .w = network_.out_norm,
                               .eps = hp.norm_eps,
                               .d_y = d_u,
                               .d_x = d_x,
                               .d_w = gradients_.out_norm,
                               .d_b = gradients_.out_norm_bias});
  return score;
}

std::string TrainingPass::find_nonfinite(const Input& input) {
  static constexpr std::array<const char*, 3> kKinds = {"mLSTM and feed-forward", "mLSTM", "sLSTM"};
  const std::vector<std::byte*> slots = copies(input.batch.slots, scratch_);
  const ops::Batch batch{input.batch.offsets, slots};
  return measured([&]() -> std::string {
    const ArenaScope scope(context_.arena());
    const Tensor x = context_.arena().tensor(DType::f32, {batch.tokens(), network_.hp.d});
    ops::embed(context_, {.ids = input.ids, .table = network_.embedding, .y = x});
    if (!context_.measuring() && !all_finite(x)) return "the embedding";
    for (std::size_t i = 0; i < network_.blocks.size(); ++i) {
      block_forward(i, x, batch, nullptr);
      if (!context_.measuring() && !all_finite(x))
        return fmt::format("block {} ({})", i, kKinds[network_.blocks[i].index()]);
    }
    const Score score = loss(x, input.targets, 0, {});
    return std::isfinite(score.loss) ? "" : "the output norm or the head";
  });
}

}  // namespace xlstm::model
