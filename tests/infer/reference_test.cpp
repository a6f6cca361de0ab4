// Trained models against the reference: greedy text, log-probabilities, likelihoods. In bfloat16 a
// text may leave the reference's only where two tokens are nearly as likely.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "formats/config_files.hpp"
#include "source_dir.hpp"
#include "test_device.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kSource = source_dir();
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

Model load(const fs::path& directory, DType dtype, Device device = test_device()) {
  LoadOptions options;
  options.device = device;
  options.dtype = dtype;
  return Model::load(directory, options);
}

/// How much likelier the best token is than the next best, as logits.
double margin(Model& model, std::span<const std::int32_t> ids) {
  State state = model.make_state();
  const std::span<const float> logits = model.eval(state, ids);
  std::vector<float> best(logits.begin(), logits.end());
  std::ranges::nth_element(best, best.begin() + 1, std::greater<>());
  return static_cast<double>(best[0]) - static_cast<double>(best[1]);
}

/// @param margin_at  that of the reference before its token i
void expect_greedy(const std::vector<std::int32_t>& got, const std::vector<std::int32_t>& expected,
                   DType dtype, const std::function<double(std::size_t)>& margin_at) {
  ASSERT_EQ(got.size(), expected.size());
  const auto [end, unused] = std::ranges::mismatch(expected, got);
  if (end == expected.end()) return;
  const auto first = static_cast<std::size_t>(end - expected.begin());
  // On the CPU float32 gives the reference's text throughout.
  const double close = dtype != DType::f32 ? 0.1 : test_device().is_cpu() ? 0 : 1e-3;
  EXPECT_LE(margin_at(first), close) << "first difference at token " << first;
}

class DefaultModelReferenceTest : public ::testing::TestWithParam<DType> {};

TEST_P(DefaultModelReferenceTest, GreedyText) {
  const fs::path directory = kSource / "models/shakespeare-byte";
  Model model = load(directory, GetParam());
  const json golden = read_json(directory / "golden.json");
  const std::vector<std::int32_t> prompt = golden.at("prompt_ids"), expected = golden.at("greedy");
  EXPECT_EQ(model.encode_prompt(golden.at("prompt").get<std::string>()), prompt);
  const auto ids = generate(model, std::span(&prompt, 1), greedy(expected.size()))[0].ids;
  expect_greedy(ids, expected, GetParam(), [&](std::size_t i) {
    Model exact = load(directory, DType::f32, {});
    std::vector<std::int32_t> before = prompt;
    before.insert(before.end(), expected.begin(),
                  expected.begin() + static_cast<std::ptrdiff_t>(i));
    return margin(exact, before);
  });
}

std::string name_of(const ::testing::TestParamInfo<DType>& info) { return to_string(info.param); }
INSTANTIATE_TEST_SUITE_P(Types, DefaultModelReferenceTest,
                         ::testing::Values(DType::f32, DType::bf16), name_of);

// The tests below run where the reference data lies beside the sources.
class SharedDataTest : public ::testing::TestWithParam<DType> {
 protected:
  static void expect_likelihood(double got, double golden) {
    EXPECT_NEAR(got, golden, GetParam() == DType::f32 ? 1e-4 : 5e-3 * golden);
  }
};

TEST_P(SharedDataTest, DefaultModelLikelihood) {
  Model model = load(kSource / "models/shakespeare-byte", GetParam());
  const json golden = read_json(kSource / "models/shakespeare-byte/golden.json");
  expect_likelihood(likelihood(model, tail(kShared / "data/tinyshakespeare.txt", 0.9), 64),
                    golden.at("val_nll_first_64_windows_of_512").get<double>());
}

TEST_P(SharedDataTest, ReferenceCheckpoint) {
  Model model = load(kShared / "golden/reference_checkpoint", GetParam());
  const json golden = read_json(kShared / "golden/reference_checkpoint/golden.json");
  ASSERT_EQ(golden.at("prompts").size(), 6u);
  for (const json& p : golden.at("prompts")) {
    const std::vector<std::int32_t> prompt = p.at("input_ids"), expected = p.at("greedy");
    EXPECT_EQ(model.encode_prompt(p.at("text").get<std::string>()), prompt);
    EXPECT_EQ(model.tokenizer()->decode(expected), p.at("greedy_text").get<std::string>());
    GenerateOptions options = greedy(expected.size());
    options.logprobs = 10;
    const Generation g = generate(model, std::span(&prompt, 1), options)[0];
    const std::vector<double> margins = p.at("greedy_margin");
    expect_greedy(g.ids, expected, GetParam(), [&](std::size_t i) { return margins.at(i); });
    if (GetParam() != DType::f32) continue;
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
  expect_likelihood(likelihood(model, tail(kShared / "data/tinyshakespeare.txt", 0.95), 40),
                    golden.at("nll_shakespeare_tail").at("nll").get<double>());
  expect_likelihood(likelihood(model, tail(kShared / "data/wikitext2_test.txt", 0.5), 40),
                    golden.at("nll_wikitext2_test_second_half").at("nll").get<double>());
}

std::vector<DType> when_shared() {
  if (!fs::exists(kShared / "golden/reference_checkpoint/golden.json")) return {};
  return {DType::f32, DType::bf16};
}
INSTANTIATE_TEST_SUITE_P(WithData, SharedDataTest, ::testing::ValuesIn(when_shared()), name_of);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(SharedDataTest);

}  // namespace
}  // namespace xlstm::testing
