#pragma once
// The largest logits, which are all that most sampling needs.

#include "ops/op.hpp"

namespace xlstm::ops {

/// The most that best_logits() gives of a row.
inline constexpr std::int64_t kMostBest = 64;

/// Of every row the K largest logits, the largest first; of equals, the lowest id first. What is
/// not finite comes before everything else, so that whoever reads the first sees it.
struct BestLogitsArgs {
  Tensor logits;  ///< [R, V] f32, V < 2^31
  Tensor values;  ///< [R, K] f32, 1 <= K <= kMostBest, K <= V
  Tensor ids;     ///< [R, K] i32
};
XLSTM_OP(best_logits, BestLogitsArgs)

}  // namespace xlstm::ops
