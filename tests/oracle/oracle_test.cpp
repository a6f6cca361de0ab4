// The oracle itself, against the printed vectors of the specification (section G) and against the
// reference implementations' golden data.

#include <gtest/gtest.h>

#include <cmath>

#include "oracle/golden.hpp"
#include "oracle/ops.hpp"
#include "oracle/printed.hpp"
#include "oracle/xlstm_large.hpp"

namespace oracle {
namespace {

TEST(Oracle, PrintedVectors) {
  const MlstmInputs in = printed_mlstm().in;
  const Vector want{-0.138700576, 0.743827495,  0.942483998,  0.511166928,
                    0.473728396,  0.000746162,  0.420810947,  0.299284527,
                    -0.097402707, -0.369283493, -0.398208637, -0.061022597};
  const Vector c{0.395525270, 0.365855301, -0.000180344, -0.386658502, -0.252671297, 0.113620733};
  const Vector n{-1.011223536, 0.884983783}, m{1.279103790};
  constexpr double kPrinted = 0.51e-9;
  for (int chunk : {0, 1, 2, 3, 4, 9}) {
    MlstmState state(1, 2, 3);
    const Vector h = chunk == 0 ? mlstm_recurrent(in, state) : mlstm_chunkwise(in, state, chunk);
    EXPECT_LE(largest_error(h, want), kPrinted) << chunk;
    EXPECT_LE(largest_error(state.c, c), kPrinted) << chunk;
    EXPECT_LE(largest_error(state.n, n), kPrinted) << chunk;
    EXPECT_LE(largest_error(state.m, m), kPrinted) << chunk;
  }
  EXPECT_LE(largest_error(mlstm_unstabilised(in), want), kPrinted);
}

TEST(Oracle, GoldenCells) {
  for (const char* name : {"cell_mlstm_exp", "cell_mlstm_exp_extreme_gates"}) {
    SCOPED_TRACE(name);
    for (const CellCase& cell : read_cell(golden_folder() / (std::string(name) + ".safetensors"))) {
      for (int chunk : {0, 5, 16, 64}) {
        MlstmState state = cell.initial;
        const Vector h = chunk == 0 ? mlstm_recurrent(cell.inputs, state)
                                    : mlstm_chunkwise(cell.inputs, state, chunk);
        EXPECT_LE(largest_error(h, cell.h), 1e-9);
        EXPECT_LE(largest_error(state.c, cell.last.c), 1e-9);
        EXPECT_LE(largest_error(state.n, cell.last.n), 1e-9);
        EXPECT_LE(largest_error(state.m, cell.last.m), 1e-9);
      }
    }
  }
}

TEST(Oracle, GoldenCellsWithSigmoidGates) {
  for (bool normalise : {false, true}) {
    const std::string name = normalise ? "cell_mlstm_sig_norm1" : "cell_mlstm_sig_norm0";
    SCOPED_TRACE(name);
    for (CellCase& cell : read_cell(golden_folder() / (name + ".safetensors"))) {
      cell.inputs.sigmoid = true;
      cell.inputs.normalise = normalise;
      for (double& value : cell.inputs.i) value = log_sigmoid(value);
      MlstmState state = cell.initial;
      EXPECT_LE(largest_error(mlstm_recurrent(cell.inputs, state), cell.h), 1e-9);
    }
  }
}

/// A whole model: one pass, and 72 tokens followed by five single ones.
class GoldenModel : public testing::TestWithParam<std::string> {};

TEST_P(GoldenModel, LogitsAndStates) {
  const ModelCase model = read_model(GetParam());
  ASSERT_FALSE(model.passes.empty());
  for (const ModelPass& pass : model.passes) {
    SCOPED_TRACE(pass.name);
    std::vector<MlstmState> states = make_states(model.config);
    Vector logits;
    for (std::size_t begin = 0; const std::size_t end : pass.ends) {
      const Vector part = forward(model.config, model.weights,
                                  std::span(pass.ids).subspan(begin, end - begin), states);
      logits.insert(logits.end(), part.begin(), part.end());
      begin = end;
      for (const ModelStates& want : pass.states) {
        if (want.after != end) continue;
        for (std::size_t block = 0; block < states.size(); ++block) {
          EXPECT_LE(largest_error(states[block].c, want.blocks[block].c), 1e-9);
          EXPECT_LE(largest_error(states[block].n, want.blocks[block].n), 1e-9);
          EXPECT_LE(largest_error(states[block].m, want.blocks[block].m), 1e-9);
        }
      }
    }
    EXPECT_LE(largest_error(logits, pass.logits), 1e-9);
  }
}

INSTANTIATE_TEST_SUITE_P(Large, GoldenModel, testing::ValuesIn(model_files()),
                         [](const auto& file) {
                           return std::filesystem::path(file.param).stem().string() +
                                  (file.param.find("tests/golden") == std::string::npos ? "_shared"
                                                                                        : "");
                         });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenModel);

}  // namespace
}  // namespace oracle
