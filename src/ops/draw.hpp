#pragma once
// The next token, drawn where the logits are: what sampling from the best logits alone does
// (infer/sampler.hpp), so that a step may begin before the host has seen the token that it reads.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/random_generator.hpp"
#include "ops/op.hpp"

namespace xlstm::ops {

/// How a token is drawn from candidates, and for whom.
struct Draw {
  RandomGenerator generator;       ///< gives one number for each token, unless the best is taken
  double inverse_temperature = 0;  ///< 0: takes the best
  double top_p = 1;        ///< of the probability, held by the best of the candidates; 1: all
  double min_p = 0;        ///< of the best one's probability, which a candidate has at least
  std::int64_t top_k = 1;  ///< candidates
  /// If not null: where the sequence's record lies from the token on that ends its text. What
  /// reads that token then changes this in place of its state.
  std::byte* after_end = nullptr;

  /// Of a candidate, where `best` is the best one's logit.
  XLSTM_HOST_DEVICE double weight(float logit, float best) const {
    return std::exp((static_cast<double>(logit) - static_cast<double>(best)) * inverse_temperature);
  }
};

/// The place of the chosen among `weights`, those of candidates in order, the best one's 1. Those
/// that are out of the question become 0. @param uniform  in [0, 1)
inline std::size_t chosen(const Draw& draw, std::span<double> weights, double uniform) {
  double total = 0;
  for (const double w : weights) total += w;
  // top-p: the shortest list of the best whose probabilities sum to p.
  std::size_t kept = weights.size();
  if (draw.top_p < 1) {
    const double enough = total * draw.top_p;
    double sum = 0;
    kept = 0;
    while (kept < weights.size() && sum < enough) sum += weights[kept++];
  }
  // min-p: not less than a part of the best one's probability.
  total = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    if (weights[i] < draw.min_p) weights[i] = 0;
    total += weights[i];
  }
  const double target = uniform * total;
  double sum = 0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    if (weights[i] == 0) continue;
    last = i;  // the last one that is possible, should rounding leave sum below target
    sum += weights[i];
    if (sum > target) break;
  }
  return last;
}

/// Of every row one of its best logits (ops/best.hpp). One that is not finite comes before all
/// others and is taken: whoever reads its value sees it. On CUDA the last kernel of best_logits()
/// draws too.
struct DrawTokensArgs {
  Tensor logits;       ///< [R, V] f32
  std::int64_t count;  ///< candidates of a row at most, 1 <= count <= min(kMostBest, V)
  Tensor draws;        ///< [R, sizeof(Draw)] u8; generators advance
  Tensor ends;         ///< [E] i32, the ids that end a text; may be none
  Tensor slots;        ///< [R, sizeof(std::byte*)] u8, the records of the sequences (Batch::slots)
  Tensor next;         ///< [R] i32, where the next step reads the drawn ids
  Tensor ids;          ///< [R] i32, a second place for them
  Tensor values;       ///< [R] f32, their logits
};
XLSTM_OP(draw_tokens, DrawTokensArgs)

}  // namespace xlstm::ops
