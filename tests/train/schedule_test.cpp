// Learning rates at the steps where something changes, against numbers worked out by hand.

#include "train/schedule.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace {

using xlstm::train::learning_rate;
using xlstm::train::OptimizerKeys;

OptimizerKeys keys_of(const std::string& schedule, std::int64_t warmup, std::int64_t decay) {
  OptimizerKeys keys;
  keys.schedule = schedule;
  keys.lr = 0.5;
  keys.final_lr_factor = 0.2;
  keys.warmup_steps = warmup;
  keys.decay_steps = decay;
  return keys;
}

TEST(Schedule, AllRiseOnALineToTheFullRate) {
  for (const char* schedule : {"cosine", "linear", "wsd", "constant"}) {
    const OptimizerKeys keys = keys_of(schedule, 4, 10);
    for (int step = 1; step <= 4; ++step)
      EXPECT_DOUBLE_EQ(learning_rate(keys, 104, step), 0.5 * step / 4) << schedule << ' ' << step;
  }
}

TEST(Schedule, CosineFallsToTheLastStep) {
  const OptimizerKeys keys = keys_of("cosine", 4, 0);
  // 100 steps of decay: a quarter, the half, the end.
  EXPECT_NEAR(learning_rate(keys, 104, 29), 0.1 + 0.4 * (0.5 + std::sqrt(0.125)), 1e-15);
  EXPECT_NEAR(learning_rate(keys, 104, 54), 0.3, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(keys, 104, 104), 0.1);
  EXPECT_LT(learning_rate(keys, 104, 5), 0.5);
  for (int step = 5; step <= 104; ++step)
    EXPECT_LT(learning_rate(keys, 104, step), learning_rate(keys, 104, step - 1)) << step;
}

TEST(Schedule, LinearFallsToTheLastStep) {
  const OptimizerKeys keys = keys_of("linear", 4, 0);
  for (const auto& [step, rate] : {std::pair{5, 0.496}, {29, 0.4}, {54, 0.3}, {104, 0.1}})
    EXPECT_NEAR(learning_rate(keys, 104, step), rate, 1e-15) << step;
}

TEST(Schedule, DecayStepsEndTheFallEarly) {
  for (const char* schedule : {"cosine", "linear"}) {
    const OptimizerKeys keys = keys_of(schedule, 4, 20);
    EXPECT_NEAR(learning_rate(keys, 104, 14), 0.3, 1e-15) << schedule;
    EXPECT_GT(learning_rate(keys, 104, 23), 0.1) << schedule;
    for (const int step : {24, 25, 60, 104})
      EXPECT_DOUBLE_EQ(learning_rate(keys, 104, step), 0.1) << schedule << ' ' << step;
  }
}

TEST(Schedule, WsdStaysAndFallsAtTheEnd) {
  const OptimizerKeys keys = keys_of("wsd", 4, 20);
  for (const int step : {4, 5, 50, 84})
    EXPECT_DOUBLE_EQ(learning_rate(keys, 104, step), 0.5) << step;
  for (const auto& [step, rate] : {std::pair{85, 0.48}, {94, 0.3}, {103, 0.12}, {104, 0.1}})
    EXPECT_NEAR(learning_rate(keys, 104, step), rate, 1e-15) << step;
}

TEST(Schedule, ConstantStays) {
  const OptimizerKeys keys = keys_of("constant", 4, 10);
  for (const int step : {4, 5, 50, 104})
    EXPECT_DOUBLE_EQ(learning_rate(keys, 104, step), 0.5) << step;
}

TEST(Schedule, WithoutWarmUpItFallsFromTheFirstStep) {
  EXPECT_NEAR(learning_rate(keys_of("linear", 0, 0), 10, 1), 0.46, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(keys_of("wsd", 0, 2), 10, 1), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(keys_of("constant", 0, 0), 10, 1), 0.5);
  // All warm-up: nothing is left to fall on.
  EXPECT_DOUBLE_EQ(learning_rate(keys_of("cosine", 10, 0), 10, 10), 0.5);
  // Down to nothing.
  OptimizerKeys keys = keys_of("linear", 0, 0);
  keys.final_lr_factor = 0;
  EXPECT_DOUBLE_EQ(learning_rate(keys, 10, 10), 0);
}

}  // namespace
