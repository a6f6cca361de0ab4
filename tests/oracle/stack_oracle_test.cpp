// The oracle of the first xLSTM, against the printed vectors of the specification (section G) and
// against NX-AI's golden data.

#include <gtest/gtest.h>

#include <cmath>

#include "oracle/golden.hpp"
#include "oracle/xlstm_stack.hpp"

namespace oracle {
namespace {

double worst(const Vector& got, const Vector& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = got.size() == want.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    error = std::max(error, std::isnan(got[i]) ? INFINITY : std::abs(got[i] - want[i]));
  return error;
}

TEST(StackOracle, PrintedVectors) {
  Vector wx, r(16), b(8);
  for (int t = 0; t < 3; ++t)
    for (int g = 0; g < 4; ++g)
      for (int j = 0; j < 2; ++j) wx.push_back(0.5 * std::sin(1 + t + 2 * g + 3 * j));
  for (int g = 0; g < 4; ++g)
    for (int a = 0; a < 2; ++a)
      for (int k = 0; k < 2; ++k)
        r[static_cast<std::size_t>((g * 2 + a) * 2 + k)] = 0.3 * std::cos(1 + g + 2 * a + 3 * k);
  b[2] = 1;
  b[3] = 2;
  SlstmState state(2);
  const Vector h = slstm(wx, r, b, 1, 2, state);
  constexpr double kPrinted = 0.51e-9;
  EXPECT_LE(
      worst(h, {-0.259192291, 0.198011814, -0.119626784, 0.106905645, 0.021199480, 0.023414295}),
      kPrinted);
  EXPECT_LE(worst(state.c, {0.094543386, 0.130812975}), kPrinted);
  EXPECT_LE(worst(state.n, {2.511196523, 2.333989446}), kPrinted);
  EXPECT_LE(worst(state.m, {0.030206158, -0.073384577}), kPrinted);
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
    EXPECT_LE(worst(whole, model.logits[b]), 1e-8);
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
    EXPECT_LE(worst(steps, model.step_logits[b]), 1e-6);
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
