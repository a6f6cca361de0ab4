#include "model/mlstm_layer.hpp"

#include "ops/fused.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {

namespace {

// Columns of q, k, v and o~ side by side, or of their gradients.
struct Qkvo {
  Tensor q, k, v, o;
  Qkvo(const Tensor& all, const Hyperparameters& hp)
      : q(all.cols(0, hp.qk)),
        k(all.cols(hp.qk, hp.qk)),
        v(all.cols(2 * hp.qk, hp.v)),
        o(all.cols(2 * hp.qk + hp.v, hp.v)) {}
};

}  // namespace

MlstmLayer::Saved MlstmLayer::make_saved(Arena& arena, const Hyperparameters& hp,
                                         std::int64_t tokens, Keep keep, std::uint64_t key,
                                         DType cell) {
  Saved s;
  if (keep != Keep::nothing) {
    s.x = arena.tensor(DType::f32, {tokens, hp.d});
    s.dropout = {hp.dropout, key};
  }
  if (keep == Keep::all) s.u = arena.tensor(hp.activation, {tokens, hp.d});
  s.i = arena.tensor(DType::f32, {tokens, hp.heads});
  s.log_f = arena.tensor(DType::f32, {tokens, hp.heads});
  s.qkvo = arena.tensor(cell, {tokens, 2 * hp.qk + 2 * hp.v});
  s.h = arena.tensor(cell, {tokens, hp.v});
  if (keep == Keep::all) s.y = arena.tensor(hp.activation, {tokens, hp.v});
  return s;
}

void MlstmLayer::forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                         ops::MlstmStateOffsets state, const Saved* saved,
                         const Wanted* wanted) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const bool fused = saved == nullptr && ops::fuses(c, tokens);  // the same in fewer kernels
  const bool coded = saved == nullptr && e4m3_out[0] && reads_e4m3(batch, tokens);
  const Saved kept = saved != nullptr ? *saved
                                      : make_saved(c.arena(), hp, tokens, Keep::nothing, 0,
                                                   cell_type(c, hp, tokens));
  const auto& [x_before, kept_u, i, log_f, qkvo, h, kept_y, dropout] = kept;
  if (x_before) copy_rows(c, x, x_before);
  const bool in_place = saved == nullptr && hp.activation == h.dtype;
  const Tensor y = kept_y ? kept_y : in_place ? h : c.arena().tensor(hp.activation, {tokens, hp.v});
  const auto [q, k, v, o] = Qkvo(qkvo, hp);
  if (!ops::pends(c, batch, hp.pends_from, state.c_type)) state.pending = 0;

  // u = RMS(x) w;  i = cap(W_i u + b_i);  log f = log sigmoid(cap(W_f u + b_f));  mLSTMsig: i too
  // q, k, v, o = W u
  const ops::NormLinearArgs products{.x = x,
                                     .norm_w = norm,
                                     .norm_b = norm_bias,
                                     .eps = hp.norm_eps,
                                     .activation = hp.activation,
                                     .w = w_qkvo,
                                     .b = present(b_qkvo),
                                     .y = qkvo,
                                     .w_i = w_i,
                                     .w_f = w_f,
                                     .b_i = b_i,
                                     .b_f = b_f,
                                     .cap = hp.gate_cap,
                                     .sigmoid_input = hp.gate == ops::MlstmGate::sigmoid,
                                     .i = i,
                                     .log_f = log_f,
                                     .packed = present(packed_qkvo)};
  if (saved == nullptr && !coded) {
    ops::norm_linear(c, products);
  } else {
    const Tensor u = kept_u ? kept_u : c.arena().tensor(hp.activation, {tokens, hp.d});
    ops::rms_norm_gates(c, ops::norm_gates_of(products, u));
    if (coded) {
      const ArenaScope codes(c.arena());
      ops::linear_e4m3(
          c, {.x = to_e4m3(c, u, e4m3_qkvo[0]), .w = e4m3_qkvo, .b = present(b_qkvo), .y = qkvo});
    } else {
      ops::linear(c, {.x = u, .w = w_qkvo, .b = present(b_qkvo), .y = qkvo});
    }
  }
  const ops::MlstmArgs cell{.q = q,
                            .k = k,
                            .v = v,
                            .i = i,
                            .log_f = log_f,
                            .batch = batch,
                            .state = state,
                            .chunk = hp.chunk,
                            .eps = hp.cell_eps,
                            .h = h,
                            .gate = hp.gate,
                            .normalise = hp.normalise};
  // C, n, m and h of the cell;  y = sigmoid(o) LN(h);  x += W_out y
  if (wanted != nullptr) {
    ops::mlstm(c, cell);
    if (wanted->none()) return;
    const Tensor few_h = take_rows(c, wanted->rows, h);
    const Tensor few_y = c.arena().tensor(hp.activation, {few_h.dim(0), hp.v});
    ops::head_norm(c, {.h = few_h,
                       .o = take_rows(c, wanted->rows, o),
                       .w = head_norm,
                       .b = head_norm_bias,
                       .heads = hp.heads,
                       .eps = hp.norm_eps,
                       .y = few_y});
    add_branch(c, few_y, w_out, b_out, wanted->x, {}, packed_out);
  } else if (fused && state.pending == 0) {
    ops::mlstm_head_norm_linear(c, {.cell = cell,
                                    .norm = {.h = h,
                                             .o = o,
                                             .norm_w = head_norm,
                                             .norm_b = head_norm_bias,
                                             .heads = hp.heads,
                                             .eps = hp.norm_eps,
                                             .activation = hp.activation,
                                             .w = w_out,
                                             .b = present(b_out),
                                             .y = x,
                                             .packed = present(packed_out)}});
  } else {
    const ops::HeadNormArgs normed{.h = h,
                                   .o = o,
                                   .w = head_norm,
                                   .b = head_norm_bias,
                                   .heads = hp.heads,
                                   .eps = hp.norm_eps,
                                   .y = y};
    if (saved == nullptr) {
      ops::mlstm_head_norm(c, {.cell = cell, .norm = normed});
    } else {  // h is kept
      ops::mlstm(c, cell);
      ops::head_norm(c, normed);
    }
    if (coded)
      add_e4m3_branch(c, y, e4m3_out, b_out, x);
    else
      add_branch(c, y, w_out, b_out, x, dropout, packed_out);
  }
}

// The same lines bottom-up.
void MlstmLayer::backward(Context& c, const Hyperparameters& hp, Tensor d_x,
                          const ops::Batch& batch, std::span<std::byte* const> d_slots,
                          ops::MlstmStateOffsets state, const Saved& a, MlstmLayer& grads) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = d_x.dim(0);
  const auto [q, k, v, o] = Qkvo(a.qkvo, hp);
  const Tensor d_y = c.arena().tensor(DType::f32, {tokens, hp.v});  // becomes d_h
  const Tensor d_qkvo = c.arena().tensor(DType::f32, {tokens, 2 * hp.qk + 2 * hp.v});
  const auto [d_q, d_k, d_v, d_o] = Qkvo(d_qkvo, hp);
  const Tensor d_i = c.arena().tensor(DType::f32, {tokens, hp.heads});
  const Tensor d_log_f = c.arena().tensor(DType::f32, {tokens, hp.heads});
  const Tensor d_u = c.arena().tensor(DType::f32, {tokens, hp.d});
  Tensor u = a.u, y = a.y;
  if (!u) {
    u = c.arena().tensor(hp.activation, {tokens, hp.d});
    ops::rms_norm(c, {.x = a.x, .w = norm, .b = norm_bias, .eps = hp.norm_eps, .y = u});
  }
  if (!y) {
    y = c.arena().tensor(hp.activation, {tokens, hp.v});
    ops::head_norm(c, {.h = a.h,
                       .o = o,
                       .w = head_norm,
                       .b = head_norm_bias,
                       .heads = hp.heads,
                       .eps = hp.norm_eps,
                       .y = y});
  }

  // x += W_out y
  branch_backward(c, y, w_out, grads.w_out, grads.b_out, d_x, d_y, a.dropout);
  // y = sigmoid(o) LN(h)
  ops::head_norm_backward(c, {.h = a.h,
                              .o = o,
                              .w = head_norm,
                              .b = head_norm_bias,
                              .heads = hp.heads,
                              .eps = hp.norm_eps,
                              .d_y = d_y,
                              .d_h = d_y,
                              .d_o = d_o,
                              .d_w = grads.head_norm,
                              .d_b = grads.head_norm_bias});
  // C, n, m and h of the cell
  ops::mlstm_backward(c, {.q = q,
                          .k = k,
                          .v = v,
                          .i = a.i,
                          .log_f = a.log_f,
                          .batch = batch,
                          .state = state,
                          .d_slots = d_slots,
                          .eps = hp.cell_eps,
                          .gate = hp.gate,
                          .normalise = hp.normalise,
                          .exact = hp.exact_backward,
                          .h = a.h,
                          .d_h = d_y,
                          .d_q = d_q,
                          .d_k = d_k,
                          .d_v = d_v,
                          .d_i = d_i,
                          .d_log_f = d_log_f});
  // q, k, v, o = W u
  ops::linear_backward(c, {.x = u,
                           .w = w_qkvo,
                           .d_y = d_qkvo,
                           .d_x = d_u,
                           .d_w = grads.w_qkvo,
                           .d_b = present(grads.b_qkvo)});
  // u = RMS(x) w;  i = cap(W_i u + b_i);  log f = log sigmoid(cap(W_f u + b_f))
  ops::rms_norm_gates_backward(c, {.x = a.x,
                                   .w = norm,
                                   .b = norm_bias,
                                   .w_i = w_i,
                                   .w_f = w_f,
                                   .eps = hp.norm_eps,
                                   .cap = hp.gate_cap,
                                   .sigmoid_input = hp.gate == ops::MlstmGate::sigmoid,
                                   .i = a.i,
                                   .log_f = a.log_f,
                                   .d_i = d_i,
                                   .d_log_f = d_log_f,
                                   .d_u = d_u,
                                   .d_x = d_x,
                                   .d_w = grads.norm,
                                   .d_b = grads.norm_bias,
                                   .d_w_i = grads.w_i,
                                   .d_w_f = grads.w_f,
                                   .d_b_i = grads.b_i,
                                   .d_b_f = grads.b_f});
}

}  // namespace xlstm::model
