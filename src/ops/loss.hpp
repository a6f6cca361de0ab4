#pragma once
// The loss of a language model and its gradient.

#include <cstdint>
#include <span>

#include "ops/op.hpp"

namespace xlstm::ops {

/// Cross entropy of softmax(cap(logits)) with cap(x) = c tanh(x / c), or x when c == 0: loss_sum +=
/// the sum over the tokens with a target. Rows are independent, so logits may come in slices of
/// rows. Softmax in float32, sums over rows and columns in double, in one order.
struct CrossEntropyArgs {
  Tensor logits;                          ///< [T, V] f32; become the gradient if that is wanted
  std::span<const std::int32_t> targets;  ///< [T], each in [0, V), or -1: not scored
  float cap = 0.0F;                       ///< c
  bool gradient = true;  ///< logits = scale d loss_sum / d logits, through the cap; else kept
  float scale = 1.0F;
  double* loss_sum = nullptr;  ///< +=
};
XLSTM_OP(cross_entropy, CrossEntropyArgs)

}  // namespace xlstm::ops
