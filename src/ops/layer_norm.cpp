#include "ops/layer_norm.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/norm_plan.hpp"

namespace xlstm::ops {
namespace {

void check_heads(const char* op, std::int64_t width, std::int64_t heads) {
  check_at_least(op, "heads", heads, 1);
  XLSTM_CHECK(width % heads == 0, invalid_argument,
              "{}: the width {} must be a multiple of the {} heads", op, width, heads);
}

}  // namespace

void check_layer_norm(const LayerNormArgs& a) {
  constexpr const char* kOp = "layer_norm";
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  check_heads(kOp, width, a.heads);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, width});
  if (a.w) check_tensor(kOp, "w", a.w, Types::weight, {width});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {width});
  check_tensor(kOp, "y", a.y, a.accumulate ? Types::f32 : Types::f32_bf16, {tokens, width});
}

std::size_t layer_norm_workspace(const Context&, const LayerNormArgs&) { return 0; }

void check_skip_gate(const SkipGateArgs& a) {
  constexpr const char* kOp = "skip_gate";
  const std::int64_t tokens = a.h.dim(0), width = a.h.dim(1);
  check_heads(kOp, width, a.heads);
  check_tensor(kOp, "h", a.h, a.h.device.is_cpu() ? Types::f32 : Types::f32_bf16, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width});
  check_tensor(kOp, "skip", a.skip, Types::weight, {width});
  check_tensor(kOp, "c", a.c, Types::f32, {tokens, width});
  check_tensor(kOp, "z", a.z, Types::f32, {tokens, width});
  check_tensor(kOp, "y", a.y, Types::f32_bf16, {tokens, width});
}

std::size_t skip_gate_workspace(const Context&, const SkipGateArgs&) { return 0; }

void check_layer_norm_backward(const LayerNormBackwardArgs& a) {
  constexpr const char* kOp = "layer_norm_backward";
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  check_heads(kOp, width, a.heads);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, width});
  if (a.w) check_tensor(kOp, "w", a.w, Types::weight, {width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  check_tensor(kOp, "d_x", a.d_x, Types::f32, {tokens, width});
  if (a.d_w) check_tensor(kOp, "d_w", a.d_w, Types::f32, {width});
}

std::size_t layer_norm_backward_workspace(const Context&, const LayerNormBackwardArgs& a) {
  return cpu::NormBackwardPlan(a.x.dim(0), a.x.dim(1)).bytes();
}

void check_skip_gate_backward(const SkipGateBackwardArgs& a) {
  constexpr const char* kOp = "skip_gate_backward";
  const std::int64_t tokens = a.h.dim(0), width = a.h.dim(1);
  check_heads(kOp, width, a.heads);
  check_tensor(kOp, "h", a.h, Types::f32, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width});
  check_tensor(kOp, "skip", a.skip, Types::weight, {width});
  check_tensor(kOp, "c", a.c, Types::f32, {tokens, width});
  check_tensor(kOp, "z", a.z, Types::f32, {tokens, width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  check_tensor(kOp, "d_h", a.d_h, Types::f32, {tokens, width});
  check_tensor(kOp, "d_c", a.d_c, Types::f32, {tokens, width});
  check_tensor(kOp, "d_z", a.d_z, Types::f32, {tokens, width});
  check_tensor(kOp, "d_w", a.d_w, Types::f32, {width});
  check_tensor(kOp, "d_skip", a.d_skip, Types::f32, {width});
}

std::size_t skip_gate_backward_workspace(const Context&, const SkipGateBackwardArgs& a) {
  return cpu::NormBackwardPlan(a.h.dim(0), a.h.dim(1)).bytes();
}

}  // namespace xlstm::ops
