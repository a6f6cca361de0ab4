// Rounding to bf16 at random: unbiased where rounding to nearest loses most of a signal.

#include "ops/random_rounding.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/float_bits.hpp"
#include "core/hash.hpp"

namespace xlstm::ops {
namespace {

constexpr std::uint64_t kCell = mix64(1);

float rounded(float x, RoundingKey key, std::uint32_t element) {
  return bf16_to_f32(random_bf16(x, key, element));
}

TEST(RandomRounding, WhatBf16HoldsStays) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = bf16_to_f32(static_cast<std::uint16_t>(bits));
    for (const std::uint32_t random : {0U, 1U, 0x8000U, 0xffffU}) {
      if (std::isnan(x))
        EXPECT_TRUE(std::isnan(bf16_to_f32(random_bf16(x, random))));
      else
        EXPECT_EQ(random_bf16(x, random), bits);
    }
  }
  const float nan = std::bit_cast<float>(0x7fffffffU);  // all bits set, as a card makes them
  EXPECT_TRUE(std::isnan(bf16_to_f32(random_bf16(nan, 0xffffU))));
  EXPECT_EQ(random_bf16(std::numeric_limits<float>::max(), 0xffffU), 0x7f80U) << "infinity";
}

TEST(RandomRounding, GoesUpAsOftenAsTheNumberIsAbove) {
  const int count = 1 << 20;
  for (const float x : {1.0F + 0x1p-9F, -(1.0F + 0x1p-8F + 0x1p-9F), 3e-39F, 1.0F + 0x1p-15F}) {
    const float low = bf16_to_f32(random_bf16(x, 0U)), high = bf16_to_f32(random_bf16(x, 0xffffU));
    const double wanted = double(x - low) / double(high - low);
    int up = 0;
    for (int i = 0; i < count; ++i) {
      // Elements of some heads and positions, as they come.
      const RoundingKey key = rounding_key(kCell, i >> 16 & 3, static_cast<std::uint32_t>(i >> 18));
      const float to = rounded(x, key, i & 0xffff);
      ASSERT_TRUE(to == low || to == high);
      up += to == high;
    }
    const double error = std::sqrt(wanted * (1 - wanted) / count);
    EXPECT_NEAR(double(up) / count, wanted, 4 * error) << x;
  }
}

// Between neighbours of every kind the bits agree no more than chance has it.
TEST(RandomRounding, NothingThatTheKeyNamesIsLikeAnother) {
  const int count = 1 << 18;
  const auto half = [](std::uint64_t cell, int head, int position, int element) {
    return rounding_bits(rounding_key(cell, head, static_cast<std::uint32_t>(position)),
                         static_cast<std::uint32_t>(element) / 2) >>
               (element % 2 * 16) &
           0xffffU;
  };
  const auto correlation = [&](auto&& first, auto&& second) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += (first(i) / 65536.0 - 0.5) * (second(i) / 65536.0 - 0.5);
    return std::abs(sum / count * 12);
  };
  const auto plain = [&](int i) { return half(kCell, 2, 7, i); };
  const double bound = 4 / std::sqrt(count);
  for (const int apart : {1, 2, 16, 512, 65536})
    EXPECT_LE(correlation(plain, [&](int i) { return half(kCell, 2, 7, i + apart); }), bound);
  for (const int apart : {1, 16, 4096})
    EXPECT_LE(correlation(plain, [&](int i) { return half(kCell, 2, 7 + apart, i); }), bound);
  EXPECT_LE(correlation(plain, [&](int i) { return half(kCell, 3, 7, i); }), bound);
  EXPECT_LE(correlation(plain, [&](int i) { return half(mix64(2), 2, 7, i); }), bound);
  // One element from position to position.
  const auto over_time = [&](int i) { return half(kCell, 2, i, 33); };
  for (const int apart : {1, 2, 16})
    EXPECT_LE(correlation(over_time, [&](int i) { return half(kCell, 2, i + apart, 33); }), bound);
}

/// Elements c <- decay c + 1 at each token, written in bf16 with every `tokens`-th.
struct Signal {
  double decay;
  int tokens;
  std::vector<float> random = std::vector<float>(256), nearest = random;
  std::vector<double> exact = std::vector<double>(256);
  std::uint32_t position = 0;

  void write() {
    const auto keep = static_cast<float>(std::pow(decay, tokens));
    const auto added = static_cast<float>((1 - std::pow(decay, tokens)) / (1 - decay));
    position += static_cast<std::uint32_t>(tokens);
    const RoundingKey key = rounding_key(kCell, 0, position);
    for (std::size_t i = 0; i < random.size(); ++i) {
      random[i] = rounded(std::fma(keep, random[i], added), key, static_cast<std::uint32_t>(i));
      nearest[i] = bf16_to_f32(f32_to_bf16(std::fma(keep, nearest[i], added)));
      exact[i] = std::fma(double(keep), exact[i], double(added));
    }
  }
  /// Of the mean of all elements, and the standard deviation of one, relative to the exact value.
  double mean(const std::vector<float>& values) const {
    double sum = 0;
    for (const float x : values) sum += x;
    return sum / (double(values.size()) * exact[0]) - 1;
  }
  double deviation() const {
    double sum = 0;
    for (const float x : random) sum += std::pow(x / exact[0] - 1 - mean(random), 2);
    return std::sqrt(sum / double(random.size()));
  }
};

// A cell that remembers for long adds less than half of what bf16 can tell apart.
TEST(RandomRounding, KeepsASignalOfWhichRoundingToNearestLosesMost) {
  double least = 1, most = 0;
  for (const int tokens : {1, 16})
    for (const double memory : {70.3, 301.7, 1103.1}) {  // tokens, in writes
      Signal s{1 - 1 / (memory * tokens), tokens};
      for (int t = 0; t < 12 * static_cast<int>(memory); ++t) s.write();
      const double lost = -s.mean(s.nearest);
      least = std::min(least, lost);
      most = std::max(most, lost);
      const double error = s.deviation() / std::sqrt(double(s.random.size()));
      EXPECT_LE(std::abs(s.mean(s.random)), 4 * error) << memory << " " << tokens;
      EXPECT_LE(s.deviation(), 0.25 * lost);
    }
  EXPECT_GE(least, 0.12);
  EXPECT_LE(most, 0.82);
  EXPECT_GE(most, 0.6);
}

TEST(RandomRounding, DoesNotDriftOver100000Tokens) {
  Signal s{1 - 1 / 4096.0, 16};
  double worst_mean = 0, first = 0, last = 0;
  for (int t = 16; t <= 100000; t += 16) {
    s.write();
    if (t < 25000) continue;
    worst_mean = std::max(worst_mean, std::abs(s.mean(s.random)));
    (t < 50000 ? first : last) = std::max(t < 50000 ? first : last, s.deviation());
  }
  EXPECT_LE(worst_mean, 0.005);
  EXPECT_LE(last, 1.3 * first);
  EXPECT_GE(-s.mean(s.nearest), 0.12);
}

}  // namespace
}  // namespace xlstm::ops
