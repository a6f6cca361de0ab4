#include "ops/slstm.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/slstm_plan.hpp"

namespace xlstm::ops {

void check_slstm(const SlstmArgs& a) {
  constexpr const char* kOp = "slstm";
  check_batch(kOp, a.batch);
  const std::int64_t tokens = a.batch.tokens(), heads = a.r.dim(0), head = a.r.dim(2);
  const std::int64_t width = heads * head;
  check_at_least(kOp, "the number of heads", heads, 1);
  check_at_least(kOp, "the width of a head", head, 1);
  check_tensor(kOp, "wx", a.wx, Types::f32, {tokens, 4 * width});
  check_tensor(kOp, "r", a.r, Types::weight, {heads, 4 * head, head});
  check_tensor(kOp, "b", a.b, Types::weight, {4 * width});
  check_tensor(kOp, "h", a.h, Types::f32, {tokens, width});
  XLSTM_CHECK(a.state.h % 4 == 0 && a.state.c % 4 == 0 && a.state.n % 4 == 0 && a.state.m % 4 == 0,
              invalid_argument, "{}: state offsets must be multiples of 4, found {}, {}, {} and {}",
              kOp, a.state.h, a.state.c, a.state.n, a.state.m);
}

std::size_t slstm_workspace(const Context& context, const SlstmArgs& a) {
  return cpu::SlstmPlan(a, context.threads()).bytes();
}

}  // namespace xlstm::ops
