#include "model/stack_blocks.hpp"
#include "ops/conv.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/slstm.hpp"

namespace xlstm::model {

void SlstmBlock::forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                         const BlockState& state) const {
  cell(c, hp, x, batch, state);
  if (f > 0) feed_forward(c, hp, x);
}

void SlstmBlock::cell(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                      const BlockState& state) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Tensor u = c.arena().tensor(DType::f32, {tokens, hp.d});
  const Tensor conv_out = conv ? c.arena().tensor(DType::f32, {tokens, hp.d}) : u;
  const Tensor wx = c.arena().tensor(DType::f32, {tokens, 4 * hp.d});
  const Tensor h = c.arena().tensor(DType::f32, {tokens, hp.d});

  ops::layer_norm(c, {.x = x, .w = norm, .b = {}, .eps = hp.norm_eps, .y = u});
  if (conv)
    ops::causal_conv(c, {.x = u,
                         .w = conv,
                         .b = conv_bias,
                         .batch = batch,
                         .window = state.window,
                         .silu = true,
                         .y = conv_out});
  // i, f = W SiLU(conv(u));  z, o = W u
  ops::headwise_linear(c, {.x = conv_out, .w = w_i, .b = {}, .y = wx.cols(0, hp.d)});
  ops::headwise_linear(c, {.x = conv_out, .w = w_f, .b = {}, .y = wx.cols(hp.d, hp.d)});
  ops::headwise_linear(c, {.x = u, .w = w_z, .b = {}, .y = wx.cols(2 * hp.d, hp.d)});
  ops::headwise_linear(c, {.x = u, .w = w_o, .b = {}, .y = wx.cols(3 * hp.d, hp.d)});
  ops::slstm(c, {.wx = wx, .r = r, .b = b, .batch = batch, .state = state.slstm, .h = h});
  // x += GN(h)
  ops::layer_norm(c, {.x = h,
                      .w = group_norm,
                      .b = {},
                      .heads = heads,
                      .eps = hp.norm_eps,
                      .accumulate = true,
                      .y = x});
}

void SlstmBlock::feed_forward(Context& c, const Hyperparameters& hp, Tensor x) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Tensor u = c.arena().tensor(hp.activation, {tokens, hp.d});
  const Tensor gate_up = c.arena().tensor(DType::f32, {tokens, 2 * f});
  const Tensor y = c.arena().tensor(hp.activation, {tokens, f});

  ops::layer_norm(c, {.x = x, .w = ffn_norm, .b = {}, .eps = hp.norm_eps, .y = u});
  ops::linear(c, {.x = u, .w = w_up, .b = present(b_up), .y = gate_up});
  ops::gated_activation(
      c, {.gate = gate_up.cols(0, f), .up = gate_up.cols(f, f), .kind = activation, .y = y});
  ops::linear(c, {.x = y, .w = w_down, .b = present(b_down), .y = x, .accumulate = true});
}

}  // namespace xlstm::model
