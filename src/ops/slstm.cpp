#include "ops/slstm.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/slstm_plan.hpp"
#include "ops/cuda/slstm_grid_plan.hpp"

namespace xlstm::ops {
namespace {

void check_recurrent(const char* op, const Tensor& r, const SlstmStateOffsets& state) {
  XLSTM_CHECK(r.rank == 3, invalid_argument, "{}: r must be [H, 4 DH, DH], found {}", op,
              r ? to_string(r) : "no tensor");
  check_at_least(op, "the number of heads", r.dim(0), 1);
  check_at_least(op, "the width of a head", r.dim(2), 1);
  check_tensor(op, "r", r, Types::weight, {r.dim(0), 4 * r.dim(2), r.dim(2)});
  XLSTM_CHECK(state.h % 4 == 0 && state.c % 4 == 0 && state.n % 4 == 0 && state.m % 4 == 0,
              invalid_argument, "{}: state offsets must be multiples of 4, found {}, {}, {} and {}",
              op, state.h, state.c, state.n, state.m);
}

void check_saved(const char* op, const SlstmSaved& saved, std::int64_t tokens, std::int64_t width) {
  check_tensor(op, "saved.gates", saved.gates, Types::f32, {tokens, 4 * width});
  check_tensor(op, "saved.closed", saved.closed, Types::f32, {tokens, width});
  check_tensor(op, "saved.c", saved.c, Types::f32, {tokens, width});
  check_tensor(op, "saved.n", saved.n, Types::f32, {tokens, width});
}

}  // namespace

void check_slstm(const SlstmArgs& a) {
  constexpr const char* kOp = "slstm";
  check_batch(kOp, a.batch);
  check_recurrent(kOp, a.r, a.state);
  const std::int64_t tokens = a.batch.tokens(), width = a.r.dim(0) * a.r.dim(2);
  check_tensor(kOp, "wx", a.wx, Types::f32, {tokens, 4 * width});
  if (a.b) check_tensor(kOp, "b", a.b, Types::weight, {4 * width});
  check_tensor(kOp, "h", a.h, Types::f32, {tokens, width});
  if (a.saved) check_saved(kOp, a.saved, tokens, width);
  XLSTM_CHECK(a.product == DType::f32 || a.product == DType::bf16, invalid_argument,
              "{}: product must be f32 or bf16, found {}", kOp, to_string(a.product));
}

std::size_t slstm_workspace(const Context& context, const SlstmArgs& a) {
  if (!context.device().is_cpu()) return cuda::SlstmGridPlan(a.batch, a.r, a.product).scratch();
  return cpu::SlstmPlan(a.batch, a.r, context.threads()).forward_bytes();
}

void check_slstm_backward(const SlstmBackwardArgs& a) {
  constexpr const char* kOp = "slstm_backward";
  check_batch(kOp, a.batch);
  check_recurrent(kOp, a.r, a.state);
  const std::int64_t tokens = a.batch.tokens(), width = a.r.dim(0) * a.r.dim(2);
  XLSTM_CHECK(a.d_slots.empty() || a.d_slots.size() == a.batch.slots.size(), invalid_argument,
              "{}: expected no d_slots, or one per sequence ({}), found {}", kOp,
              a.batch.slots.size(), a.d_slots.size());
  XLSTM_CHECK(a.recurrent_clip >= 0, invalid_argument,
              "{}: recurrent_clip must not be negative, found {}", kOp, a.recurrent_clip);
  check_tensor(kOp, "h", a.h, Types::f32, {tokens, width});
  check_saved(kOp, a.saved, tokens, width);
  check_tensor(kOp, "d_h", a.d_h, Types::f32, {tokens, width});
  check_tensor(kOp, "d_wx", a.d_wx, Types::f32, {tokens, 4 * width});
  check_tensor(kOp, "d_r", a.d_r, Types::f32, {a.r.dim(0), 4 * a.r.dim(2), a.r.dim(2)});
  if (a.d_b) check_tensor(kOp, "d_b", a.d_b, Types::f32, {4 * width});
}

std::size_t slstm_backward_workspace(const Context& context, const SlstmBackwardArgs& a) {
  return cpu::SlstmPlan(a.batch, a.r, context.threads()).backward_bytes();
}

}  // namespace xlstm::ops
