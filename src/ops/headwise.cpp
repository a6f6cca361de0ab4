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
  check_tensor(kOp, "y", a.y, Types::f32, {tokens, blocks * out});
}

std::size_t headwise_linear_workspace(const Context& context, const HeadwiseLinearArgs& a) {
  return cpu::headwise_workspace_bytes(context, a);
}

}  // namespace xlstm::ops
