#include "model/network.hpp"

#include "ops/activation.hpp"
#include "ops/fused.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {

void Network::run_blocks(Context& c, const ops::Batch& batch, Ids ids, Tensor table, Tensor x,
                         const Wanted* wanted) const {
  take_rows(c, ids, table, x);
  const std::vector<BlockState>& states = state.blocks_on(c.device());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Wanted* of_block = i + 1 == blocks.size() ? wanted : nullptr;
    if (of_block != nullptr && !wanted->none()) take_rows(c, wanted->rows, x, wanted->x);
    std::visit(
        [&](const auto& block) { block.forward(c, hp, x, batch, states[i], nullptr, of_block); },
        blocks[i]);
  }
}

void Network::run_norm(Context& c, Tensor x, Tensor y) const {
  if (hp.first_xlstm)
    ops::layer_norm(c, {.x = x, .w = out_norm, .b = {}, .eps = hp.norm_eps, .y = y});
  else
    ops::rms_norm(c, {.x = x, .w = out_norm, .b = out_norm_bias, .eps = hp.norm_eps, .y = y});
}

void Network::forward(Context& c, const ops::Batch& batch, Ids ids, Ids rows, Tensor logits) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = batch.tokens();
  const auto wanted = static_cast<std::int64_t>(rows.host.size());
  const Tensor x = c.arena().tensor(DType::f32, {tokens, hp.d});
  // The last block and the head, the largest matrix: only rows that are asked for. A pass whose
  // tokens share kernels of few reads the block's weights all the same.
  Tensor last = x;
  if (wanted < tokens && !ops::fuses(c, tokens)) {
    if (wanted > 0) last = c.arena().tensor(DType::f32, {wanted, hp.d});
    const Wanted of_last = {rows, last};
    run_blocks(c, batch, ids, embedding, x, &of_last);
  } else {
    run_blocks(c, batch, ids, embedding, x);
    if (0 < wanted && wanted < tokens) last = take_rows(c, rows, x);
  }
  if (wanted == 0) return;

  if (has_norm() && !hp.first_xlstm && ops::fuses(c, wanted)) {  // the same in one kernel
    ops::norm_linear(c, {.x = last,
                         .norm_w = out_norm,
                         .norm_b = out_norm_bias,
                         .eps = hp.norm_eps,
                         .activation = hp.activation,
                         .w = lm_head,
                         .b = {},
                         .y = logits,
                         .packed = present(packed_head)});
  } else {
    Tensor u = last;
    if (has_norm()) {
      u = c.arena().tensor(hp.activation, {wanted, hp.d});
      run_norm(c, last, u);
    }
    ops::linear(c, {.x = u, .w = lm_head, .b = {}, .y = logits, .packed = present(packed_head)});
  }
  if (hp.logit_cap > 0) ops::soft_cap(c, {.x = logits, .cap = hp.logit_cap});
}

void Network::forward_vectors(Context& c, const ops::Batch& batch, Ids ids, Tensor vectors,
                              Tensor outputs) const {
  const ArenaScope scope(c.arena());
  const Tensor x = c.arena().tensor(DType::f32, {batch.tokens(), hp.d});
  run_blocks(c, batch, ids, vectors, x);
  if (has_norm())
    run_norm(c, x, outputs);
  else
    take_rows(c, ids, x, outputs);
}

}  // namespace xlstm::model
