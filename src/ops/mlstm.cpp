#include "ops/mlstm.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/mlstm_plan.hpp"

namespace xlstm::ops {

void check_mlstm(const MlstmArgs& a) {
  constexpr const char* kOp = "mlstm";
  const Batch& batch = a.batch;
  check_batch(kOp, batch);
  const std::int64_t tokens = batch.tokens(), heads = a.i.dim(1);
  check_at_least(kOp, "the number of heads", heads, 1);
  check_at_least(kOp, "chunk", a.chunk, 1);
  check_tensor(kOp, "i", a.i, Types::f32, {tokens, heads});
  check_tensor(kOp, "log_f", a.log_f, Types::f32, {tokens, heads});
  const std::int64_t qk_width = a.q.dim(1), v_width = a.v.dim(1);
  XLSTM_CHECK(
      qk_width >= heads && qk_width % heads == 0 && v_width >= heads && v_width % heads == 0,
      invalid_argument, "{}: the widths {} of q and {} of v must be multiples of {} heads", kOp,
      qk_width, v_width, heads);
  check_tensor(kOp, "q", a.q, Types::f32, {tokens, qk_width});
  check_tensor(kOp, "k", a.k, Types::f32, {tokens, qk_width});
  check_tensor(kOp, "v", a.v, Types::f32, {tokens, v_width});
  check_tensor(kOp, "h", a.h, Types::f32, {tokens, v_width});
  XLSTM_CHECK(a.state.c % 4 == 0 && a.state.n % 4 == 0 && a.state.m % 4 == 0, invalid_argument,
              "{}: state offsets must be multiples of 4, found {}, {} and {}", kOp, a.state.c,
              a.state.n, a.state.m);
}

std::size_t mlstm_workspace(const Context& context, const MlstmArgs& a) {
  return cpu::MlstmPlan(a, context.threads()).bytes();
}

}  // namespace xlstm::ops
