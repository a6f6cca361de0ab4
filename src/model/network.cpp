#include "model/network.hpp"

#include "ops/activation.hpp"
#include "ops/embed.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {

void Network::forward(Context& c, const ops::Batch& batch, std::span<const std::int32_t> ids,
                      std::span<const std::int32_t> rows, Tensor logits) const {
  const ArenaScope scope(c.arena());
  const Tensor x = c.arena().tensor(DType::f32, {batch.tokens(), hp.d});

  ops::embed(c, {.ids = ids, .table = embedding, .y = x});
  for (std::size_t i = 0; i < blocks.size(); ++i)
    std::visit([&](const auto& block) { block.forward(c, hp, x, batch, state.blocks()[i]); },
               blocks[i]);
  if (rows.empty()) return;

  const auto wanted = static_cast<std::int64_t>(rows.size());
  Tensor last = x;
  if (wanted < x.dim(0)) {  // the head is the largest matrix: only rows that are asked for
    last = c.arena().tensor(DType::f32, {wanted, hp.d});
    ops::embed(c, {.ids = rows, .table = x, .y = last});
  }
  Tensor u = last;
  if (out_norm && hp.apply_out_norm) {
    u = c.arena().tensor(hp.activation, {wanted, hp.d});
    if (hp.first_xlstm)
      ops::layer_norm(c, {.x = last, .w = out_norm, .b = {}, .eps = hp.norm_eps, .y = u});
    else
      ops::rms_norm(c, {.x = last, .w = out_norm, .b = out_norm_bias, .eps = hp.norm_eps, .y = u});
  }
  ops::linear(c, {.x = u, .w = lm_head, .b = {}, .y = logits});
  if (hp.logit_cap > 0) ops::soft_cap(c, {.x = logits, .cap = hp.logit_cap});
}

}  // namespace xlstm::model
