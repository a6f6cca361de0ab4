#include "ops/headwise.hpp"

#include "ops/check_args.hpp"
#include "ops/cpu/headwise_plan.hpp"

namespace xlstm::ops {

void check_headwise_linear(const HeadwiseLinearArgs& a) {
  constexpr const char* kOp = "headwise_linear";
  const std::int64_t tokens = a.x.dim(0), blocks = a.w.dim(0), out = a.w.dim(1), in = a.w.dim(2);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, blocks * in});
  check_tensor(kOp, "w", a.w, Types::weight, {blocks, out, in});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {blocks * out});
  check_tensor(kOp, "y", a.y, a.y.device.is_cpu() ? Types::f32 : Types::f32_bf16,
               {tokens, blocks * out});
}

std::size_t headwise_linear_workspace(const Context& context, const HeadwiseLinearArgs& a) {
  if (!context.device().is_cpu()) return 0;
  return cpu::headwise_workspace_bytes(context, a);
}

void check_headwise_linear_backward(const HeadwiseLinearBackwardArgs& a) {
  constexpr const char* kOp = "headwise_linear_backward";
  const std::int64_t tokens = a.x.dim(0), blocks = a.w.dim(0), out = a.w.dim(1), in = a.w.dim(2);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, blocks * in});
  check_tensor(kOp, "w", a.w, Types::weight, {blocks, out, in});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, blocks * out});
  check_tensor(kOp, "d_x", a.d_x, Types::f32, {tokens, blocks * in});
  check_tensor(kOp, "d_w", a.d_w, Types::f32, {blocks, out, in});
  if (a.d_b) check_tensor(kOp, "d_b", a.d_b, Types::f32, {blocks * out});
}

std::size_t headwise_linear_backward_workspace(const Context& context,
                                               const HeadwiseLinearBackwardArgs& a) {
  return cpu::headwise_backward_workspace_bytes(context, a);
}

}  // namespace xlstm::ops
