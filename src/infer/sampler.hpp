#pragma once
// From logits to the next token.

#include <cstdint>
#include <span>
#include <vector>

#include "core/random_generator.hpp"
#include "ops/draw.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::infer {

/// The sampler chain of one sequence. After construction it allocates nothing.
class Sampler {
 public:
  /// @param ids  ids below this may be chosen
  /// @throws Error(invalid_argument) naming the option that is out of range
  Sampler(const SamplerOptions& options, std::int32_t ids);

  /// Tells the penalties of a token of the text, prompt or generated.
  void accept(std::int32_t id);
  /// Chooses the next token; the caller accepts it. @param logits  [vocab], at least `ids`
  /// @throws Error(internal) naming the id whose logit is NaN or infinite
  std::int32_t sample(std::span<const float> logits);
  /// How many of the best logits are enough for sample_best(), or 0: it takes all.
  std::int64_t best_needed() const noexcept;
  /// What sample() chooses from all logits, from as many of the best, in order.
  /// @throws Error(internal) naming the id whose logit is NaN or infinite
  std::int32_t sample_best(std::span<const Candidate> best);
  /// How a device chooses the same from as many of the best (ops::draw_tokens()).
  ops::Draw draw() const;
  /// Takes the next token from the device that has drawn it so.
  /// @throws Error(internal) naming the id whose logit is NaN or infinite
  std::int32_t take_drawn(const Candidate& drawn);

 private:
  static bool better(const Candidate& a, const Candidate& b) noexcept {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }

  bool has_penalties() const noexcept;
  std::span<const float> adjusted(std::span<const float> logits);
  void select(std::span<const float> logits);
  std::int32_t draw_one();

  SamplerOptions options_;
  std::int32_t ids_;
  RandomGenerator generator_;
  std::vector<float> adjusted_;  // logits after bias and penalties
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;        // of the candidates, not normalised
  std::vector<std::int32_t> history_;  // ring of the last repeat_last_n tokens
  std::size_t history_next_ = 0;
  std::vector<std::uint32_t> counts_;   // of each id within the history
  std::vector<std::int32_t> distinct_;  // ids whose count is not 0
};

/// log sum exp of a row, in double. @throws Error(internal) if a logit is NaN or infinite
double log_sum_exp(std::span<const float> logits);

/// -log softmax(logits)[id], in double; NaN if a logit is NaN or infinite. Never throws.
double negative_log_likelihood(std::span<const float> logits, std::int32_t id) noexcept;

/// The chosen token's log-probability and the `top` most likely, best first.
TokenLogprob log_probabilities(std::span<const float> logits, std::int32_t id, int top);

}  // namespace xlstm::infer
