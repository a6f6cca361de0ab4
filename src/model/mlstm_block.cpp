#include "model/stack_blocks.hpp"
#include "ops/conv.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::model {

void MlstmBlock::forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                         const BlockState& state) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Tensor u = c.arena().tensor(hp.activation, {tokens, hp.d});
  const Tensor up = c.arena().tensor(DType::f32, {tokens, 2 * inner});
  const Tensor xm = up.cols(0, inner);
  const Tensor z = up.cols(inner, inner);
  const Tensor conv_out = c.arena().tensor(DType::f32, {tokens, inner});
  const Tensor qkv = c.arena().tensor(DType::f32, {tokens, 3 * inner});
  const Tensor q = qkv.cols(0, inner);
  const Tensor k = qkv.cols(inner, inner);
  const Tensor v = qkv.cols(2 * inner, inner);
  const Tensor raw = c.arena().tensor(DType::f32, {tokens, 2 * heads});
  const Tensor i = c.arena().tensor(DType::f32, {tokens, heads});
  const Tensor log_f = c.arena().tensor(DType::f32, {tokens, heads});
  const Tensor h = c.arena().tensor(DType::f32, {tokens, inner});
  const Tensor y =
      hp.activation == DType::f32 ? h : c.arena().tensor(hp.activation, {tokens, inner});

  // [xm, z] = W_up LN(x)
  ops::layer_norm(c, {.x = x, .w = norm, .b = {}, .eps = hp.norm_eps, .y = u});
  ops::linear(c, {.x = u, .w = w_up, .b = present(b_up), .y = up});
  // c = SiLU(conv(xm))
  ops::causal_conv(c, {.x = xm,
                       .w = conv,
                       .b = conv_bias,
                       .batch = batch,
                       .window = state.window,
                       .silu = true,
                       .y = conv_out});
  // q, k = W c;  v = W xm;  i, f = W [q; k; v] + b
  ops::headwise_linear(c, {.x = conv_out, .w = w_q, .b = b_q, .y = q});
  ops::headwise_linear(c, {.x = conv_out, .w = w_k, .b = b_k, .y = k});
  ops::headwise_linear(c, {.x = xm, .w = w_v, .b = b_v, .y = v});
  ops::linear(c, {.x = qkv, .w = w_if, .b = b_if, .y = raw});
  ops::gates(c, {.z = raw, .i = i, .log_f = log_f});
  // C, n, m and h of the cell. The reference scales k, this cell q: h is the same, C and n are not.
  ops::mlstm(c, {.q = q,
                 .k = k,
                 .v = v,
                 .i = i,
                 .log_f = log_f,
                 .batch = batch,
                 .state = state.mlstm,
                 .chunk = hp.chunk,
                 .eps = hp.cell_eps,
                 .h = h});
  // y = (LN_head(h) + skip c) SiLU(z)
  ops::skip_gate(c, {.h = h,
                     .w = head_norm,
                     .skip = skip,
                     .c = conv_out,
                     .z = z,
                     .heads = heads,
                     .eps = hp.norm_eps,
                     .y = y});
  // x += W_down y
  ops::linear(c, {.x = y, .w = w_down, .b = present(b_down), .y = x, .accumulate = true});
}

}  // namespace xlstm::model
