#include "ops/draw.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "infer/sampler.hpp"
#include "ops/support.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops::test {
namespace {

// What a step that draws has in memory.
struct Rows {
  std::vector<Draw> draws;
  std::vector<std::int32_t> ends, next, ids;
  std::vector<std::byte*> slots;
  std::vector<float> values;

  explicit Rows(std::vector<Draw> all)
      : draws(std::move(all)),
        next(draws.size(), -1),
        ids(draws.size(), -1),
        slots(draws.size(), nullptr),
        values(draws.size(), NAN) {}

  void draw(Context& context, std::vector<float>& logits, std::int64_t count) {
    const auto rows = static_cast<std::int64_t>(draws.size());
    const auto width = static_cast<std::int64_t>(logits.size()) / rows;
    const auto tensor = [](auto& of, DType dtype, std::initializer_list<std::int64_t> sizes) {
      return Tensor::dense(of.data(), dtype, sizes, test_device());
    };
    // No run(): it would draw twice.
    const DrawTokensArgs args{
        .logits = tensor(logits, DType::f32, {rows, width}),
        .count = count,
        .draws = tensor(draws, DType::u8, {rows, sizeof(Draw)}),
        .ends = tensor(ends, DType::i32, {static_cast<std::int64_t>(ends.size())}),
        .slots = tensor(slots, DType::u8, {rows, sizeof(std::byte*)}),
        .next = tensor(next, DType::i32, {rows}),
        .ids = tensor(ids, DType::i32, {rows}),
        .values = tensor(values, DType::f32, {rows})};
    run_alone<DrawTokensArgs>(context, draw_tokens, args);
    context.synchronize();
  }
};

TEST(DrawTokens, AreThoseThatTheSamplerChooses) {
  const auto chain = [](float temperature, int top_k, float top_p, float min_p) {
    SamplerOptions o;
    o.temperature = temperature;
    o.top_k = top_k;
    o.top_p = top_p;
    o.min_p = min_p;
    return o;
  };
  const SamplerOptions chains[] = {SamplerOptions{},
                                   chain(0, 40, 0.95F, 0.05F),
                                   chain(1.7F, 64, 1, 0),
                                   chain(1, 1, 0.95F, 0.05F),
                                   chain(3, 33, 0.5F, 0),
                                   chain(2, 50, 1, 0.4F),
                                   chain(0.05F, 20, 0.9F, 1.0F)};
  for (const std::int64_t width : {70, 2048, 5000}) {
    std::vector<infer::Sampler> samplers;
    std::vector<Draw> draws;
    for (const SamplerOptions& options : chains) {
      samplers.emplace_back(options, static_cast<std::int32_t>(width));
      draws.push_back(samplers.back().draw());
    }
    Rows rows(draws);
    Context context(test_device(), 2);
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0, 2);
    for (int step = 0; step < 40; ++step) {
      std::vector<float> logits(draws.size() * static_cast<std::size_t>(width));
      for (float& x : logits) x = normal(random);
      rows.draw(context, logits, 64);
      for (std::size_t r = 0; r < draws.size(); ++r) {
        const std::span row = std::span(logits).subspan(r * static_cast<std::size_t>(width),
                                                        static_cast<std::size_t>(width));
        const std::int32_t id = samplers[r].sample(row);
        EXPECT_EQ(rows.ids[r], id) << "chain " << r << ", step " << step << " of " << width;
        EXPECT_EQ(rows.next[r], id);
        EXPECT_EQ(rows.values[r], row[static_cast<std::size_t>(rows.ids[r])]);
        EXPECT_EQ(samplers[r].draw().generator.s[0], rows.draws[r].generator.s[0]);
      }
    }
  }
}

TEST(DrawTokens, AnEndMovesTheRecordOfThoseWhoWantIt) {
  std::byte before, after;
  std::vector<float> logits(4 * 10, 0.0F);
  const std::int32_t best[] = {7, 3, 7, 2};  // of each row
  for (std::size_t r = 0; r < 4; ++r) logits[10 * r + static_cast<std::size_t>(best[r])] = 9;
  Rows rows(std::vector<Draw>(4));
  rows.ends = {2, 7};
  for (std::size_t r = 0; r < 4; ++r) {
    rows.slots[r] = &before;
    rows.draws[r].after_end = r == 2 ? nullptr : &after;
  }
  Context context(test_device(), 1);
  rows.draw(context, logits, 1);
  EXPECT_EQ(rows.ids, (std::vector<std::int32_t>{7, 3, 7, 2}));
  EXPECT_EQ(rows.slots, (std::vector<std::byte*>{&after, &before, &before, &after}));
}

TEST(DrawTokens, WhatIsNotFiniteIsTaken) {
  for (const float broken : {std::numeric_limits<float>::infinity(), NAN}) {
    std::vector<float> logits(3000, 1.0F);
    logits[2100] = broken;
    Rows rows({infer::Sampler({}, 3000).draw()});
    Context context(test_device(), 1);
    rows.draw(context, logits, 40);
    EXPECT_EQ(rows.ids[0], 2100);
    EXPECT_FALSE(std::isfinite(rows.values[0]));
  }
}

TEST(DrawTokens, WrongArgumentsAreRefused) {
  Context context(test_device(), 1);
  std::vector<float> logits(10);
  EXPECT_THROW(Rows({Draw{}}).draw(context, logits, 11), Error);
  EXPECT_THROW(Rows({Draw{}}).draw(context, logits, 0), Error);
}

}  // namespace
}  // namespace xlstm::ops::test
