// Whole models against the reference implementations: logits, states, greedy tokens, whatever the
// chunk and wherever the text is cut.

#include <gtest/gtest.h>

#include "core/float_bits.hpp"
#include "formats/temp_dir.hpp"
#include "model/golden.hpp"
#include "model/model_impl.hpp"
#include "model/state_numbers.hpp"
#include "test_device.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

using formats::SafetensorsFile;
using Ids = std::span<const std::int32_t>;

class GoldenTest : public ::testing::TestWithParam<Golden> {
 protected:
  Model load(const LoadOptions& options = {}) {
    return load_golden(GetParam(), scratch_.path() / "model", options);
  }
  SafetensorsFile file_ = SafetensorsFile::open(GetParam().outputs);
  // The 77 tokens: of hf_* its inputs, of large_* the ragged ones.
  std::string prefix_ = file_.tensors().contains("ragged.logits") ? "ragged." : "";

  std::vector<double> expected_logits(std::int64_t row) const {
    const std::vector<double> all = numbers(file_, prefix_ + "logits");
    const std::size_t n = all.size() / 2;
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(n) * row;
    return {begin, begin + static_cast<std::ptrdiff_t>(n)};
  }
  void expect_state(const State& state, std::int64_t row) const {
    for (std::int64_t block = 0; block < 2; ++block) {
      const std::string name =
          (prefix_.empty() ? "state." : "ragged.state77.") + std::to_string(block) + ".";
      const auto check = [&](const char* part, const Tensor& t) {
        const std::vector<double> both = numbers(file_, name + part);
        const std::size_t n = both.size() / 2;
        const std::span<const double> expected =
            std::span(both).subspan(n * static_cast<std::size_t>(row), n);
        EXPECT_LT(relative_difference(numbers(t), expected), 1e-4) << name << part;
      };
      check("C", state.c(block));
      check("n", state.n(block));
      check("m", state.m(block));
    }
  }

 private:
  formats::TempDir scratch_;
};

std::vector<float> all_logits(Model& model, State& state, Ids ids) {
  std::vector<float> logits(ids.size() * static_cast<std::size_t>(model.config().vocab_size));
  const SequenceInput input{.ids = ids, .state = &state};
  model.forward(std::span(&input, 1), Logits::all, logits);
  return logits;
}

TEST_P(GoldenTest, LogitsAndStatesForEveryChunkSize) {
  for (const std::int64_t chunk : {1, 7, 16, 64, 77}) {
    SCOPED_TRACE(chunk);
    LoadOptions options;
    options.chunk_size = chunk;
    Model model = load(options);
    for (std::int64_t row = 0; row < 2; ++row) {
      State state = model.make_state();
      const std::vector<float> logits =
          all_logits(model, state, ids_of(file_, prefix_ + "input_ids", row));
      EXPECT_LT(largest_difference(logits, expected_logits(row)), 1e-4);
      expect_state(state, row);
      EXPECT_EQ(state.token_count(), 77);
    }
  }
}

TEST_P(GoldenTest, EverySplitOfTheText) {
  Model model = load();
  const std::vector<std::int32_t> ids = ids_of(file_, prefix_ + "input_ids", 1);
  const std::vector<double> expected = expected_logits(1);
  for (std::size_t cut = 1; cut < ids.size(); ++cut) {
    State state = model.make_state();
    std::vector<float> logits = all_logits(model, state, Ids(ids).first(cut));
    const std::vector<float> rest = all_logits(model, state, Ids(ids).subspan(cut));
    logits.insert(logits.end(), rest.begin(), rest.end());
    ASSERT_LT(largest_difference(logits, expected), 1e-4) << "cut at " << cut;
    expect_state(state, 1);
  }
}

TEST_P(GoldenTest, OneTokenAtATime) {
  Model model = load();
  const std::vector<std::int32_t> ids = ids_of(file_, prefix_ + "input_ids", 0);
  State state = model.make_state();
  std::vector<float> logits;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const std::span<const float> row = model.eval(state, Ids(ids).subspan(t, 1));
    logits.insert(logits.end(), row.begin(), row.end());
  }
  EXPECT_LT(largest_difference(logits, expected_logits(0)), 1e-4);
  expect_state(state, 0);
}

// Rounds the matrices of a float32 model on a device as one of bf16 arithmetic has them there.
void round_matrices(Model& model) {
  for (const model::Parameter& p : model.impl().parameters) {
    if (!p.quantisable) continue;
    const Tensor& t = *p.view;
    std::vector<float> values(static_cast<std::size_t>(t.count()));
    copy_memory(values.data(), {}, t.data, t.device, t.bytes());
    for (float& x : values) x = bf16_to_f32(f32_to_bf16(x));
    copy_memory(t.data, t.device, values.data(), {}, t.bytes());
  }
}

TEST_P(GoldenTest, Bf16ArithmeticStaysNear) {
  const std::vector<std::int32_t> ids = ids_of(file_, prefix_ + "input_ids", 0);
  std::vector<double> expected = expected_logits(0);
  if (!test_device().is_cpu()) {
    Model rounded = load();
    round_matrices(rounded);
    State state = rounded.make_state();
    const std::vector<float> logits = all_logits(rounded, state, ids);
    expected.assign(logits.begin(), logits.end());
  }
  LoadOptions options;
  options.dtype = DType::bf16;
  Model model = load(options);
  State state = model.make_state();
  const std::vector<float> logits = all_logits(model, state, ids);
  const double difference = relative_difference(logits, expected);
  EXPECT_LT(difference, 0.1);
  EXPECT_GT(difference, 1e-5) << "nothing was rounded to bf16";
}

TEST_P(GoldenTest, GreedyTokens) {
  Model model = load();
  for (std::int64_t row = 0; row < 2; ++row) {
    std::vector<std::int32_t> prompt, expected;
    if (prefix_.empty()) {
      const std::vector<std::int32_t> all = ids_of(file_, "greedy.tokens", row);
      prompt.assign(all.begin(), all.begin() + 20);
      expected.assign(all.begin() + 20, all.end());
    } else {
      prompt = ids_of(file_, "ragged.input_ids", row);
      prompt.resize(20);
      expected = ids_of(file_, "greedy.tokens_after_20", row);
    }
    GenerateOptions options;
    options.sampler.temperature = 0;
    options.max_tokens = static_cast<std::int64_t>(expected.size());
    options.ignore_eos = true;
    const std::vector<Generation> results = generate(model, std::span(&prompt, 1), options);
    EXPECT_EQ(results[0].ids, expected);
    EXPECT_EQ(results[0].finish_reason, FinishReason::length);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest, ::testing::ValuesIn(golden_models()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace xlstm::testing
