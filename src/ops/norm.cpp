#include "ops/norm.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/norm_plan.hpp"

namespace xlstm::ops {

void check_rms_norm(const RmsNormArgs& a) {
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  check_tensor("rms_norm", "x", a.x, Types::f32, {tokens, width});
  check_tensor("rms_norm", "w", a.w, Types::weight, {width});
  if (a.b) check_tensor("rms_norm", "b", a.b, Types::weight, {width});
  check_tensor("rms_norm", "y", a.y, Types::f32_bf16, {tokens, width});
}

std::size_t rms_norm_workspace(const Context&, const RmsNormArgs&) { return 0; }

void check_rms_norm_gates(const RmsNormGatesArgs& a) {
  constexpr const char* kOp = "rms_norm_gates";
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1), heads = a.w_i.dim(0);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {width});
  check_tensor(kOp, "w_i", a.w_i, Types::weight, {heads, width});
  check_tensor(kOp, "w_f", a.w_f, Types::weight, {heads, width});
  check_tensor(kOp, "b_i", a.b_i, Types::weight, {heads});
  check_tensor(kOp, "b_f", a.b_f, Types::weight, {heads});
  check_tensor(kOp, "u", a.u, Types::f32_bf16, {tokens, width});
  check_tensor(kOp, "i", a.i, Types::f32, {tokens, heads});
  check_tensor(kOp, "log_f", a.log_f, Types::f32, {tokens, heads});
  XLSTM_CHECK(a.cap >= 0, invalid_argument, "{}: cap must not be negative, found {}", kOp, a.cap);
}

std::size_t rms_norm_gates_workspace(const Context&, const RmsNormGatesArgs&) { return 0; }

void check_head_norm(const HeadNormArgs& a) {
  const std::int64_t tokens = a.h.dim(0), width = a.h.dim(1);
  check_at_least("head_norm", "heads", a.heads, 1);
  XLSTM_CHECK(width % a.heads == 0, invalid_argument,
              "head_norm: the width {} must be a multiple of the {} heads", width, a.heads);
  const Types types = a.h.device.is_cpu() ? Types::f32 : Types::f32_bf16;
  check_tensor("head_norm", "h", a.h, types, {tokens, width});
  check_tensor("head_norm", "o", a.o, types, {tokens, width});
  XLSTM_CHECK(a.o.dtype == a.h.dtype, invalid_argument,
              "head_norm: expected o of the type of h, {}, found {}", to_string(a.h.dtype),
              to_string(a.o));
  check_tensor("head_norm", "w", a.w, Types::weight, {width});
  if (a.b) check_tensor("head_norm", "b", a.b, Types::weight, {width});
  check_tensor("head_norm", "y", a.y, Types::f32_bf16, {tokens, width});
}

std::size_t head_norm_workspace(const Context&, const HeadNormArgs&) { return 0; }

void check_rms_norm_backward(const RmsNormBackwardArgs& a) {
  constexpr const char* kOp = "rms_norm_backward";
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  check_tensor(kOp, "d_x", a.d_x, Types::f32, {tokens, width});
  if (a.d_w) check_tensor(kOp, "d_w", a.d_w, Types::f32, {width});
  if (a.d_b) check_tensor(kOp, "d_b", a.d_b, Types::f32, {width});
}

std::size_t rms_norm_backward_workspace(const Context&, const RmsNormBackwardArgs& a) {
  return cpu::NormBackwardPlan(a.x.dim(0), a.x.dim(1)).bytes();
}

void check_rms_norm_gates_backward(const RmsNormGatesBackwardArgs& a) {
  constexpr const char* kOp = "rms_norm_gates_backward";
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1), heads = a.w_i.dim(0);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {width});
  check_tensor(kOp, "w_i", a.w_i, Types::weight, {heads, width});
  check_tensor(kOp, "w_f", a.w_f, Types::weight, {heads, width});
  check_tensor(kOp, "i", a.i, Types::f32, {tokens, heads});
  check_tensor(kOp, "log_f", a.log_f, Types::f32, {tokens, heads});
  check_tensor(kOp, "d_i", a.d_i, Types::f32, {tokens, heads});
  check_tensor(kOp, "d_log_f", a.d_log_f, Types::f32, {tokens, heads});
  check_tensor(kOp, "d_u", a.d_u, Types::f32, {tokens, width});
  check_tensor(kOp, "d_x", a.d_x, Types::f32, {tokens, width});
  check_tensor(kOp, "d_w", a.d_w, Types::f32, {width});
  if (a.d_b) check_tensor(kOp, "d_b", a.d_b, Types::f32, {width});
  check_tensor(kOp, "d_w_i", a.d_w_i, Types::f32, {heads, width});
  check_tensor(kOp, "d_w_f", a.d_w_f, Types::f32, {heads, width});
  check_tensor(kOp, "d_b_i", a.d_b_i, Types::f32, {heads});
  check_tensor(kOp, "d_b_f", a.d_b_f, Types::f32, {heads});
  XLSTM_CHECK(a.cap >= 0, invalid_argument, "{}: cap must not be negative, found {}", kOp, a.cap);
}

std::size_t rms_norm_gates_backward_workspace(const Context&, const RmsNormGatesBackwardArgs& a) {
  return cpu::NormBackwardPlan(a.x.dim(0), a.x.dim(1)).bytes();
}

void check_head_norm_backward(const HeadNormBackwardArgs& a) {
  constexpr const char* kOp = "head_norm_backward";
  const std::int64_t tokens = a.h.dim(0), width = a.h.dim(1);
  check_at_least(kOp, "heads", a.heads, 1);
  XLSTM_CHECK(width % a.heads == 0, invalid_argument,
              "{}: the width {} must be a multiple of the {} heads", kOp, width, a.heads);
  check_tensor(kOp, "h", a.h, Types::f32, {tokens, width});
  check_tensor(kOp, "o", a.o, Types::f32, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  check_tensor(kOp, "d_h", a.d_h, Types::f32, {tokens, width});
  check_tensor(kOp, "d_o", a.d_o, Types::f32, {tokens, width});
  check_tensor(kOp, "d_w", a.d_w, Types::f32, {width});
  if (a.d_b) check_tensor(kOp, "d_b", a.d_b, Types::f32, {width});
}

std::size_t head_norm_backward_workspace(const Context&, const HeadNormBackwardArgs& a) {
  return cpu::NormBackwardPlan(a.h.dim(0), a.h.dim(1)).bytes();
}

}  // namespace xlstm::ops
