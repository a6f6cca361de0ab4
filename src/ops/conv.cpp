#include "ops/conv.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"

namespace xlstm::ops {

void check_causal_conv(const CausalConvArgs& a) {
  constexpr const char* kOp = "causal_conv";
  check_batch(kOp, a.batch);
  const std::int64_t tokens = a.batch.tokens(), width = a.w.dim(0), kernel = a.w.dim(2);
  check_at_least(kOp, "the number of taps", kernel, 1);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width, 1, kernel});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {width});
  check_tensor(kOp, "y", a.y, Types::f32, {tokens, width});
  XLSTM_CHECK(a.window % sizeof(float) == 0, invalid_argument,
              "{}: the window's offset must be a multiple of 4, found {}", kOp, a.window);
}

// The taps and the bias in float32, tap after tap; kernels of CUDA read them as they are.
std::size_t causal_conv_workspace(const Context& context, const CausalConvArgs& a) {
  if (!context.device().is_cpu()) return 0;
  return static_cast<std::size_t>(a.w.dim(0) * (a.w.dim(2) + 1)) * sizeof(float);
}

void check_causal_conv_backward(const CausalConvBackwardArgs& a) {
  constexpr const char* kOp = "causal_conv_backward";
  check_batch(kOp, a.batch);
  const std::int64_t tokens = a.batch.tokens(), width = a.w.dim(0), kernel = a.w.dim(2);
  check_at_least(kOp, "the number of taps", kernel, 1);
  check_tensor(kOp, "x", a.x, Types::f32, {tokens, width});
  check_tensor(kOp, "w", a.w, Types::weight, {width, 1, kernel});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  check_tensor(kOp, "d_x", a.d_x, Types::f32, {tokens, width});
  check_tensor(kOp, "d_w", a.d_w, Types::f32, {width, 1, kernel});
  if (a.d_b) check_tensor(kOp, "d_b", a.d_b, Types::f32, {width});
  XLSTM_CHECK(a.window % sizeof(float) == 0, invalid_argument,
              "{}: the window's offset must be a multiple of 4, found {}", kOp, a.window);
  XLSTM_CHECK(a.d_slots.empty() || a.d_slots.size() == a.batch.slots.size(), invalid_argument,
              "{}: expected no d_slots or {}, found {}", kOp, a.batch.slots.size(),
              a.d_slots.size());
}

// Taps and bias in float32, tap after tap; their gradients; a window's gradient.
std::size_t causal_conv_backward_workspace(const Context&, const CausalConvBackwardArgs& a) {
  return static_cast<std::size_t>(a.w.dim(0) * (3 * a.w.dim(2) + 1)) * sizeof(float);
}

}  // namespace xlstm::ops
