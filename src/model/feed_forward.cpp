#include "model/feed_forward.hpp"

#include "model/residual.hpp"
#include "ops/activation.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {

FeedForward::Saved FeedForward::make_saved(Arena& arena, const Hyperparameters& hp,
                                           std::int64_t tokens) {
  return {.x = arena.tensor(DType::f32, {tokens, hp.d}),
          .u = arena.tensor(hp.activation, {tokens, hp.d}),
          .gate_up = arena.tensor(DType::f32, {tokens, 2 * hp.f}),
          .y = arena.tensor(hp.activation, {tokens, hp.f})};
}

void FeedForward::forward(Context& c, const Hyperparameters& hp, Tensor x,
                          const Saved* saved) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  Saved scratch;
  if (saved != nullptr) {
    copy_rows(c, x, saved->x);
  } else {
    scratch = {.x = x,
               .u = c.arena().tensor(hp.activation, {tokens, hp.d}),
               .gate_up = c.arena().tensor(DType::f32, {tokens, 2 * hp.f}),
               .y = c.arena().tensor(hp.activation, {tokens, hp.f})};
    saved = &scratch;
  }
  const auto& [x_before, u, gate_up, y] = *saved;
  const Tensor gate = gate_up.cols(0, hp.f);
  const Tensor up = gate_up.cols(hp.f, hp.f);

  ops::rms_norm(c, {.x = x, .w = norm, .b = norm_bias, .eps = hp.norm_eps, .y = u});
  ops::linear(c, {.x = u, .w = w_gate_up, .b = present(b_gate_up), .y = gate_up});
  ops::swiglu(c, {.gate = gate, .up = up, .y = y});
  ops::linear(c, {.x = y, .w = w_down, .b = present(b_down), .y = x, .accumulate = true});
}

// The same lines bottom-up.
void FeedForward::backward(Context& c, const Hyperparameters& hp, Tensor d_x, const Saved& a,
                           FeedForward& grads) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = d_x.dim(0);
  const Tensor d_y = c.arena().tensor(DType::f32, {tokens, hp.f});
  const Tensor d_gate_up = c.arena().tensor(DType::f32, {tokens, 2 * hp.f});
  const Tensor d_u = c.arena().tensor(DType::f32, {tokens, hp.d});

  ops::linear_backward(c, {.x = a.y,
                           .w = w_down,
                           .d_y = d_x,
                           .d_x = d_y,
                           .d_w = grads.w_down,
                           .d_b = present(grads.b_down)});
  ops::swiglu_backward(c, {.gate = a.gate_up.cols(0, hp.f),
                           .up = a.gate_up.cols(hp.f, hp.f),
                           .d_y = d_y,
                           .d_gate = d_gate_up.cols(0, hp.f),
                           .d_up = d_gate_up.cols(hp.f, hp.f)});
  ops::linear_backward(c, {.x = a.u,
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
