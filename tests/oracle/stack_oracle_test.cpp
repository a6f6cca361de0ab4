// The oracle of the first xLSTM, against the printed vectors of the specification (section G) and
// against NX-AI's golden data.

#include <gtest/gtest.h>

#include <cmath>

#include "oracle/golden.hpp"
#include "oracle/printed.hpp"
#include "oracle/xlstm_stack.hpp"

namespace oracle {
namespace {

TEST(StackOracle, PrintedVectors) {
  const auto [wx, r, b] = printed_slstm();
  SlstmState state(2);
  const Vector h = slstm(wx, r, b, 1, 2, state);
  constexpr double kPrinted = 0.51e-9;
  EXPECT_LE(largest_error(h, {-0.259192291, 0.198011814, -0.119626784, 0.106905645, 0.021199480,
                              0.023414295}),
            kPrinted);
  EXPECT_LE(largest_error(state.c, {0.094543386, 0.130812975}), kPrinted);
  EXPECT_LE(largest_error(state.n, {2.511196523, 2.333989446}), kPrinted);
  EXPECT_LE(largest_error(state.m, {0.030206158, -0.073384577}), kPrinted);
}

class GoldenStack : public testing::TestWithParam<std::string> {};

TEST_P(GoldenStack, LogitsStepsAndLoss) {
  const StackCase model = read_stack(GetParam());
  const auto vocab = static_cast<std::size_t>(model.config.vocab_size);
  double loss = 0;
  std::size_t targets = 0;
  for (std::size_t b = 0; b < model.ids.size(); ++b) {
    std::vector<StackState> states = make_stack_states(model.config);
    const Vector whole =
        forward_stack(model.config, model.weights, model.ids[b], CellForm::parallel, states);
    EXPECT_LE(largest_error(whole, model.logits[b]), 1e-8);
    for (std::size_t t = 0; t + 1 < model.ids[b].size(); ++t, ++targets) {
      double sum = 0;
      for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(whole[t * vocab + v]);
      loss += std::log(sum) - whole[t * vocab + static_cast<std::size_t>(model.ids[b][t + 1])];
    }
    states = make_stack_states(model.config);
    Vector steps;
    for (const std::int32_t& id : model.ids[b]) {
      const Vector row =
          forward_stack(model.config, model.weights, {&id, 1}, CellForm::recurrent, states);
      steps.insert(steps.end(), row.begin(), row.end());
    }
    // tests/golden holds them in float32.
    EXPECT_LE(largest_error(steps, model.step_logits[b]), 1e-6);
  }
  EXPECT_NEAR(loss / static_cast<double>(targets), model.loss, 1e-8);
}

INSTANTIATE_TEST_SUITE_P(First, GoldenStack, testing::ValuesIn(stack_files()),
                         [](const auto& file) {
                           return std::filesystem::path(file.param).stem().string() +
                                  (file.param.find("tests/golden") == std::string::npos ? "_shared"
                                                                                        : "");
                         });

}  // namespace
}  // namespace oracle
