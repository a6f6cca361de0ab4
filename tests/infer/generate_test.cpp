// Generation: what ends a text, what is in a result, and that nobody depends on the company.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "allocation_counter.hpp"
#include "formats/expect_error.hpp"
#include "model/small_model.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

const std::filesystem::path kDefaultModel =
    std::filesystem::path(XLSTM_SOURCE_DIR) / "models/shakespeare-byte";

GenerateOptions greedy(std::int64_t n) {
  GenerateOptions options;
  options.sampler.temperature = 0;
  options.max_tokens = n;
  return options;
}

Generation one(Model& model, const std::vector<std::int32_t>& prompt,
               const GenerateOptions& options, const GenerateCallbacks& callbacks = {}) {
  return generate(model, std::span(&prompt, 1), options, callbacks)[0];
}

class DefaultModelTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = new Model(Model::load(kDefaultModel)); }
  static void TearDownTestSuite() { delete model_; }
  static Model& model() { return *model_; }
  static std::vector<std::int32_t> prompt() { return model().encode_prompt("ROMEO:\n"); }

 private:
  static Model* model_;
};
Model* DefaultModelTest::model_ = nullptr;

TEST_F(DefaultModelTest, StreamsExactlyTheText) {
  std::string streamed;
  GenerateCallbacks callbacks;
  callbacks.on_text = [&](std::size_t index, std::string_view text) {
    EXPECT_EQ(index, 0u);
    EXPECT_FALSE(text.empty());
    streamed += text;
  };
  const Generation g = one(model(), prompt(), greedy(100), callbacks);
  EXPECT_EQ(g.prompt_ids, prompt());
  EXPECT_EQ(g.ids.size(), 100u);
  EXPECT_EQ(g.finish_reason, FinishReason::length);
  EXPECT_EQ(g.text, model().tokenizer()->decode(g.ids, true));
  EXPECT_EQ(streamed, g.text);
  EXPECT_EQ(g.timings.prompt_tokens, static_cast<std::int64_t>(prompt().size()));
  EXPECT_EQ(g.timings.generated_tokens, 100);
  EXPECT_GT(g.timings.prompt_s, 0);
  EXPECT_GT(g.timings.generate_s, 0);
  EXPECT_TRUE(g.logprobs.empty());
}

TEST_F(DefaultModelTest, StopStringsEndTheTextBeforeThem) {
  const std::string whole = one(model(), prompt(), greedy(100)).text;
  for (const std::string stop : {"county will", "\n", " ", "counterfeit"}) {
    const std::size_t at = whole.find(stop);
    ASSERT_NE(at, std::string::npos) << stop;
    GenerateOptions options = greedy(100);
    options.stop = {"never there", stop};
    std::string streamed;
    GenerateCallbacks callbacks;
    callbacks.on_text = [&](std::size_t, std::string_view text) { streamed += text; };
    const Generation g = one(model(), prompt(), options, callbacks);
    EXPECT_EQ(g.text, whole.substr(0, at));
    EXPECT_EQ(streamed, g.text);
    EXPECT_EQ(g.finish_reason, FinishReason::stop);
    EXPECT_EQ(model().tokenizer()->decode(g.ids, true), whole.substr(0, at + stop.size()));
  }
}

TEST_F(DefaultModelTest, TextAllocatesOnlyAsItGrows) {
  const auto allocations = [&](std::int64_t n) {
    GenerateOptions options = greedy(n);
    options.ignore_eos = true;
    options.stop = {"never there"};
    const AllocationCounter counter;
    one(model(), prompt(), options);
    return counter.count();
  };
  allocations(200);
  EXPECT_LE(allocations(200) - allocations(20), 6) << "180 tokens: the text doubles 4 times";
}

TEST_F(DefaultModelTest, SamplesAreReproducible) {
  GenerateOptions options;
  options.max_tokens = 40;
  options.sampler.seed = 11;
  const Generation a = one(model(), prompt(), options), b = one(model(), prompt(), options);
  EXPECT_EQ(a.ids, b.ids);
  options.sampler.seed = 12;
  EXPECT_NE(one(model(), prompt(), options).ids, a.ids);
}

TEST_F(DefaultModelTest, EmptyPromptBeginsWithBos) {
  const Generation g = one(model(), {}, greedy(3));
  EXPECT_EQ(g.prompt_ids, std::vector<std::int32_t>{model().bos_id()});
  EXPECT_EQ(one(model(), {model().bos_id()}, greedy(3)).ids, g.ids);
}

TEST_F(DefaultModelTest, BosRules) {
  // tokenizer_config.json says add_bos_token: false.
  EXPECT_EQ(model().bos_id(), 0);
  EXPECT_FALSE(model().adds_bos());
  EXPECT_EQ(model().encode_prompt("ROMEO:\n"), model().encode_prompt("ROMEO:\n", true));
  EXPECT_EQ(model().eos_ids(), std::vector<std::int32_t>{0});
  EXPECT_LE(model().sampleable_ids(), model().config().vocab_size);
}

TEST(GenerateTest, ABatchGivesWhatEachGivesAlone) {
  LoadOptions load;
  load.threads = 2;
  Model model = small_model(DType::bf16, load);
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::vector<std::int32_t>> alone;
  GenerateOptions options;
  options.max_tokens = 30;
  options.sampler.seed = 5;
  options.ignore_eos = true;
  for (std::size_t size = 1; size <= 16; ++size) {
    prompts.push_back(some_ids(1 + size * 7 % 40, static_cast<std::uint32_t>(size)));
    alone.push_back(one(model, prompts.back(), options).ids);
    const std::vector<Generation> batch = generate(model, prompts, options);
    ASSERT_EQ(batch.size(), size);
    for (std::size_t i = 0; i < size; ++i) {
      EXPECT_EQ(batch[i].ids, alone[i]) << "sequence " << i << " of " << size;
      EXPECT_EQ(batch[i].prompt_ids, prompts[i]);
    }
  }
}

TEST(GenerateTest, NothingIsAllocatedPerToken) {
  Model model = small_model();
  const auto allocations = [&](std::int64_t n) {
    GenerateOptions options;
    options.max_tokens = n;
    options.sampler.repeat_penalty = 1.1F;
    options.ignore_eos = true;
    const AllocationCounter counter;
    one(model, {1, 2, 3}, options);
    return counter.count();
  };
  allocations(100);
  EXPECT_EQ(allocations(20), allocations(100));
}

TEST(GenerateTest, EndOfTextEndsAndIsNotInTheResult) {
  // The id that comes third becomes the end of text.
  Config config = small_config();
  config.eos_token_id = {};
  Model plain = Model::random(config, DType::f32, 7);
  const std::vector<std::int32_t> prompt = some_ids(9);
  const std::vector<std::int32_t> ids = one(plain, prompt, greedy(10)).ids;
  EXPECT_EQ(ids.size(), 10u);
  config.eos_token_id = {ids[2]};
  Model model = Model::random(config, DType::f32, 7);
  const auto end = std::find(ids.begin(), ids.end(), ids[2]);
  GenerateOptions options = greedy(10);
  options.logprobs = 1;
  Generation g = one(model, prompt, options);
  EXPECT_EQ(g.ids, std::vector<std::int32_t>(ids.begin(), end));
  EXPECT_EQ(g.finish_reason, FinishReason::stop);
  EXPECT_EQ(g.logprobs.size(), g.ids.size());
  options.max_tokens = -1;
  EXPECT_EQ(one(model, prompt, options).ids, g.ids);
  options.max_tokens = 10;
  options.ignore_eos = true;
  EXPECT_EQ(one(model, prompt, options).ids, ids);
}

TEST(GenerateTest, LogProbabilitiesIgnoreTheSampler) {
  Model model = small_model();
  const std::vector<std::int32_t> prompt = some_ids(9);
  GenerateOptions options = greedy(4);
  options.ignore_eos = true;
  options.logprobs = 3;
  options.sampler.logit_bias = {{17, 1000.0F}};
  const Generation g = one(model, prompt, options);
  EXPECT_EQ(g.ids, std::vector<std::int32_t>(4, 17));
  State state = model.make_state();
  const std::span<const float> logits = model.eval(state, prompt);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  ASSERT_EQ(g.logprobs.size(), 4u);
  EXPECT_EQ(g.logprobs[0].id, 17);
  EXPECT_NEAR(g.logprobs[0].logprob, static_cast<double>(logits[17]) - std::log(sum), 1e-5);
  ASSERT_EQ(g.logprobs[0].top.size(), 3u);
  EXPECT_EQ(g.logprobs[0].top[0].first,
            std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST(GenerateTest, ShouldStopEndsCleanlyWithWhatThereIs) {
  Model model = small_model();
  int asked = 0;
  GenerateCallbacks callbacks;
  callbacks.should_stop = [&] { return ++asked > 5; };
  GenerateOptions options = greedy(-1);
  options.ignore_eos = true;
  const Generation g = one(model, some_ids(3), options, callbacks);
  EXPECT_EQ(g.ids.size(), 5u);
  EXPECT_EQ(g.finish_reason, FinishReason::length);
}

TEST(GenerateTest, ProgressOfLongPromptsAndStoppingInside) {
  Model model = small_model();
  std::vector<std::int64_t> done;
  GenerateCallbacks callbacks;
  callbacks.on_prompt = [&](std::int64_t d, std::int64_t total) {
    EXPECT_EQ(total, 1300);
    done.push_back(d);
  };
  const std::vector<std::int32_t> prompt = some_ids(1300);
  const Generation g = one(model, prompt, greedy(1), callbacks);
  EXPECT_EQ(done, (std::vector<std::int64_t>{512, 1024, 1300}));
  State state = model.make_state();  // the pieces change no bit
  const std::span<const float> logits = model.eval(state, prompt);
  EXPECT_EQ(g.ids[0], std::max_element(logits.begin(), logits.end()) - logits.begin());
  callbacks.should_stop = [] { return true; };
  callbacks.on_prompt = {};
  const Generation stopped = one(model, prompt, greedy(5), callbacks);
  EXPECT_TRUE(stopped.ids.empty());
  EXPECT_EQ(stopped.timings.prompt_tokens, 512);
}

TEST(GenerateTest, AStateContinues) {
  Model model = small_model();
  GenerateOptions options = greedy(8);
  options.ignore_eos = true;
  const std::vector<std::int32_t> prompt = some_ids(9);
  const std::vector<std::int32_t> whole = one(model, prompt, options).ids;
  State state = model.make_state();
  options.max_tokens = 3;
  const Generation first = generate(model, state, prompt, options);
  EXPECT_EQ(first.ids, std::vector<std::int32_t>(whole.begin(), whole.begin() + 3));
  EXPECT_EQ(state.token_count(), 12) << "the state holds the prompt and all that was generated";
  options.max_tokens = 5;
  const Generation rest = generate(model, state, {}, options);
  EXPECT_EQ(rest.ids, std::vector<std::int32_t>(whole.begin() + 3, whole.end()));
  EXPECT_TRUE(rest.prompt_ids.empty());
  EXPECT_EQ(state.token_count(), 17);
  State fork = state.clone();
  EXPECT_EQ(generate(model, fork, {}, options).ids, generate(model, state, {}, options).ids);
}

TEST(GenerateTest, BadInput) {
  Model model = small_model();
  const auto refuse = [&](const std::vector<std::int32_t>& prompt, const GenerateOptions& options,
                          std::string_view message) {
    expect_error(ErrorCode::invalid_argument, {message}, [&] { one(model, prompt, options); });
  };
  refuse({1, 101}, greedy(1), "prompt token 1: expected an id in [0, 101), found 101");
  refuse({-1}, greedy(1), "found -1");
  refuse({1}, greedy(-2), "max_tokens");
  GenerateOptions options = greedy(1);
  options.stop = {"x"};
  refuse({1}, options, "tokenizer");
  options = greedy(1);
  options.logprobs = -2;
  refuse({1}, options, "logprobs");
  Config config = small_config();
  config.bos_token_id.reset();
  Model none = Model::random(config, DType::f32, 7);
  EXPECT_EQ(none.bos_id(), -1);
  expect_error(ErrorCode::invalid_argument, {"empty", "BOS"}, [&] { one(none, {}, greedy(1)); });
  EXPECT_TRUE(generate(model, {}, greedy(1)).empty());
  EXPECT_TRUE(one(model, {1}, greedy(0)).ids.empty());
}

}  // namespace
}  // namespace xlstm::testing
