#include "model/mlstm_layer.hpp"

#include "ops/linear.hpp"
#include "ops/mlstm.hpp"
#include "ops/norm.hpp"

namespace xlstm::model {

void MlstmLayer::forward(Context& c, const Hyperparameters& hp, Tensor x, const ops::Batch& batch,
                         ops::MlstmStateOffsets state) const {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = x.dim(0);
  const Tensor u = c.arena().tensor(hp.activation, {tokens, hp.d});
  const Tensor i = c.arena().tensor(DType::f32, {tokens, hp.heads});
  const Tensor log_f = c.arena().tensor(DType::f32, {tokens, hp.heads});
  const Tensor qkvo = c.arena().tensor(DType::f32, {tokens, 2 * hp.qk + 2 * hp.v});
  const Tensor q = qkvo.cols(0, hp.qk);
  const Tensor k = qkvo.cols(hp.qk, hp.qk);
  const Tensor v = qkvo.cols(2 * hp.qk, hp.v);
  const Tensor o = qkvo.cols(2 * hp.qk + hp.v, hp.v);
  const Tensor h = c.arena().tensor(DType::f32, {tokens, hp.v});
  const Tensor y =
      hp.activation == DType::f32 ? h : c.arena().tensor(hp.activation, {tokens, hp.v});

  // u = RMS(x) w;  i = cap(W_i u + b_i);  log f = log sigmoid(cap(W_f u + b_f));  mLSTMsig: i too
  ops::rms_norm_gates(c, {.x = x,
                          .w = norm,
                          .b = norm_bias,
                          .w_i = w_i,
                          .w_f = w_f,
                          .b_i = b_i,
                          .b_f = b_f,
                          .eps = hp.norm_eps,
                          .cap = hp.gate_cap,
                          .u = u,
                          .i = i,
                          .log_f = log_f,
                          .sigmoid_input = hp.gate == ops::MlstmGate::sigmoid});
  // q, k, v, o = W u
  ops::linear(c, {.x = u, .w = w_qkvo, .b = present(b_qkvo), .y = qkvo});
  // C, n, m and h of the cell
  ops::mlstm(c, {.q = q,
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
                 .normalise = hp.normalise});
  // y = sigmoid(o) LN(h)
  ops::head_norm(c, {.h = h,
                     .o = o,
                     .w = head_norm,
                     .b = head_norm_bias,
                     .heads = hp.heads,
                     .eps = hp.norm_eps,
                     .y = y});
  // x += W_out y
  ops::linear(c, {.x = y, .w = w_out, .b = present(b_out), .y = x, .accumulate = true});
}

}  // namespace xlstm::model
