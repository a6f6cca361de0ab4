#include "model/feed_forward.hpp"

#include "ops/activation.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {

void FeedForward::forward(Context& c, const Hyperparameters& hp, Tensor x) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Tensor u = c.arena().tensor(hp.activation, {tokens, hp.d});
  const Tensor gate_up = c.arena().tensor(DType::f32, {tokens, 2 * hp.f});
  const Tensor gate = gate_up.cols(0, hp.f);
  const Tensor up = gate_up.cols(hp.f, hp.f);
  const Tensor y = c.arena().tensor(hp.activation, {tokens, hp.f});

  ops::rms_norm(c, {.x = x, .w = norm, .b = norm_bias, .eps = hp.norm_eps, .y = u});
  ops::linear(c, {.x = u, .w = w_gate_up, .b = present(b_gate_up), .y = gate_up});
  ops::swiglu(c, {.gate = gate, .up = up, .y = y});
  ops::linear(c, {.x = y, .w = w_down, .b = present(b_down), .y = x, .accumulate = true});
}

}  // namespace xlstm::model
