// The sampler chain, each step and all together.

#include "infer/sampler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>

#include "formats/expect_error.hpp"

namespace xlstm::infer {
namespace {

SamplerOptions plain() {
  SamplerOptions o;
  o.temperature = 1;
  o.top_k = 0;
  o.top_p = 1;
  o.min_p = 0;
  o.seed = 3;
  return o;
}

// How often each id comes, of `n` draws.
std::map<std::int32_t, double> frequencies(const SamplerOptions& options,
                                           const std::vector<float>& logits, int n = 20000) {
  Sampler sampler(options, static_cast<std::int32_t>(logits.size()));
  std::map<std::int32_t, double> share;
  for (int i = 0; i < n; ++i) share[sampler.sample(logits)] += 1.0 / n;
  return share;
}

TEST(GeneratorTest, IsTheSameOnEveryPlatform) {
  // xoshiro256** seeded by splitmix64(0): the published first outputs.
  RandomGenerator g(0);
  EXPECT_EQ(g.next(), 0x99ec5f36cb75f2b4ULL);
  EXPECT_EQ(g.next(), 0xbf6e1f784956452aULL);
  EXPECT_EQ(g.next(), 0x1a5f849d4933e6e0ULL);
  for (int i = 0; i < 1000; ++i) {
    const double u = g.uniform();
    EXPECT_TRUE(u >= 0 && u < 1);
  }
}

TEST(SamplerTest, TemperatureZeroTakesTheBestAndTheLowestOfEquals) {
  SamplerOptions o;
  o.temperature = 0;
  Sampler sampler(o, 5);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, 3, 1, 3, 2}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-4, -4, -4, -4, -4}), 0);
}

TEST(SamplerTest, DrawsFromTheSoftmax) {
  const std::vector<float> logits = {std::log(0.5F), std::log(0.3F), std::log(0.2F)};
  auto share = frequencies(plain(), logits);
  EXPECT_NEAR(share[0], 0.5, 0.02);
  EXPECT_NEAR(share[1], 0.3, 0.02);
  EXPECT_NEAR(share[2], 0.2, 0.02);
}

TEST(SamplerTest, TemperatureFlattensAndSharpens) {
  const std::vector<float> logits = {std::log(0.8F), std::log(0.2F)};
  SamplerOptions o = plain();
  o.temperature = 2;  // odds 4:1 become 2:1
  EXPECT_NEAR(frequencies(o, logits)[0], 2.0 / 3, 0.02);
  o.temperature = 0.5F;  // and 16:1
  EXPECT_NEAR(frequencies(o, logits)[0], 16.0 / 17, 0.01);
}

TEST(SamplerTest, TopKKeepsTheBestAndTheLowestOfEquals) {
  const std::vector<float> logits = {1, 5, 2, 5, 2, 4};
  SamplerOptions o = plain();
  o.top_k = 4;
  o.temperature = 100;  // near uniform: every candidate comes
  const auto share = frequencies(o, logits);
  EXPECT_EQ(share.size(), 4u);
  for (const std::int32_t id : {1, 2, 3, 5}) EXPECT_TRUE(share.contains(id)) << id;
}

TEST(SamplerTest, TopPKeepsTheShortestListThatSumsToP) {
  const std::vector<float> logits = {std::log(0.2F), std::log(0.5F), std::log(0.3F)};
  SamplerOptions o = plain();
  o.top_p = 0.75F;
  auto share = frequencies(o, logits);
  EXPECT_EQ(share.size(), 2u);
  EXPECT_NEAR(share[1], 0.5 / 0.8, 0.02);
  o.top_p = 0.01F;  // one always stays
  EXPECT_EQ(frequencies(o, logits).size(), 1u);
}

TEST(SamplerTest, MinPIsAPartOfTheBest) {
  const std::vector<float> logits = {std::log(0.6F), std::log(0.29F), std::log(0.11F)};
  SamplerOptions o = plain();
  o.min_p = 0.2F;
  auto share = frequencies(o, logits);
  EXPECT_EQ(share.size(), 2u);
  EXPECT_NEAR(share[0], 0.6 / 0.89, 0.02);
}

TEST(SamplerTest, TopPWorksOnWhatTopKLeft) {
  // Of 0.4 0.3 0.2 0.1, top-k 2 leaves 4/7 and 3/7: 0.57 is enough for 0.5, not for 0.6.
  const std::vector<float> logits = {std::log(0.1F), std::log(0.2F), std::log(0.3F),
                                     std::log(0.4F)};
  SamplerOptions o = plain();
  o.top_k = 2;
  o.top_p = 0.5F;
  EXPECT_EQ(frequencies(o, logits).size(), 1u);
  o.top_p = 0.6F;
  EXPECT_EQ(frequencies(o, logits).size(), 2u);
}

TEST(SamplerTest, TheBestLogitsAreEnough) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  for (const int top_k : {1, 7, 40}) {
    for (const float temperature : {0.0F, 0.7F, 3.0F}) {
      SamplerOptions o = plain();
      o.top_k = top_k;
      o.temperature = temperature;
      o.top_p = 0.9F;
      o.min_p = 0.01F;
      Sampler from_all(o, 300), from_best(o, 300);
      EXPECT_EQ(from_best.best_needed(), temperature == 0 ? 1 : top_k);
      for (int i = 0; i < 200; ++i) {
        std::vector<float> logits(300);
        for (float& x : logits) x = std::round(normal(random) * 4) / 4;  // ties
        std::vector<Candidate> best;
        for (std::int32_t id = 0; id < 300; ++id)
          best.push_back({logits[static_cast<std::size_t>(id)], id});
        std::ranges::stable_sort(best, std::greater<>(), &Candidate::logit);
        best.resize(64);  // more than needed does no harm
        EXPECT_EQ(from_best.sample_best(best), from_all.sample(logits));
      }
    }
  }
  SamplerOptions o = plain();
  EXPECT_EQ(Sampler(o, 300).best_needed(), 0) << "all logits without top-k";
  o.top_k = 5;
  o.repeat_penalty = 1.1F;
  EXPECT_EQ(Sampler(o, 300).best_needed(), 0) << "penalties change the order";
  o.repeat_penalty = 1;
  o.logit_bias[3] = 1;
  EXPECT_EQ(Sampler(o, 300).best_needed(), 0) << "and so does a bias";
}

TEST(SamplerTest, ABestLogitThatIsNotFiniteIsNamed) {
  SamplerOptions o = plain();
  o.top_k = 2;
  const std::vector<Candidate> best = {{std::numeric_limits<float>::quiet_NaN(), 17}, {1, 2}};
  expect_error(ErrorCode::internal, {"found nan for id 17"},
               [&] { Sampler(o, 300).sample_best(best); });
}

TEST(SamplerTest, BiasComesFirstAndMinusInfinityForbids) {
  SamplerOptions o;
  o.temperature = 0;
  o.logit_bias = {{2, 10.0F}, {1, -std::numeric_limits<float>::infinity()}};
  Sampler sampler(o, 3);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, 9, 0}), 2);
  o = plain();
  o.logit_bias = {{0, -HUGE_VALF}, {1, -HUGE_VALF}};
  Sampler none(o, 2);
  expect_error(ErrorCode::invalid_argument, {"no id"}, [&] {
    none.sample(std::vector<float>{1, 2});
  });
}

TEST(SamplerTest, PenaltiesFollowTheirFormulas) {
  SamplerOptions o;
  o.temperature = 0;
  o.repeat_penalty = 2;
  Sampler repeat(o, 2);
  repeat.accept(0);
  EXPECT_EQ(repeat.sample(std::vector<float>{3.9F, 2}), 1);    // 1.95 < 2
  EXPECT_EQ(repeat.sample(std::vector<float>{4.1F, 2}), 0);    // 2.05 > 2
  EXPECT_EQ(repeat.sample(std::vector<float>{-1, -1.9F}), 1);  // -2 < -1.9
  EXPECT_EQ(repeat.sample(std::vector<float>{-1, -2.1F}), 0);

  o.repeat_penalty = 1;
  o.presence_penalty = 1;
  o.frequency_penalty = 0.5F;
  Sampler counted(o, 2);
  for (int i = 0; i < 3; ++i) counted.accept(0);  // 1 + 3 * 0.5
  EXPECT_EQ(counted.sample(std::vector<float>{2.6F, 0}), 0);
  EXPECT_EQ(counted.sample(std::vector<float>{2.4F, 0}), 1);
}

TEST(SamplerTest, PenaltiesForgetWhatIsTooLongAgo) {
  SamplerOptions o;
  o.temperature = 0;
  o.presence_penalty = 5;
  o.repeat_last_n = 3;
  Sampler sampler(o, 8);
  const std::vector<float> logits = {4, 1, 0, 0, 0, 0, 0, 0};
  for (const std::int32_t id : {0, 0, 2, 3}) sampler.accept(id);
  EXPECT_EQ(sampler.sample(logits), 1) << "the second 0 is within the last three";
  sampler.accept(4);
  EXPECT_EQ(sampler.sample(logits), 0);
  o.repeat_last_n = -1;
  Sampler all(o, 8);
  all.accept(0);
  for (int i = 0; i < 1000; ++i) all.accept(2);
  EXPECT_EQ(all.sample(logits), 1);
  o.repeat_last_n = 0;
  Sampler off(o, 8);
  off.accept(0);
  EXPECT_EQ(off.sample(logits), 0);
}

TEST(SamplerTest, NeverTakesAnIdBeyondTheTokenizer) {
  const std::vector<float> logits = {0, 1, 2, 50, 60};
  for (const int k : {0, 2, 40}) {
    SamplerOptions o = plain();
    o.top_k = k;
    o.temperature = 50;
    Sampler sampler(o, 3);
    for (int i = 0; i < 500; ++i) EXPECT_LT(sampler.sample(logits), 3);
    o.temperature = 0;
    EXPECT_EQ(Sampler(o, 3).sample(logits), 2);
  }
}

TEST(SamplerTest, TheSeedDecides) {
  const std::vector<float> logits(50, 0.0F);
  const auto draw = [&](std::uint64_t seed) {
    SamplerOptions o = plain();
    o.seed = seed;
    Sampler sampler(o, 50);
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(sampler.sample(logits));
    return ids;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
  // Pinned: a change of generator or of the order of draws would break everybody's seeds.
  const std::vector<std::int32_t> ids = draw(1), pinned = {35, 26, 28, 19, 34, 7, 3, 19};
  EXPECT_TRUE(std::equal(pinned.begin(), pinned.end(), ids.begin()));
}

TEST(SamplerTest, NanIsAnErrorThatNamesIt) {
  const float bad[] = {std::nanf(""), HUGE_VALF};
  for (const float value : bad) {
    const std::vector<float> logits = {1, 2, value, 3};
    for (const float temperature : {0.0F, 1.0F}) {
      SamplerOptions o = plain();
      o.temperature = temperature;
      Sampler sampler(o, 2);  // even beyond what may be sampled
      expect_error(ErrorCode::internal, {"logits", "id 2"}, [&] { sampler.sample(logits); });
    }
    EXPECT_TRUE(std::isnan(negative_log_likelihood(logits, 0)));
    EXPECT_THROW(log_probabilities(logits, 0, 1), Error);
  }
}

TEST(SamplerTest, OptionsOutOfRange) {
  const auto refuse = [](auto change, std::string_view name) {
    SamplerOptions o;
    change(o);
    expect_error(ErrorCode::invalid_argument, {name, "expected", "found"}, [&] { Sampler(o, 10); });
  };
  refuse([](auto& o) { o.temperature = -1; }, "temperature");
  refuse([](auto& o) { o.temperature = std::nanf(""); }, "temperature");
  refuse([](auto& o) { o.top_k = -1; }, "top_k");
  refuse([](auto& o) { o.top_p = 0; }, "top_p");
  refuse([](auto& o) { o.top_p = 1.5F; }, "top_p");
  refuse([](auto& o) { o.min_p = -0.1F; }, "min_p");
  refuse([](auto& o) { o.repeat_penalty = 0; }, "repeat_penalty");
  refuse([](auto& o) { o.presence_penalty = HUGE_VALF; }, "presence_penalty");
  refuse([](auto& o) { o.repeat_last_n = -2; }, "repeat_last_n");
  refuse([](auto& o) { o.logit_bias = {{10, 1.0F}}; }, "logit_bias");
  refuse([](auto& o) { o.logit_bias = {{1, std::nanf("")}}; }, "logit_bias");
}

TEST(LogProbabilitiesTest, AreTheFullSoftmax) {
  const std::vector<float> logits = {1, 3, 2, 3};
  const double norm = std::log(std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0));
  const TokenLogprob p = log_probabilities(logits, 2, 3);
  EXPECT_EQ(p.id, 2);
  EXPECT_NEAR(p.logprob, 2 - norm, 1e-6);
  ASSERT_EQ(p.top.size(), 3u);
  EXPECT_EQ(p.top[0].first, 1);
  EXPECT_EQ(p.top[1].first, 3);
  EXPECT_EQ(p.top[2].first, 2);
  EXPECT_NEAR(p.top[0].second, 3 - norm, 1e-6);
  EXPECT_TRUE(log_probabilities(logits, 0, 0).top.empty());
  EXPECT_EQ(log_probabilities(logits, 0, 99).top.size(), 4u);
  EXPECT_NEAR(negative_log_likelihood(logits, 2), norm - 2, 1e-12);
}

}  // namespace
}  // namespace xlstm::infer
