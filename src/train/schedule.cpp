#include "train/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace xlstm::train {

double learning_rate(const OptimizerKeys& keys, std::int64_t steps, std::int64_t step) {
  const std::int64_t warmup = keys.warmup_steps;
  if (step <= warmup) return keys.lr * static_cast<double>(step) / static_cast<double>(warmup);
  if (keys.schedule == "constant") return keys.lr;
  const std::int64_t length = keys.decay_steps > 0 ? keys.decay_steps : steps - warmup;
  const std::int64_t begin = keys.schedule == "wsd" ? steps - length : warmup;
  const double done = std::clamp(
      static_cast<double>(step - begin) / static_cast<double>(std::max<std::int64_t>(length, 1)),
      0.0, 1.0);
  const double left =
      keys.schedule == "cosine" ? 0.5 * (1 + std::cos(std::numbers::pi * done)) : 1 - done;
  return keys.lr * (keys.final_lr_factor + (1 - keys.final_lr_factor) * left);
}

}  // namespace xlstm::train
