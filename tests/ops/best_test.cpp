#include "ops/best.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/support.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops::test {
namespace {

struct Best {
  std::vector<float> values;
  std::vector<std::int32_t> ids;
};

Best best(std::vector<float> logits, std::int64_t rows, std::int64_t count) {
  const std::int64_t width = static_cast<std::int64_t>(logits.size()) / rows;
  Best found{std::vector<float>(static_cast<std::size_t>(rows * count), NAN),
             std::vector<std::int32_t>(static_cast<std::size_t>(rows * count), -1)};
  Context context(test_device(), 2);
  run<BestLogitsArgs>(
      context, best_logits,
      {.logits = Tensor::dense(logits.data(), DType::f32, {rows, width}, test_device()),
       .values = Tensor::dense(found.values.data(), DType::f32, {rows, count}, test_device()),
       .ids = Tensor::dense(found.ids.data(), DType::i32, {rows, count}, test_device())});
  return found;
}

TEST(BestLogits, AreThoseThatSortingPutsFirst) {
  std::mt19937 random(3);
  for (const std::int64_t width : {1, 5, 64, 257, 2048, 2049, 5000, 50304, 140001})
    for (const std::int64_t count : {1, 5, 40, 64}) {
      if (count > width) continue;
      const std::int64_t rows = width > 5000 ? 2 : 3;
      std::vector<float> logits(static_cast<std::size_t>(rows * width));
      // Few different values: ties everywhere, zeros of both signs among them.
      const bool ties = count % 2 == 0;
      std::normal_distribution<float> normal(0, 3);
      for (float& x : logits) x = ties ? std::trunc(normal(random)) : normal(random);
      const Best found = best(logits, rows, count);
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* row = logits.data() + r * width;
        std::vector<std::int32_t> order(static_cast<std::size_t>(width));
        std::iota(order.begin(), order.end(), 0);
        std::ranges::stable_sort(order, [&](auto a, auto b) { return row[a] > row[b]; });
        for (std::int64_t i = 0; i < count; ++i) {
          const auto at = static_cast<std::size_t>(r * count + i);
          EXPECT_EQ(found.ids[at], order[static_cast<std::size_t>(i)]) << width << " " << i;
          EXPECT_EQ(found.values[at], row[order[static_cast<std::size_t>(i)]]);
        }
      }
    }
}

TEST(BestLogits, WhatIsNotFiniteComesFirst) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float broken : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()})
    for (const std::size_t at : {std::size_t{0}, std::size_t{2999}}) {
      std::vector<float> logits(3000, 1.0F);
      logits[7] = std::numeric_limits<float>::max();
      logits[at] = broken;
      const Best found = best(logits, 1, 3);
      EXPECT_EQ(found.ids[0], static_cast<std::int32_t>(at));
      EXPECT_FALSE(std::isfinite(found.values[0]));
      EXPECT_EQ(found.ids[1], 7);
      EXPECT_EQ(found.ids[2], at == 0 ? 1 : 0);
    }
}

TEST(BestLogits, WrongArgumentsAreRefused) {
  EXPECT_THROW(best(std::vector<float>(10), 1, 11), Error);
  EXPECT_THROW(best(std::vector<float>(100), 1, 65), Error);
  EXPECT_THROW(best(std::vector<float>(10), 1, 0), Error);
}

}  // namespace
}  // namespace xlstm::ops::test
