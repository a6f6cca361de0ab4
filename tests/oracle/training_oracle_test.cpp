// The oracle's gradients of whole models and its AdamW, against NX-AI's in float64.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "oracle/golden.hpp"

namespace oracle {

void PrintTo(const TrainingFiles& files, std::ostream* out) { *out << files.model; }

namespace {

constexpr double kBound = 1e-8;

/// The largest |got - want| / max(1, |want|), less what `want` lost if it was rounded to float32.
double worst(const Vector& got, const Vector& want, bool single = false) {
  EXPECT_EQ(got.size(), want.size());
  double error = got.size() == want.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    const double lost = single ? 0x1p-24 * std::abs(want[i]) : 0;
    const double difference = std::max(0.0, std::abs(got[i] - want[i]) - lost);
    error = std::max(error,
                     std::isnan(got[i]) ? INFINITY : difference / std::max(1.0, std::abs(want[i])));
  }
  return error;
}

class TrainingOracle : public testing::TestWithParam<TrainingFiles> {};

TEST_P(TrainingOracle, LossAndEveryGradient) {
  const TrainingCase model = read_training(GetParam());
  const Loss loss = loss_and_gradients(model.config, model.weights, model.ids);
  EXPECT_LE(worst({loss.mean}, {model.loss}), kBound);
  ASSERT_EQ(loss.logits.size(), model.logits.size());
  for (std::size_t i = 0; i < loss.logits.size(); ++i)
    EXPECT_LE(worst(loss.logits[i], model.logits[i]), kBound);
  ASSERT_EQ(loss.gradients.size(), model.gradients.size());
  for (const auto& [name, gradient] : model.gradients)
    EXPECT_LE(worst(loss.gradients.at(name), gradient, model.single), kBound) << name;
}

TEST_P(TrainingOracle, TenStepsOfAdamw) {
  const TrainingCase model = read_training(GetParam());
  Weights weights = model.weights;
  AdamW adamw = model.adamw;
  ASSERT_EQ(model.losses.size(), 10U);
  for (double want : model.losses) {
    const Loss loss = loss_and_gradients(model.config, weights, model.ids);
    EXPECT_LE(worst({loss.mean}, {want}), kBound);
    adamw.step(weights, loss.gradients);
  }
  ASSERT_EQ(weights.size(), model.after.size());
  // R's bias b_i has the gradient 0: what rounding leaves of it is far below AdamW's eps.
  for (const auto& [name, want] : model.after)
    EXPECT_LE(worst(weights.at(name), want, model.single), kBound) << name;
}

INSTANTIATE_TEST_SUITE_P(Golden, TrainingOracle, testing::ValuesIn(training_files()),
                         [](const auto& files) {
                           const bool shared = files.param.model == files.param.adamw;
                           return files.param.model.stem().string() + (shared ? "_shared" : "");
                         });

}  // namespace
}  // namespace oracle
