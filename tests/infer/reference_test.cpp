// Trained models against the reference: greedy text, log-probabilities, likelihoods.

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "formats/config_files.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kSource = XLSTM_SOURCE_DIR;
const fs::path kShared = kSource / "../shared";

json read_json(const fs::path& path) { return json::parse(formats::read_text_file(path)); }

// The part of a text from a fraction of its characters on.
std::string tail(const fs::path& path, double from) {
  const std::string text = formats::read_text_file(path);
  const auto starts_character = [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U;
  };
  const auto characters = std::count_if(text.begin(), text.end(), starts_character);
  auto skip = static_cast<std::ptrdiff_t>(static_cast<double>(characters) * from);
  std::size_t at = 0;
  while (at < text.size() && (skip > 0 || !starts_character(text[at])))
    if (starts_character(text[at++])) --skip;
  while (at < text.size() && !starts_character(text[at])) ++at;
  return text.substr(at);
}

double likelihood(Model& model, const std::string& text, std::int64_t windows) {
  EvaluateOptions options;
  options.window = 512;
  options.windows = windows;
  options.no_bos = true;
  return evaluate(model, model.tokenizer()->encode(text), options).nll;
}

GenerateOptions greedy(std::size_t n) {
  GenerateOptions options;
  options.sampler.temperature = 0;
  options.max_tokens = static_cast<std::int64_t>(n);
  options.ignore_eos = true;
  return options;
}

TEST(DefaultModelReferenceTest, GreedyText) {
  Model model = Model::load(kSource / "models/shakespeare-byte");
  const json golden = read_json(kSource / "models/shakespeare-byte/golden.json");
  const std::vector<std::int32_t> prompt = golden.at("prompt_ids");
  EXPECT_EQ(model.encode_prompt(golden.at("prompt").get<std::string>()), prompt);
  const std::vector<std::int32_t> expected = golden.at("greedy");
  EXPECT_EQ(generate(model, std::span(&prompt, 1), greedy(expected.size()))[0].ids, expected);
}

// The tests below run where the reference data lies beside the sources.
class SharedDataTest : public ::testing::TestWithParam<int> {};

TEST_P(SharedDataTest, DefaultModelLikelihood) {
  Model model = Model::load(kSource / "models/shakespeare-byte");
  const json golden = read_json(kSource / "models/shakespeare-byte/golden.json");
  EXPECT_NEAR(likelihood(model, tail(kShared / "data/tinyshakespeare.txt", 0.9), 64),
              golden.at("val_nll_first_64_windows_of_512").get<double>(), 1e-4);
}

TEST_P(SharedDataTest, ReferenceCheckpoint) {
  Model model = Model::load(kShared / "golden/reference_checkpoint");
  const json golden = read_json(kShared / "golden/reference_checkpoint/golden.json");
  ASSERT_EQ(golden.at("prompts").size(), 6u);
  for (const json& p : golden.at("prompts")) {
    const std::vector<std::int32_t> prompt = p.at("input_ids"), expected = p.at("greedy");
    EXPECT_EQ(model.encode_prompt(p.at("text").get<std::string>()), prompt);
    GenerateOptions options = greedy(expected.size());
    options.logprobs = 10;
    const Generation g = generate(model, std::span(&prompt, 1), options)[0];
    EXPECT_EQ(g.ids, expected);
    EXPECT_EQ(model.tokenizer()->decode(g.ids), p.at("greedy_text").get<std::string>());
    ASSERT_EQ(g.logprobs[0].top.size(), 10u);
    for (std::size_t i = 0; i < 10; ++i) {
      EXPECT_EQ(g.logprobs[0].top[i].first, p.at("next_top10")[i][0].get<std::int32_t>());
      EXPECT_NEAR(g.logprobs[0].top[i].second, p.at("next_top10")[i][1].get<double>(), 1e-3);
    }
    State state = model.make_state();
    const std::span<const float> logits = model.eval(state, prompt);
    for (std::size_t i = 0; i < 64; ++i)
      EXPECT_NEAR(logits[i], p.at("next_logits")[i].get<double>(), 1e-3) << i;
  }
  EXPECT_NEAR(likelihood(model, tail(kShared / "data/tinyshakespeare.txt", 0.95), 40),
              golden.at("nll_shakespeare_tail").at("nll").get<double>(), 1e-4);
  EXPECT_NEAR(likelihood(model, tail(kShared / "data/wikitext2_test.txt", 0.5), 40),
              golden.at("nll_wikitext2_test_second_half").at("nll").get<double>(), 1e-4);
}

std::vector<int> when_shared() {
  return fs::exists(kShared / "golden/reference_checkpoint/golden.json") ? std::vector<int>{0}
                                                                         : std::vector<int>{};
}
INSTANTIATE_TEST_SUITE_P(WithData, SharedDataTest, ::testing::ValuesIn(when_shared()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(SharedDataTest);

}  // namespace
}  // namespace xlstm::testing
