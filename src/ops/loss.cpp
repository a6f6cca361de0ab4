#include "ops/loss.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"

namespace xlstm::ops {

void check_cross_entropy(const CrossEntropyArgs& a) {
  constexpr const char* kOp = "cross_entropy";
  const auto tokens = static_cast<std::int64_t>(a.targets.size());
  const std::int64_t vocabulary = a.logits.dim(1);
  check_at_least(kOp, "the number of targets", tokens, 1);
  check_at_least(kOp, "the number of logits", vocabulary, 1);
  check_tensor(kOp, "logits", a.logits, Types::f32, {tokens, vocabulary});
  XLSTM_CHECK(a.cap >= 0, invalid_argument, "{}: cap must not be negative, found {}", kOp, a.cap);
  XLSTM_CHECK(a.loss_sum != nullptr, invalid_argument, "{}: loss_sum must not be null", kOp);
  for (std::int32_t target : a.targets)
    XLSTM_CHECK(target >= -1 && target < vocabulary, invalid_argument,
                "{}: targets must be in [0, {}), or -1, found {}", kOp, vocabulary, target);
}

std::size_t cross_entropy_workspace(const Context&, const CrossEntropyArgs& a) {
  return a.targets.size() * sizeof(double);  // the loss of every token
}

}  // namespace xlstm::ops
