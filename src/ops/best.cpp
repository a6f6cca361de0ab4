#include "ops/best.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cuda/best_plan.hpp"

namespace xlstm::ops {

void check_best_logits(const BestLogitsArgs& a) {
  constexpr const char* kOp = "best_logits";
  const std::int64_t rows = a.logits.dim(0), count = a.values.dim(1);
  check_at_least(kOp, "the number of best logits", count, 1);
  XLSTM_CHECK(count <= kMostBest && count <= a.logits.dim(1), invalid_argument,
              "{}: expected at most {} of {} logits, found {}", kOp, kMostBest, a.logits.dim(1),
              count);
  check_tensor(kOp, "logits", a.logits, Types::f32, {rows, a.logits.dim(1)});
  check_tensor(kOp, "values", a.values, Types::f32, {rows, count});
  XLSTM_CHECK(
      a.ids.dtype == DType::i32 && a.ids.rank == 2 && a.ids.dim(0) == rows && a.ids.dim(1) == count,
      invalid_argument, "{}: expected ids i32[{}, {}], found {}", kOp, rows, count,
      to_string(a.ids));
}

std::size_t best_logits_workspace(const Context& context, const BestLogitsArgs& a) {
  if (context.device().is_cpu()) return 0;
  return cuda::BestPlan(a.logits.dim(0), a.logits.dim(1), a.values.dim(1)).bytes();
}

}  // namespace xlstm::ops
