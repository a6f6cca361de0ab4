#include "model/stack_blocks.hpp"
#include "ops/conv.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/slstm.hpp"

namespace xlstm::model {

SlstmBlock::Saved SlstmBlock::make_saved(Arena& arena, const Hyperparameters& hp,
                                         std::int64_t tokens, Keep keep, std::uint64_t key) const {
  Saved s;
  const auto rows = [&](std::int64_t width) { return arena.tensor(DType::f32, {tokens, width}); };
  if (keep != Keep::nothing) {
    s.x = rows(hp.d);
    s.cell = {.gates = rows(4 * hp.d), .closed = rows(hp.d), .c = rows(hp.d), .n = rows(hp.d)};
    s.dropout = {hp.dropout, mix64(key)};
    s.ffn_dropout = {hp.ffn_dropout, mix64(key + 1)};
  }
  s.u = rows(hp.d);
  s.c = conv ? rows(hp.d) : s.u;
  s.h = rows(hp.d);
  if (f == 0) return s;
  if (keep != Keep::nothing) s.x_ffn = rows(hp.d);
  if (keep == Keep::all) s.u_ffn = arena.tensor(hp.activation, {tokens, hp.d});
  s.gate_up = rows(2 * f);
  if (keep == Keep::all) s.y_ffn = arena.tensor(hp.activation, {tokens, f});
  return s;
}

void SlstmBlock::forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                         const BlockState& state, const Saved* saved, const Wanted* wanted) const {
  const ArenaScope scope(c.arena());
  const Saved kept = saved != nullptr ? *saved : make_saved(c.arena(), hp, x.dim(0), Keep::nothing);
  cell(c, hp, x, batch, state, kept, wanted);
  if (f == 0 || (wanted != nullptr && wanted->none())) return;
  if (wanted == nullptr)
    feed_forward(c, hp, x, kept);
  else
    feed_forward(c, hp, wanted->x, make_saved(c.arena(), hp, wanted->x.dim(0), Keep::nothing));
}

void SlstmBlock::backward(Context& c, const Hyperparameters& hp, Tensor d_x,
                          const ops::Batch& batch, std::span<std::byte* const> d_slots,
                          const BlockState& state, const Saved& saved, SlstmBlock& grads) const {
  if (f > 0) feed_forward_backward(c, hp, d_x, saved, grads);
  cell_backward(c, hp, d_x, batch, d_slots, state, saved, grads);
}

void SlstmBlock::cell(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                      const BlockState& state, const Saved& a, const Wanted* wanted) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Tensor wx = c.arena().tensor(DType::f32, {tokens, 4 * hp.d});
  if (a.x) copy_rows(c, x, a.x);

  ops::layer_norm(c, {.x = x, .w = norm, .b = {}, .eps = hp.norm_eps, .y = a.u});
  if (conv)
    ops::causal_conv(c, {.x = a.u,
                         .w = conv,
                         .b = conv_bias,
                         .batch = batch,
                         .window = state.window,
                         .silu = true,
                         .y = a.c});
  // i, f = W SiLU(conv(u));  z, o = W u
  ops::headwise_linear(c, {.x = a.c, .w = w_i, .b = {}, .y = wx.cols(0, hp.d)});
  ops::headwise_linear(c, {.x = a.c, .w = w_f, .b = {}, .y = wx.cols(hp.d, hp.d)});
  ops::headwise_linear(c, {.x = a.u, .w = w_z, .b = {}, .y = wx.cols(2 * hp.d, hp.d)});
  ops::headwise_linear(c, {.x = a.u, .w = w_o, .b = {}, .y = wx.cols(3 * hp.d, hp.d)});
  ops::slstm(c, {.wx = wx,
                 .r = r,
                 .b = b,
                 .batch = batch,
                 .state = state.slstm,
                 .h = a.h,
                 .saved = a.cell,
                 .product = hp.activation});
  // x += GN(dropout(h))
  Tensor h = a.h, sum = x;
  if (a.dropout) {
    h = c.arena().tensor(DType::f32, {tokens, hp.d});
    ops::dropout(c, {.x = a.h, .p = a.dropout.p, .key = a.dropout.key, .y = h});
  }
  if (wanted != nullptr) {
    if (wanted->none()) return;
    sum = wanted->x;
    h = take_rows(c, wanted->rows, h);
  }
  ops::layer_norm(c, {.x = h,
                      .w = group_norm,
                      .b = {},
                      .heads = heads,
                      .eps = hp.norm_eps,
                      .accumulate = true,
                      .y = sum});
}

// The same lines bottom-up.
void SlstmBlock::cell_backward(Context& c, const Hyperparameters& hp, Tensor d_x,
                               const ops::Batch& batch, std::span<std::byte* const> d_slots,
                               const BlockState& state, const Saved& a, SlstmBlock& grads) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = d_x.dim(0);
  const auto rows = [&](std::int64_t width) {
    return c.arena().tensor(DType::f32, {tokens, width});
  };
  const Tensor d_h = rows(hp.d), d_u = rows(hp.d), d_wx = rows(4 * hp.d);

  // x += GN(dropout(h))
  Tensor h = a.h;
  if (a.dropout) {
    h = rows(hp.d);
    ops::dropout(c, {.x = a.h, .p = a.dropout.p, .key = a.dropout.key, .y = h});
  }
  ops::layer_norm_backward(c, {.x = h,
                               .w = group_norm,
                               .heads = heads,
                               .eps = hp.norm_eps,
                               .d_y = d_x,
                               .d_x = d_h,
                               .d_w = grads.group_norm});
  if (a.dropout) ops::dropout(c, {.x = d_h, .p = a.dropout.p, .key = a.dropout.key, .y = d_h});
  ops::slstm_backward(c, {.r = r,
                          .batch = batch,
                          .state = state.slstm,
                          .d_slots = d_slots,
                          .recurrent_clip = hp.recurrent_clip,
                          .recurrent_cut = hp.recurrent_cut,
                          .h = a.h,
                          .saved = a.cell,
                          .d_h = d_h,
                          .d_wx = d_wx,
                          .d_r = grads.r,
                          .d_b = grads.b});
  // z, o = W u;  i, f = W SiLU(conv(u))
  const auto gate = [&](const Tensor& x, const Tensor& w, std::int64_t slot, const Tensor& to,
                        bool accumulate, const Tensor& d_w) {
    ops::headwise_linear_backward(c, {.x = x,
                                      .w = w,
                                      .d_y = d_wx.cols(slot * hp.d, hp.d),
                                      .d_x = to,
                                      .accumulate = accumulate,
                                      .d_w = d_w,
                                      .d_b = {}});
  };
  gate(a.u, w_z, 2, d_u, false, grads.w_z);
  gate(a.u, w_o, 3, d_u, true, grads.w_o);
  const Tensor d_c = conv ? rows(hp.d) : d_u;
  gate(a.c, w_i, 0, d_c, !conv, grads.w_i);
  gate(a.c, w_f, 1, d_c, true, grads.w_f);
  if (conv)
    ops::causal_conv_backward(c, {.x = a.u,
                                  .w = conv,
                                  .b = conv_bias,
                                  .batch = batch,
                                  .window = state.window,
                                  .d_slots = d_slots,
                                  .silu = true,
                                  .d_y = d_c,
                                  .d_x = d_u,
                                  .d_w = grads.conv,
                                  .d_b = grads.conv_bias});
  ops::layer_norm_backward(c, {.x = a.x,
                               .w = norm,
                               .eps = hp.norm_eps,
                               .d_y = d_u,
                               .accumulate = true,
                               .d_x = d_x,
                               .d_w = grads.norm});
}

void SlstmBlock::feed_forward(Context& c, const Hyperparameters& hp, Tensor x,
                              const Saved& a) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  if (a.x_ffn) copy_rows(c, x, a.x_ffn);
  const Tensor u = a.u_ffn ? a.u_ffn : c.arena().tensor(hp.activation, {tokens, hp.d});
  const Tensor y = a.y_ffn ? a.y_ffn : c.arena().tensor(hp.activation, {tokens, f});

  ops::layer_norm(c, {.x = x, .w = ffn_norm, .b = {}, .eps = hp.norm_eps, .y = u});
  ops::linear(c, {.x = u, .w = w_up, .b = present(b_up), .y = a.gate_up});
  ops::gated_activation(
      c, {.gate = a.gate_up.cols(0, f), .up = a.gate_up.cols(f, f), .kind = activation, .y = y});
  add_branch(c, y, w_down, b_down, x, a.ffn_dropout);
}

// The same lines bottom-up.
void SlstmBlock::feed_forward_backward(Context& c, const Hyperparameters& hp, Tensor d_x,
                                       const Saved& a, SlstmBlock& grads) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = d_x.dim(0);
  const Tensor gate = a.gate_up.cols(0, f), up = a.gate_up.cols(f, f);
  const Tensor d_y = c.arena().tensor(DType::f32, {tokens, f});
  const Tensor d_gate_up = c.arena().tensor(DType::f32, {tokens, 2 * f});
  const Tensor d_u = c.arena().tensor(DType::f32, {tokens, hp.d});
  Tensor u = a.u_ffn, y = a.y_ffn;
  if (!u) {
    u = c.arena().tensor(hp.activation, {tokens, hp.d});
    ops::layer_norm(c, {.x = a.x_ffn, .w = ffn_norm, .b = {}, .eps = hp.norm_eps, .y = u});
  }
  if (!y) {
    y = c.arena().tensor(hp.activation, {tokens, f});
    ops::gated_activation(c, {.gate = gate, .up = up, .kind = activation, .y = y});
  }

  branch_backward(c, y, w_down, grads.w_down, grads.b_down, d_x, d_y, a.ffn_dropout);
  ops::gated_activation_backward(c, {.gate = gate,
                                     .up = up,
                                     .kind = activation,
                                     .d_y = d_y,
                                     .d_gate = d_gate_up.cols(0, f),
                                     .d_up = d_gate_up.cols(f, f)});
  ops::linear_backward(c, {.x = u,
                           .w = w_up,
                           .d_y = d_gate_up,
                           .d_x = d_u,
                           .d_w = grads.w_up,
                           .d_b = present(grads.b_up)});
  ops::layer_norm_backward(c, {.x = a.x_ffn,
                               .w = ffn_norm,
                               .eps = hp.norm_eps,
                               .d_y = d_u,
                               .accumulate = true,
                               .d_x = d_x,
                               .d_w = grads.ffn_norm});
}

}  // namespace xlstm::model
