// Models of the first xLSTM against NX-AI's: logits, step by step and whole, and states, whatever
// the chunk and wherever the text is cut.

#include <gtest/gtest.h>

#include <cmath>

#include "formats/temp_dir.hpp"
#include "model/golden.hpp"
#include "model/state_numbers.hpp"
#include "source_dir.hpp"
#include "test_device.hpp"

namespace xlstm::testing {
namespace {

namespace fs = std::filesystem;
using formats::SafetensorsFile;
using Ids = std::span<const std::int32_t>;

class StackGoldenTest : public ::testing::TestWithParam<Golden> {
 protected:
  Model load(LoadOptions options = {}) {
    options.device = test_device();
    const Golden& golden = GetParam();
    if (!golden.model.empty()) return Model::load(golden.model, options);
    write_nxai_directory(file_, scratch_.path() / "model");
    return Model::load(scratch_.path() / "model", options);
  }
  // Entry `row` of the outermost of 3 sequences.
  std::vector<double> entry(const std::string& name, std::int64_t row) const {
    const std::vector<double> all = numbers(file_, name);
    const auto n = static_cast<std::ptrdiff_t>(all.size() / 3);
    return {all.begin() + n * row, all.begin() + n * (row + 1)};
  }
  void expect_near(const Tensor& t, const std::vector<double>& expected, const std::string& name) {
    ASSERT_EQ(static_cast<std::size_t>(t.count()), expected.size()) << name;
    EXPECT_LT(relative_difference(numbers(t), expected), 1e-4) << name;
  }
  void expect_state(const State& state, std::int64_t row) {
    for (std::int64_t block = 0; block < state.blocks(); ++block) {
      const std::string name = "step.state.block_" + std::to_string(block) + ".";
      // The reference keeps the current token's input too.
      std::vector<double> window = entry(name + "conv_state.0", row);
      window.erase(window.begin(), window.begin() + state.window(block).dim(1));
      expect_near(state.window(block), window, name + "conv");
      if (state.h(block)) {
        const std::vector<double> all = numbers(file_, name + "slstm_state");  // [4, 3, D]
        const auto width = static_cast<std::size_t>(state.h(block).count());
        std::size_t part = 0;
        for (const Tensor& t : {state.h(block), state.c(block), state.n(block), state.m(block)}) {
          const auto begin =
              all.begin() +
              static_cast<std::ptrdiff_t>((3 * part++ + static_cast<std::size_t>(row)) * width);
          expect_near(t, {begin, begin + static_cast<std::ptrdiff_t>(width)}, name + "slstm");
        }
      } else {
        // The reference scales k by 1 / sqrt(DH) on its way into the state; here q is scaled.
        const double scale = std::sqrt(static_cast<double>(state.c(block).dim(2)));
        std::vector<double> c = entry(name + "mlstm_state.0", row);
        std::vector<double> n = entry(name + "mlstm_state.1", row);
        for (double& x : c) x *= scale;
        for (double& x : n) x *= scale;
        expect_near(state.c(block), c, name + "C");
        expect_near(state.n(block), n, name + "n");
        expect_near(state.m(block), entry(name + "mlstm_state.2", row), name + "m");
      }
    }
  }
  std::vector<float> all_logits(Model& model, State& state, Ids ids) {
    std::vector<float> logits(ids.size() * static_cast<std::size_t>(model.config().vocab_size));
    const SequenceInput input{.ids = ids, .state = &state};
    model.forward(std::span(&input, 1), Logits::all, logits);
    return logits;
  }
  SafetensorsFile file_ = SafetensorsFile::open(GetParam().outputs);

 private:
  formats::TempDir scratch_;
};

TEST_P(StackGoldenTest, LogitsAndStatesForEveryChunkSize) {
  for (const std::int64_t chunk : {1, 7, 16, 64}) {
    SCOPED_TRACE(chunk);
    LoadOptions options;
    options.chunk_size = chunk;
    Model model = load(options);
    for (std::int64_t row = 0; row < 3; ++row) {
      State state = model.make_state();
      const std::vector<float> logits = all_logits(model, state, ids_of(file_, "input_ids", row));
      EXPECT_LT(largest_difference(logits, entry("logits", row)), 1e-4);
      expect_state(state, row);
    }
  }
}

TEST_P(StackGoldenTest, EverySplitOfTheText) {
  Model model = load();
  const std::vector<std::int32_t> ids = ids_of(file_, "input_ids", 1);
  const std::vector<double> expected = entry("logits", 1);
  for (std::size_t cut = 1; cut < ids.size(); ++cut) {
    State state = model.make_state();
    std::vector<float> logits = all_logits(model, state, Ids(ids).first(cut));
    const std::vector<float> rest = all_logits(model, state, Ids(ids).subspan(cut));
    logits.insert(logits.end(), rest.begin(), rest.end());
    ASSERT_LT(largest_difference(logits, expected), 1e-4) << "cut at " << cut;
    expect_state(state, 1);
  }
}

TEST_P(StackGoldenTest, OneTokenAtATime) {
  Model model = load();
  const std::vector<std::int32_t> ids = ids_of(file_, "input_ids", 0);
  State state = model.make_state();
  std::vector<float> logits;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const std::span<const float> row = model.eval(state, Ids(ids).subspan(t, 1));
    logits.insert(logits.end(), row.begin(), row.end());
  }
  EXPECT_LT(largest_difference(logits, entry("step.logits", 0)), 1e-4);
  expect_state(state, 0);
}

TEST_P(StackGoldenTest, ABatchGivesTheBitsOfEachAlone) {
  Model model = load();
  std::vector<std::vector<float>> alone;
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<State> states;
  for (std::int64_t row = 0; row < 3; ++row) {
    std::vector<std::int32_t> all = ids_of(file_, "input_ids", row);
    all.resize(static_cast<std::size_t>(3 + row));
    ids.push_back(all);
    State state = model.make_state();
    const std::span<const float> logits = model.eval(state, all);
    alone.emplace_back(logits.begin(), logits.end());
    states.push_back(model.make_state());
  }
  std::vector<SequenceInput> batch;
  for (std::size_t i = 0; i < 3; ++i) batch.push_back({ids[i], &states[i]});
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  std::vector<float> logits(3 * vocab);
  model.forward(batch, Logits::last, logits);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < vocab; ++j) ASSERT_EQ(logits[i * vocab + j], alone[i][j]);
}

TEST_P(StackGoldenTest, StatesAndModelsSurviveFiles) {
  Model model = load();
  const std::vector<std::int32_t> ids = ids_of(file_, "input_ids", 2);
  const formats::TempDir dir;
  State state = model.make_state();
  model.eval(state, Ids(ids).first(20));
  state.save(dir / "state");
  model.save(dir / "copy", DType::f32);

  LoadOptions options;
  options.device = test_device();
  Model copy = Model::load(dir / "copy", options);
  EXPECT_EQ(copy.config().parameter_count(), model.config().parameter_count());
  EXPECT_TRUE(copy.unexpected_tensors().empty());
  State other = copy.make_state();
  copy.eval(other, Ids(ids).first(20));
  const std::vector<float> expected = all_logits(model, state, Ids(ids).subspan(20));
  EXPECT_EQ(all_logits(copy, other, Ids(ids).subspan(20)), expected);

  State again = model.make_state();
  again.load(dir / "state");
  EXPECT_EQ(all_logits(model, again, Ids(ids).subspan(20)), expected);
}

INSTANTIATE_TEST_SUITE_P(Models, StackGoldenTest, ::testing::ValuesIn(golden_stacks()),
                         [](const auto& golden) { return golden.param.name; });

// The parameter counts published for the paper's models (specification B.8).
TEST(StackConfig, PublishedParameterCounts) {
  struct Published {
    std::int64_t width, blocks;
    std::vector<std::int64_t> slstm_at;
    std::int64_t count;
  };
  for (const Published& p :
       {Published{768, 24, {}, 163'806'144}, Published{768, 24, {3, 20}, 163'690'928},
        Published{1024, 48, {}, 409'290'112},
        Published{1024, 48, {3, 5, 7, 40, 42, 44}, 408'436'048}}) {
    Config config;
    config.vocab_size = 50304;
    config.hidden_size = p.width;
    config.num_blocks = p.blocks;
    BlockStackConfig& stack = config.block_stack.emplace();
    stack.mlstm.emplace();
    stack.slstm.emplace();
    stack.slstm_at = p.slstm_at;
    config.validate();
    EXPECT_EQ(config.parameter_count(), p.count);
  }
}

}  // namespace
}  // namespace xlstm::testing
