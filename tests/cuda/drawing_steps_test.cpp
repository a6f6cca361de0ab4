// Text whose tokens a CUDA device draws itself, beside the same text without that: asking for
// log-probabilities brings all logits to the host, which then chooses.

#include "model/drawing_steps.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "infer/sampler.hpp"
#include "model/model_impl.hpp"
#include "model/small_model.hpp"
#include "model/state_numbers.hpp"
#include "xlstm/error.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

using Ids = std::vector<std::int32_t>;

GenerateOptions drawn(std::int64_t tokens, float temperature = 1.5F) {
  GenerateOptions options;
  options.max_tokens = tokens;
  options.sampler.temperature = temperature;
  options.sampler.seed = 11;
  return options;
}
GenerateOptions chosen(GenerateOptions options) {
  options.logprobs = 0;
  return options;
}

// One whose end of text is what it draws as token `at` of a text.
Model model_that_ends(const Ids& prompt, std::int64_t at, const GenerateOptions& how,
                      LoadOptions load = {}) {
  load.device = test_device();
  Config config = small_config();
  config.eos_token_id.clear();
  Model endless = Model::random(config, DType::f32, 7, load);
  const Generation g = generate(endless, std::vector<Ids>{prompt}, how).front();
  config.eos_token_id = {g.ids[static_cast<std::size_t>(at)]};
  return Model::random(config, DType::f32, 7, load);
}

TEST(DrawingSteps, AreThere) {
  Model model = small_model();
  const auto make = [&](std::size_t sequences) {
    return model::DrawingSteps::make(model, sequences, 1, false);
  };
  EXPECT_TRUE(make(16));
  EXPECT_FALSE(make(17)) << "one pass of an exact model";
  const auto others = make(1);
  EXPECT_FALSE(make(1));
}

TEST(DrawingSteps, WriteTheTextThatTheHostWouldChoose) {
  Model model = small_model();
  std::vector<Ids> prompts;
  for (std::uint32_t i = 0; i < 5; ++i) prompts.push_back(some_ids(3 + 2 * i, i));
  for (const float temperature : {0.0F, 1.5F})
    for (const std::int64_t tokens : {1, 2, 3, 20}) {
      const GenerateOptions how = drawn(tokens, temperature);
      const auto a = generate(model, prompts, how), b = generate(model, prompts, chosen(how));
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        EXPECT_EQ(a[i].ids, b[i].ids) << i;
        EXPECT_EQ(a[i].finish_reason, b[i].finish_reason);
        EXPECT_EQ(a[i].timings.generated_tokens, b[i].timings.generated_tokens);
      }
    }
}

TEST(DrawingSteps, SomeEndBeforeOthers) {
  std::vector<Ids> prompts;
  for (std::uint32_t i = 0; i < 6; ++i) prompts.push_back(some_ids(4, i));
  const GenerateOptions how = drawn(60);
  Model model = model_that_ends(prompts[2], 3, how);
  const auto a = generate(model, prompts, how), b = generate(model, prompts, chosen(how));
  std::size_t ended = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(a[i].ids, b[i].ids) << i;
    ended += a[i].finish_reason == FinishReason::stop ? 1 : 0;
  }
  EXPECT_GE(ended, 1U);
}

// A state holds what was written, whether the text ends by itself, by its length or by a wish, and
// goes on as if nobody had read ahead.
TEST(DrawingSteps, LeaveAStateWhereTheTextEnds) {
  const Ids prompt = some_ids(5);
  for (const DType state_dtype : {DType::f32, DType::bf16})
    for (const std::int64_t at : {0, 1, 5}) {
      SCOPED_TRACE(::testing::Message() << to_string(state_dtype) << ", end at " << at);
      const GenerateOptions how = drawn(8);
      LoadOptions load;
      load.state_dtype = state_dtype;
      Model model = model_that_ends(prompt, at, how, load);
      for (const std::int64_t tokens : {1, 3, 8})
        for (const int wish : {-1, 0, 2})
          for (const bool ignore_eos : {false, true}) {
            if (state_dtype == DType::bf16 && tokens < 8) continue;
            SCOPED_TRACE(::testing::Message() << tokens << " tokens, stop before " << wish
                                              << (ignore_eos ? ", endless" : ""));
            const auto write = [&](GenerateOptions options, State& state) {
              options.max_tokens = tokens;
              options.ignore_eos = ignore_eos;
              GenerateCallbacks callbacks;
              int asked = 0;
              callbacks.should_stop = [&] { return asked++ == wish; };
              const Generation first = generate(model, state, prompt, options, callbacks);
              options.ignore_eos = true;
              options.max_tokens = 3;
              State fork = state.clone();
              return std::pair(first, generate(model, fork, {}, options));
            };
            State a = model.make_state(), b = model.make_state();
            const auto [first_a, rest_a] = write(how, a);
            const auto [first_b, rest_b] = write(chosen(how), b);
            EXPECT_EQ(first_a.ids, first_b.ids);
            EXPECT_EQ(first_a.finish_reason, first_b.finish_reason);
            EXPECT_EQ(rest_a.ids, rest_b.ids);
            EXPECT_EQ(a.token_count(), b.token_count());
            EXPECT_EQ(outcome(a), outcome(b));
          }
    }
}

TEST(DrawingSteps, ABrokenModelIsNamed) {
  Config config = small_config();
  LoadOptions load;
  load.device = test_device();
  Model model = Model::random(config, DType::f32, 7, load);
  Tensor& norm = model.impl().network.out_norm;
  std::vector<float> nan(static_cast<std::size_t>(norm.count()), NAN);
  copy_memory(norm.data, test_device(), nan.data(), {}, norm.bytes());
  EXPECT_THROW(generate(model, std::vector<Ids>{some_ids(3)}, drawn(5)), Error);
  EXPECT_TRUE(model::DrawingSteps::make(model, 1, 1, false)) << "nobody's steps are left";
}

TEST(DrawingSteps, OthersMayUseTheModelBetweenThem) {
  Model model = small_model();
  GenerateOptions how = drawn(20);
  how.ignore_eos = true;
  const Ids prompt = some_ids(6);
  const Ids alone = generate(model, std::vector<Ids>{prompt}, how).front().ids;
  GenerateCallbacks callbacks;
  std::size_t asked = 0;
  callbacks.should_stop = [&] {
    State other = model.make_state();
    model.eval(other, some_ids(1 + asked % 40));
    const std::vector<Ids> prompts{some_ids(2)};
    EXPECT_EQ(generate(model, prompts, drawn(3)).front().ids,
              generate(model, prompts, chosen(drawn(3))).front().ids);
    ++asked;
    return false;
  };
  EXPECT_EQ(generate(model, std::vector<Ids>{prompt}, how, callbacks).front().ids, alone);
  EXPECT_EQ(asked, 20U);
}

TEST(DrawingSteps, SeveralThreadsWriteWithOneModel) {
  Model model = small_model();
  const GenerateOptions how = drawn(15);
  const auto text = [&](std::uint32_t seed) {
    return generate(model, std::vector<Ids>{some_ids(5, seed)}, how).front().ids;
  };
  const std::vector<Ids> want = {text(1), text(2)};
  std::vector<Ids> got(2);
  std::thread other([&] { got[1] = text(2); });
  got[0] = text(1);
  other.join();
  EXPECT_EQ(got, want);
}

}  // namespace
}  // namespace xlstm::testing
