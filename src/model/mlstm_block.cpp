#include "model/stack_blocks.hpp"
#include "ops/conv.hpp"
#include "ops/fused.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::model {

namespace {

// Columns of q, k and v side by side, or of their gradients.
struct Qkv {
  Tensor q, k, v;
  explicit Qkv(const Tensor& all)
      : q(all.cols(0, all.dim(1) / 3)),
        k(all.cols(all.dim(1) / 3, all.dim(1) / 3)),
        v(all.cols(2 * (all.dim(1) / 3), all.dim(1) / 3)) {}
};

}  // namespace

MlstmBlock::Saved MlstmBlock::make_saved(Arena& arena, const Hyperparameters& hp,
                                         std::int64_t tokens, Keep keep, std::uint64_t key,
                                         DType cell) const {
  Saved s;
  if (keep != Keep::nothing) {
    s.x = arena.tensor(DType::f32, {tokens, hp.d});
    s.dropout = {hp.dropout, key};
  }
  if (keep == Keep::all) s.u = arena.tensor(hp.activation, {tokens, hp.d});
  s.up = arena.tensor(DType::f32, {tokens, 2 * inner});
  s.c = arena.tensor(DType::f32, {tokens, inner});
  s.qkv = arena.tensor(cell, {tokens, 3 * inner});
  s.i = arena.tensor(DType::f32, {tokens, heads});
  s.log_f = arena.tensor(DType::f32, {tokens, heads});
  s.h = arena.tensor(cell, {tokens, inner});
  if (keep == Keep::all) s.y = arena.tensor(hp.activation, {tokens, inner});
  return s;
}

void MlstmBlock::forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                         const BlockState& state, const Saved* saved, const Wanted* wanted) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Saved kept = saved != nullptr ? *saved
                                      : make_saved(c.arena(), hp, tokens, Keep::nothing, 0,
                                                   cell_type(c, hp, tokens));
  const auto& [x_before, kept_u, up, conv_out, qkv, i, log_f, h, kept_y, dropout] = kept;
  if (x_before) copy_rows(c, x, x_before);
  const Tensor u = kept_u ? kept_u : c.arena().tensor(hp.activation, {tokens, hp.d});
  const bool in_place = saved == nullptr && hp.activation == h.dtype;
  const Tensor y = kept_y     ? kept_y
                   : in_place ? h
                              : c.arena().tensor(hp.activation, {tokens, inner});
  const Tensor xm = up.cols(0, inner);
  const Tensor z = up.cols(inner, inner);
  const auto [q, k, v] = Qkv(qkv);
  const Tensor raw = c.arena().tensor(DType::f32, {tokens, 2 * heads});
  ops::MlstmStateOffsets cell = state.mlstm;
  if (!ops::pends(c, batch, hp.pends_from, cell.c_type)) cell.pending = 0;

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
                 .state = cell,
                 .chunk = hp.chunk,
                 .eps = hp.cell_eps,
                 .h = h});
  // y = (LN_head(h) + skip c) SiLU(z);  x += W_down y
  ops::SkipGateArgs gated{.h = h,
                          .w = head_norm,
                          .skip = skip,
                          .c = conv_out,
                          .z = z,
                          .heads = heads,
                          .eps = hp.norm_eps,
                          .y = y};
  Tensor sum = x;
  if (wanted != nullptr) {
    if (wanted->none()) return;
    sum = wanted->x;
    gated.h = take_rows(c, wanted->rows, h);
    gated.c = take_rows(c, wanted->rows, conv_out);
    gated.z = take_rows(c, wanted->rows, z);
    gated.y = c.arena().tensor(hp.activation, {sum.dim(0), inner});
  }
  ops::skip_gate(c, gated);
  add_branch(c, gated.y, w_down, b_down, sum, dropout);
}

// The same lines bottom-up.
void MlstmBlock::backward(Context& c, const Hyperparameters& hp, Tensor d_x,
                          const ops::Batch& batch, std::span<std::byte* const> d_slots,
                          const BlockState& state, const Saved& a, MlstmBlock& grads) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = d_x.dim(0);
  const Tensor xm = a.up.cols(0, inner);
  const Tensor z = a.up.cols(inner, inner);
  const auto [q, k, v] = Qkv(a.qkv);
  const Tensor d_y = c.arena().tensor(DType::f32, {tokens, inner});  // becomes d_h
  const Tensor d_c = c.arena().tensor(DType::f32, {tokens, inner});
  const Tensor d_up = c.arena().tensor(DType::f32, {tokens, 2 * inner});
  const Tensor d_xm = d_up.cols(0, inner);
  const Tensor d_qkv = c.arena().tensor(DType::f32, {tokens, 3 * inner});
  const auto [d_q, d_k, d_v] = Qkv(d_qkv);
  const Tensor d_i = c.arena().tensor(DType::f32, {tokens, heads});
  const Tensor d_log_f = c.arena().tensor(DType::f32, {tokens, heads});
  const Tensor d_raw = c.arena().tensor(DType::f32, {tokens, 2 * heads});
  const Tensor d_u = c.arena().tensor(DType::f32, {tokens, hp.d});
  Tensor u = a.u, y = a.y;
  if (!u) {
    u = c.arena().tensor(hp.activation, {tokens, hp.d});
    ops::layer_norm(c, {.x = a.x, .w = norm, .b = {}, .eps = hp.norm_eps, .y = u});
  }
  if (!y) {
    y = c.arena().tensor(hp.activation, {tokens, inner});
    ops::skip_gate(c, {.h = a.h,
                       .w = head_norm,
                       .skip = skip,
                       .c = a.c,
                       .z = z,
                       .heads = heads,
                       .eps = hp.norm_eps,
                       .y = y});
  }

  // x += W_down y
  branch_backward(c, y, w_down, grads.w_down, grads.b_down, d_x, d_y, a.dropout);
  // y = (LN_head(h) + skip c) SiLU(z)
  ops::skip_gate_backward(c, {.h = a.h,
                              .w = head_norm,
                              .skip = skip,
                              .c = a.c,
                              .z = z,
                              .heads = heads,
                              .eps = hp.norm_eps,
                              .d_y = d_y,
                              .d_h = d_y,
                              .d_c = d_c,
                              .d_z = d_up.cols(inner, inner),
                              .d_w = grads.head_norm,
                              .d_skip = grads.skip});
  // C, n, m and h of the cell
  ops::mlstm_backward(c, {.q = q,
                          .k = k,
                          .v = v,
                          .i = a.i,
                          .log_f = a.log_f,
                          .batch = batch,
                          .state = state.mlstm,
                          .d_slots = d_slots,
                          .eps = hp.cell_eps,
                          .exact = hp.exact_backward,
                          .h = a.h,
                          .d_h = d_y,
                          .d_q = d_q,
                          .d_k = d_k,
                          .d_v = d_v,
                          .d_i = d_i,
                          .d_log_f = d_log_f});
  // i, f = W [q; k; v] + b;  v = W xm;  q, k = W c
  ops::gates_backward(c, {.log_f = a.log_f, .d_i = d_i, .d_log_f = d_log_f, .d_z = d_raw});
  ops::linear_backward(c, {.x = a.qkv,
                           .w = w_if,
                           .d_y = d_raw,
                           .d_x = d_qkv,
                           .accumulate = true,
                           .d_w = grads.w_if,
                           .d_b = grads.b_if});
  ops::headwise_linear_backward(
      c, {.x = xm, .w = w_v, .d_y = d_v, .d_x = d_xm, .d_w = grads.w_v, .d_b = grads.b_v});
  ops::headwise_linear_backward(c, {.x = a.c,
                                    .w = w_k,
                                    .d_y = d_k,
                                    .d_x = d_c,
                                    .accumulate = true,
                                    .d_w = grads.w_k,
                                    .d_b = grads.b_k});
  ops::headwise_linear_backward(c, {.x = a.c,
                                    .w = w_q,
                                    .d_y = d_q,
                                    .d_x = d_c,
                                    .accumulate = true,
                                    .d_w = grads.w_q,
                                    .d_b = grads.b_q});
  // c = SiLU(conv(xm))
  ops::causal_conv_backward(c, {.x = xm,
                                .w = conv,
                                .b = conv_bias,
                                .batch = batch,
                                .window = state.window,
                                .d_slots = d_slots,
                                .silu = true,
                                .d_y = d_c,
                                .d_x = d_xm,
                                .d_w = grads.conv,
                                .d_b = grads.conv_bias});
  // [xm, z] = W_up LN(x)
  ops::linear_backward(
      c,
      {.x = u, .w = w_up, .d_y = d_up, .d_x = d_u, .d_w = grads.w_up, .d_b = present(grads.b_up)});
  ops::layer_norm_backward(c, {.x = a.x,
                               .w = norm,
                               .eps = hp.norm_eps,
                               .d_y = d_u,
                               .accumulate = true,
                               .d_x = d_x,
                               .d_w = grads.norm});
}

}  // namespace xlstm::model
