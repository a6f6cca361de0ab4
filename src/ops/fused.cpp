#include "ops/fused.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "ops/activation.hpp"
#include "ops/check_args.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"

namespace xlstm::ops {
namespace {

void check_tokens(const char* op, std::int64_t tokens) {
  XLSTM_CHECK(tokens <= kFusedTokens, invalid_argument, "{}: expected at most {} tokens, found {}",
              op, kFusedTokens, tokens);
}

// Where the composition, run while measuring, ends.
template <class Args>
std::size_t measured(const Context& context, void (*composition)(Context&, const Args&),
                     const Args& args) {
  Context measuring(context.device(), context.threads());
  measuring.start_measuring();
  composition(measuring, args);
  return measuring.stop_measuring();
}

Tensor scratch(Context& c, DType dtype, std::int64_t rows, std::int64_t columns) {
  return c.arena().tensor(dtype, {rows, columns});
}

}  // namespace

void check_norm_linear(const NormLinearArgs& a) {
  constexpr const char* kOp = "norm_linear";
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  check_rms_norm({.x = a.x, .w = a.norm_w, .b = a.norm_b, .eps = a.eps, .y = a.x});
  Tensor u = a.x;
  u.dtype = a.activation;
  check_linear({.x = u, .w = a.w, .b = a.b, .y = a.y, .packed = a.packed});
  XLSTM_CHECK(tokens > kFusedTokens || a.y.dtype == DType::f32, invalid_argument,
              "{}: expected y in f32 for {} tokens, found {}", kOp, tokens, to_string(a.y.dtype));
  if (!a.w_i) return;
  const std::int64_t heads = a.w_i.dim(0);
  check_tensor(kOp, "w_i", a.w_i, Types::weight, {heads, width});
  check_tensor(kOp, "w_f", a.w_f, Types::weight, {heads, width});
  check_tensor(kOp, "b_i", a.b_i, Types::weight, {heads});
  check_tensor(kOp, "b_f", a.b_f, Types::weight, {heads});
  check_tensor(kOp, "i", a.i, Types::f32, {tokens, heads});
  check_tensor(kOp, "log_f", a.log_f, Types::f32, {tokens, heads});
}

std::size_t norm_linear_workspace(const Context& context, const NormLinearArgs& a) {
  return measured(context, composed::norm_linear, a);
}

void check_head_norm_linear(const HeadNormLinearArgs& a) {
  check_tokens("head_norm_linear", a.h.dim(0));
  check_head_norm(
      {.h = a.h, .o = a.o, .w = a.norm_w, .b = a.norm_b, .heads = a.heads, .eps = a.eps, .y = a.h});
  Tensor u = a.h;
  u.dtype = a.activation;
  check_linear({.x = u, .w = a.w, .b = a.b, .y = a.y, .accumulate = true, .packed = a.packed});
}

std::size_t head_norm_linear_workspace(const Context& context, const HeadNormLinearArgs& a) {
  return measured(context, composed::head_norm_linear, a);
}

void check_mlstm_head_norm_linear(const MlstmHeadNormLinearArgs& a) {
  check_mlstm(a.cell);
  check_head_norm_linear(a.norm);
  XLSTM_CHECK(a.cell.h.data == a.norm.h.data && a.cell.h.row_stride() == a.norm.h.row_stride(),
              invalid_argument, "mlstm_head_norm_linear: the norm is not that of the cell's h");
  XLSTM_CHECK(a.cell.state.pending == 0, invalid_argument,
              "mlstm_head_norm_linear: leaves no pending tokens");
  XLSTM_CHECK(!a.cell.saved, invalid_argument, "mlstm_head_norm_linear: saves nothing");
}

std::size_t mlstm_head_norm_linear_workspace(const Context& context,
                                             const MlstmHeadNormLinearArgs& a) {
  return measured(context, composed::mlstm_head_norm_linear, a);
}

void check_mlstm_head_norm(const MlstmHeadNormArgs& a) {
  check_mlstm(a.cell);
  check_head_norm(a.norm);
  XLSTM_CHECK(a.cell.h.data == a.norm.h.data && a.cell.h.row_stride() == a.norm.h.row_stride(),
              invalid_argument, "mlstm_head_norm: the norm is not that of the cell's h");
  XLSTM_CHECK(a.norm.heads == a.cell.i.dim(1), invalid_argument,
              "mlstm_head_norm: expected the cell's {} heads, found {}", a.cell.i.dim(1),
              a.norm.heads);
}

std::size_t mlstm_head_norm_workspace(const Context& context, const MlstmHeadNormArgs& a) {
  return std::max(mlstm_workspace(context, a.cell), head_norm_workspace(context, a.norm));
}

void check_norm_linear_swiglu(const NormLinearSwigluArgs& a) {
  constexpr const char* kOp = "norm_linear_swiglu";
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1), f = a.y.dim(1);
  check_tokens(kOp, tokens);
  check_rms_norm({.x = a.x, .w = a.norm_w, .b = a.norm_b, .eps = a.eps, .y = a.x});
  XLSTM_CHECK(a.w.size() == 2 && (a.b.empty() || a.b.size() == 2), invalid_argument,
              "{}: expected 2 weights and no or 2 biases, found {} and {}", kOp, a.w.size(),
              a.b.size());
  check_weights(kOp, a.w, f, width, a.packed);
  for (const Tensor& b : a.b) check_tensor(kOp, "b", b, Types::weight, {f});
  check_tensor(kOp, "y", a.y, Types::f32_bf16, {tokens, f});
}

std::size_t norm_linear_swiglu_workspace(const Context& context, const NormLinearSwigluArgs& a) {
  return measured(context, composed::norm_linear_swiglu, a);
}

RmsNormGatesArgs norm_gates_of(const NormLinearArgs& a, const Tensor& u) {
  return {.x = a.x,
          .w = a.norm_w,
          .b = a.norm_b,
          .w_i = a.w_i,
          .w_f = a.w_f,
          .b_i = a.b_i,
          .b_f = a.b_f,
          .eps = a.eps,
          .cap = a.cap,
          .u = u,
          .i = a.i,
          .log_f = a.log_f,
          .sigmoid_input = a.sigmoid_input};
}

namespace composed {

void norm_linear(Context& c, const NormLinearArgs& a) {
  const ArenaScope scope(c.arena());
  const Tensor u = scratch(c, a.activation, a.x.dim(0), a.x.dim(1));
  if (a.w_i)
    rms_norm_gates(c, norm_gates_of(a, u));
  else
    rms_norm(c, {.x = a.x, .w = a.norm_w, .b = a.norm_b, .eps = a.eps, .y = u});
  linear(c, {.x = u, .w = a.w, .b = a.b, .y = a.y, .packed = a.packed});
}

void head_norm_linear(Context& c, const HeadNormLinearArgs& a) {
  const ArenaScope scope(c.arena());
  const Tensor u = scratch(c, a.activation, a.h.dim(0), a.h.dim(1));
  head_norm(
      c,
      {.h = a.h, .o = a.o, .w = a.norm_w, .b = a.norm_b, .heads = a.heads, .eps = a.eps, .y = u});
  linear(c, {.x = u, .w = a.w, .b = a.b, .y = a.y, .accumulate = true, .packed = a.packed});
}

void mlstm_head_norm_linear(Context& c, const MlstmHeadNormLinearArgs& a) {
  const ArenaScope scope(c.arena());
  const HeadNormLinearArgs& n = a.norm;
  const Tensor u = scratch(c, n.activation, n.h.dim(0), n.h.dim(1));
  mlstm(c, a.cell);
  head_norm(
      c,
      {.h = n.h, .o = n.o, .w = n.norm_w, .b = n.norm_b, .heads = n.heads, .eps = n.eps, .y = u});
  linear(c, {.x = u, .w = n.w, .b = n.b, .y = n.y, .accumulate = true, .packed = n.packed});
}

void mlstm_head_norm(Context& c, const MlstmHeadNormArgs& a) {
  mlstm(c, a.cell);
  head_norm(c, a.norm);
}

void norm_linear_swiglu(Context& c, const NormLinearSwigluArgs& a) {
  const ArenaScope scope(c.arena());
  const std::int64_t tokens = a.x.dim(0), f = a.y.dim(1);
  const Tensor u = scratch(c, a.y.dtype, tokens, a.x.dim(1));
  const Tensor gate_up = scratch(c, DType::f32, tokens, 2 * f);
  rms_norm(c, {.x = a.x, .w = a.norm_w, .b = a.norm_b, .eps = a.eps, .y = u});
  linear(c, {.x = u, .w = a.w, .b = a.b, .y = gate_up, .packed = a.packed});
  swiglu(c, {.gate = gate_up.cols(0, f), .up = gate_up.cols(f, f), .y = a.y});
}

}  // namespace composed

namespace cpu {

void norm_linear(Context& c, const NormLinearArgs& a) { composed::norm_linear(c, a); }
void head_norm_linear(Context& c, const HeadNormLinearArgs& a) { composed::head_norm_linear(c, a); }
void mlstm_head_norm_linear(Context& c, const MlstmHeadNormLinearArgs& a) {
  composed::mlstm_head_norm_linear(c, a);
}
void mlstm_head_norm(Context& c, const MlstmHeadNormArgs& a) { composed::mlstm_head_norm(c, a); }
void norm_linear_swiglu(Context& c, const NormLinearSwigluArgs& a) {
  composed::norm_linear_swiglu(c, a);
}

}  // namespace cpu
}  // namespace xlstm::ops
