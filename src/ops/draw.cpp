#include "ops/draw.hpp"

#include "core/check.hpp"
#include "ops/best.hpp"
#include "ops/check_args.hpp"
#include "ops/cuda/best_plan.hpp"

namespace xlstm::ops {

namespace {

constexpr const char* kOp = "draw_tokens";

/// @param second  0: a vector
void check_memory(const char* name, const Tensor& t, DType dtype, std::int64_t first,
                  std::int64_t second = 0) {
  const bool right = t.dtype == dtype && t.is_dense() && t.rank == (second > 0 ? 2 : 1) &&
                     t.dim(0) == first && (second == 0 || t.dim(1) == second);
  XLSTM_CHECK(right, invalid_argument, "{}: {}: expected {}[{}{}], found {}", kOp, name,
              to_string(dtype), first, second > 0 ? fmt::format(", {}", second) : "", to_string(t));
}

}  // namespace

void check_draw_tokens(const DrawTokensArgs& a) {
  const std::int64_t rows = a.logits.dim(0);
  check_tensor(kOp, "logits", a.logits, Types::f32, {rows, a.logits.dim(1)});
  check_at_least(kOp, "the number of candidates", a.count, 1);
  XLSTM_CHECK(a.count <= kMostBest && a.count <= a.logits.dim(1), invalid_argument,
              "{}: expected at most {} of {} logits, found {}", kOp, kMostBest, a.logits.dim(1),
              a.count);
  check_tensor(kOp, "values", a.values, Types::f32, {rows});
  check_memory("draws", a.draws, DType::u8, rows, sizeof(Draw));
  check_memory("ends", a.ends, DType::i32, a.ends.dim(0));
  check_memory("slots", a.slots, DType::u8, rows, sizeof(std::byte*));
  check_memory("next", a.next, DType::i32, rows);
  check_memory("ids", a.ids, DType::i32, rows);
}

std::size_t draw_tokens_workspace(const Context& context, const DrawTokensArgs& a) {
  if (context.device().is_cpu()) return 0;
  return cuda::BestPlan(a.logits.dim(0), a.logits.dim(1), a.count).bytes();
}

}  // namespace xlstm::ops
