#include "model/feed_forward.hpp"

#include "ops/activation.hpp"
#include "ops/fused.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {

FeedForward::Saved FeedForward::make_saved(Arena& arena, const Hyperparameters& hp,
                                           std::int64_t tokens, Keep keep, std::uint64_t key) {
  Saved s;
  if (keep != Keep::nothing) {
    s.x = arena.tensor(DType::f32, {tokens, hp.d});
    s.dropout = {hp.dropout, key};
  }
  if (keep == Keep::all) s.u = arena.tensor(hp.activation, {tokens, hp.d});
  s.gate_up = arena.tensor(DType::f32, {tokens, 2 * hp.f});
  if (keep == Keep::all) s.y = arena.tensor(hp.activation, {tokens, hp.f});
  return s;
}

void FeedForward::forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                          const Saved* saved) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Saved kept = saved != nullptr ? *saved : Saved();
  const auto& [x_before, kept_u, gate_up, kept_y, dropout] = kept;
  if (x_before) copy_rows(c, x, x_before);
  if (saved == nullptr && e4m3_down[0] && reads_e4m3(batch, tokens)) return forward_e4m3(c, hp, x);
  const Tensor y = kept_y ? kept_y : c.arena().tensor(hp.activation, {tokens, hp.f});

  if (saved == nullptr && ops::fuses(c, tokens)) {  // the same in one kernel
    ops::norm_linear_swiglu(c, {.x = x,
                                .norm_w = norm,
                                .norm_b = norm_bias,
                                .eps = hp.norm_eps,
                                .w = w_gate_up,
                                .b = present(b_gate_up),
                                .y = y,
                                .packed = present(packed_gate_up)});
  } else {
    const Tensor u = kept_u ? kept_u : c.arena().tensor(hp.activation, {tokens, hp.d});
    ops::rms_norm(c, {.x = x, .w = norm, .b = norm_bias, .eps = hp.norm_eps, .y = u});
    if (saved == nullptr) {
      ops::linear_swiglu(c, {.x = u,
                             .w = w_gate_up,
                             .b = present(b_gate_up),
                             .y = y,
                             .packed = present(packed_gate_up)});
    } else {  // in two steps: the backward pass reads what lies between
      ops::linear(c, {.x = u, .w = w_gate_up, .b = present(b_gate_up), .y = gate_up});
      ops::swiglu(c, {.gate = gate_up.cols(0, hp.f), .up = gate_up.cols(hp.f, hp.f), .y = y});
    }
  }
  add_branch(c, y, w_down, b_down, x, dropout, packed_down);
}

void FeedForward::forward_e4m3(Context& c, const Hyperparameters& hp, Tensor x) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const ops::E4m3Matrix& down = e4m3_down[0];
  // What down multiplies comes out of the product where its runs are whole there.
  const bool coded = down.kind == ops::E4m3Scales::blocks;
  Tensor y;
  ops::E4m3Matrix y_coded;
  if (coded)
    y_coded = scratch_e4m3(c, tokens, down);
  else
    y = c.arena().tensor(hp.activation, {tokens, hp.f});
  {
    const ArenaScope before(c.arena());
    const Tensor u = c.arena().tensor(hp.activation, {tokens, hp.d});
    ops::rms_norm(c, {.x = x, .w = norm, .b = norm_bias, .eps = hp.norm_eps, .y = u});
    ops::linear_swiglu_e4m3(c, {.x = to_e4m3(c, u, e4m3_gate_up[0]),
                                .w = e4m3_gate_up,
                                .b = present(b_gate_up),
                                .y = y,
                                .coded = y_coded});
  }
  if (!coded) y_coded = to_e4m3(c, y, down);
  ops::linear_e4m3(
      c, {.x = y_coded, .w = e4m3_down, .b = present(b_down), .y = x, .accumulate = true});
}

// The same lines bottom-up.
void FeedForward::backward(Context& c, const Hyperparameters& hp, Tensor d_x, const Saved& a,
                           FeedForward& grads) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = d_x.dim(0);
  const Tensor d_y = c.arena().tensor(DType::f32, {tokens, hp.f});
  const Tensor d_gate_up = c.arena().tensor(DType::f32, {tokens, 2 * hp.f});
  const Tensor d_u = c.arena().tensor(DType::f32, {tokens, hp.d});

  Tensor u = a.u, y = a.y;
  if (!u) {
    u = c.arena().tensor(hp.activation, {tokens, hp.d});
    ops::rms_norm(c, {.x = a.x, .w = norm, .b = norm_bias, .eps = hp.norm_eps, .y = u});
  }
  if (!y) {
    y = c.arena().tensor(hp.activation, {tokens, hp.f});
    ops::swiglu(c, {.gate = a.gate_up.cols(0, hp.f), .up = a.gate_up.cols(hp.f, hp.f), .y = y});
  }

  branch_backward(c, y, w_down, grads.w_down, grads.b_down, d_x, d_y, a.dropout);
  ops::swiglu_backward(c, {.gate = a.gate_up.cols(0, hp.f),
                           .up = a.gate_up.cols(hp.f, hp.f),
                           .d_y = d_y,
                           .d_gate = d_gate_up.cols(0, hp.f),
                           .d_up = d_gate_up.cols(hp.f, hp.f)});
  ops::linear_backward(c, {.x = u,
                           .w = w_gate_up,
                           .d_y = d_gate_up,
                           .d_x = d_u,
                           .d_w = grads.w_gate_up,
                           .d_b = present(grads.b_gate_up)});
  ops::rms_norm_backward(c, {.x = a.x,
                             .w = norm,
                             .eps = hp.norm_eps,
                             .d_y = d_u,
                             .d_x = d_x,
                             .d_w = grads.norm,
                             .d_b = grads.norm_bias});
}

}  // namespace xlstm::model
