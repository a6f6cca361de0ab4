#include "infer/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.hpp"

namespace xlstm::infer {
namespace {

// The index of the largest logit, the lowest of equals. Counts on finite numbers.
std::int32_t argmax(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i)
    if (logits[i] > logits[best]) best = i;
  return static_cast<std::int32_t>(best);
}

// One pass that vectorises.
bool all_finite(std::span<const float> logits) noexcept {
  bool finite = true;
  for (const float x : logits) finite &= std::fabs(x) <= std::numeric_limits<float>::max();
  return finite;
}

double log_sum_exp_unchecked(std::span<const float> logits) noexcept {
  float best = logits[0];
  for (const float x : logits) best = std::max(best, x);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - static_cast<double>(best));
  return static_cast<double>(best) + std::log(sum);
}

void check_finite(float logit, std::size_t id) {
  XLSTM_CHECK(std::isfinite(logit), internal,
              "logits: expected finite numbers, found {} for id {} (weights or arithmetic are "
              "broken; load with check_tensors to look at the weights)",
              logit, id);
}

void check_finite(std::span<const float> logits) {
  if (all_finite(logits)) return;
  for (std::size_t i = 0; i < logits.size(); ++i) check_finite(logits[i], i);
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options, std::int32_t ids)
    : options_(options), ids_(ids), generator_(options.seed) {
  const SamplerOptions& o = options_;
  const auto check = [](bool ok, const char* name, const char* range, double found) {
    XLSTM_CHECK(ok, invalid_argument, "sampler: {}: expected {}, found {}", name, range, found);
  };
  check(o.temperature >= 0 && std::isfinite(o.temperature), "temperature", "0 or more",
        o.temperature);
  check(o.top_k >= 0, "top_k", "0 or more", o.top_k);
  check(o.top_p > 0 && o.top_p <= 1, "top_p", "a number in (0, 1]", o.top_p);
  check(o.min_p >= 0 && o.min_p <= 1, "min_p", "a number in [0, 1]", o.min_p);
  check(o.repeat_penalty > 0 && std::isfinite(o.repeat_penalty), "repeat_penalty",
        "a number above 0", o.repeat_penalty);
  check(std::isfinite(o.presence_penalty), "presence_penalty", "a number", o.presence_penalty);
  check(std::isfinite(o.frequency_penalty), "frequency_penalty", "a number", o.frequency_penalty);
  check(o.repeat_last_n >= -1, "repeat_last_n", "-1 or more", o.repeat_last_n);
  for (const auto& [id, bias] : o.logit_bias) {
    check(id >= 0 && id < ids, "logit_bias", "ids that can be sampled", id);
    check(!std::isnan(bias) && bias < HUGE_VALF, "logit_bias", "a number or -infinity", bias);
  }

  const auto n = static_cast<std::size_t>(ids);
  if (has_penalties()) {
    counts_.resize(n);
    distinct_.reserve(n);
    if (o.repeat_last_n > 0) history_.reserve(static_cast<std::size_t>(o.repeat_last_n));
  }
  if (has_penalties() || !o.logit_bias.empty()) adjusted_.resize(n);
  if (o.temperature > 0) {
    const std::size_t kept = o.top_k > 0 ? std::min(n, static_cast<std::size_t>(o.top_k)) : n;
    candidates_.reserve(kept);
    weights_.reserve(kept);
  }
}

bool Sampler::has_penalties() const noexcept {
  return options_.repeat_last_n != 0 &&
         (options_.repeat_penalty != 1.0F || options_.presence_penalty != 0.0F ||
          options_.frequency_penalty != 0.0F);
}

void Sampler::accept(std::int32_t id) {
  if (!has_penalties() || id < 0 || id >= ids_) return;
  if (options_.repeat_last_n > 0) {
    if (history_.size() < static_cast<std::size_t>(options_.repeat_last_n)) {
      history_.push_back(id);
    } else {
      const std::int32_t old = history_[history_next_];
      if (--counts_[static_cast<std::size_t>(old)] == 0) std::erase(distinct_, old);
      history_[history_next_] = id;
      history_next_ = (history_next_ + 1) % history_.size();
    }
  }
  if (counts_[static_cast<std::size_t>(id)]++ == 0) distinct_.push_back(id);
}

std::span<const float> Sampler::adjusted(std::span<const float> logits) {
  if (adjusted_.empty()) return logits;
  std::ranges::copy(logits, adjusted_.begin());
  for (const auto& [id, bias] : options_.logit_bias)
    adjusted_[static_cast<std::size_t>(id)] += bias;
  for (const std::int32_t id : distinct_) {
    float& logit = adjusted_[static_cast<std::size_t>(id)];
    logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
    logit -= options_.presence_penalty +
             options_.frequency_penalty * static_cast<float>(counts_[static_cast<std::size_t>(id)]);
  }
  return adjusted_;
}

// Leaves the candidates that top-k allows: best first, or all by id when no later step needs them
// in order.
void Sampler::select(std::span<const float> logits) {
  candidates_.clear();
  const auto k = static_cast<std::size_t>(options_.top_k);
  if (options_.top_k == 0 || k >= logits.size()) {
    for (std::size_t i = 0; i < logits.size(); ++i)
      candidates_.push_back({logits[i], static_cast<std::int32_t>(i)});
    if (options_.top_p < 1) std::ranges::sort(candidates_, better);
    return;
  }
  // A heap of the best k whose top is the worst of them: most logits fail one comparison. Ids
  // rise, so an equal logit never displaces.
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (candidates_.size() == k) {
      if (!(logits[i] > candidates_.front().logit)) continue;
      std::ranges::pop_heap(candidates_, better);
      candidates_.pop_back();
    }
    candidates_.push_back({logits[i], static_cast<std::int32_t>(i)});
    std::ranges::push_heap(candidates_, better);
  }
  std::ranges::sort_heap(candidates_, better);
}

std::int32_t Sampler::sample(std::span<const float> logits) {
  XLSTM_ASSERT(logits.size() >= static_cast<std::size_t>(ids_) && ids_ > 0);
  check_finite(logits);
  const std::span<const float> values = adjusted(logits.first(static_cast<std::size_t>(ids_)));
  if (options_.temperature == 0) return argmax(values);
  select(values);
  return draw_one();
}

std::int64_t Sampler::best_needed() const noexcept {
  if (has_penalties() || !options_.logit_bias.empty()) return 0;
  return options_.temperature == 0 ? 1 : options_.top_k;
}

std::int32_t Sampler::sample_best(std::span<const Candidate> best) {
  XLSTM_ASSERT(best_needed() > 0 && !best.empty());
  check_finite(best[0].logit, static_cast<std::size_t>(best[0].id));
  if (options_.temperature == 0) return best[0].id;
  const auto kept = std::min(best.size(), static_cast<std::size_t>(options_.top_k));
  candidates_.assign(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(kept));
  return draw_one();
}

ops::Draw Sampler::draw() const {
  return {.generator = generator_,
          .inverse_temperature =
              options_.temperature > 0 ? 1.0 / static_cast<double>(options_.temperature) : 0,
          .top_p = static_cast<double>(options_.top_p),
          .min_p = static_cast<double>(options_.min_p),
          .top_k = std::max(options_.top_k, 1)};
}

std::int32_t Sampler::take_drawn(const Candidate& drawn) {
  check_finite(drawn.logit, static_cast<std::size_t>(drawn.id));
  if (options_.temperature > 0) static_cast<void>(generator_.next());
  return drawn.id;
}

// One of the candidates.
std::int32_t Sampler::draw_one() {
  float best = candidates_.front().logit;
  for (const Candidate& c : candidates_) best = std::max(best, c.logit);
  XLSTM_CHECK(std::isfinite(best), invalid_argument,
              "sampler: logit_bias leaves no id that may be chosen");
  const ops::Draw how = draw();
  weights_.clear();
  for (const Candidate& c : candidates_) weights_.push_back(how.weight(c.logit, best));
  return candidates_[ops::chosen(how, weights_, generator_.uniform())].id;
}

double log_sum_exp(std::span<const float> logits) {
  check_finite(logits);
  return log_sum_exp_unchecked(logits);
}

double negative_log_likelihood(std::span<const float> logits, std::int32_t id) noexcept {
  if (!all_finite(logits)) return std::numeric_limits<double>::quiet_NaN();
  return log_sum_exp_unchecked(logits) - logits[static_cast<std::size_t>(id)];
}

TokenLogprob log_probabilities(std::span<const float> logits, std::int32_t id, int top) {
  const double norm = log_sum_exp(logits);
  const auto logprob = [&](std::int32_t i) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(i)]) - norm);
  };
  TokenLogprob result{.id = id, .logprob = logprob(id), .top = {}};
  const std::size_t k = std::min(logits.size(), static_cast<std::size_t>(std::max(top, 0)));
  std::vector<std::int32_t> order(logits.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(k);
  if (k > 0)
    std::ranges::partial_sort(order, end, [&](std::int32_t a, std::int32_t b) {
      const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
      return x > y || (x == y && a < b);
    });
  for (auto it = order.begin(); it != end; ++it) result.top.emplace_back(*it, logprob(*it));
  return result;
}

}  // namespace xlstm::infer
