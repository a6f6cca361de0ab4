#pragma once
// The reference implementations' golden data, read into the oracle's types. Files and their
// contents: tests/golden/README.md.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "oracle/ops.hpp"
#include "oracle/stack_ops.hpp"
#include "oracle/training.hpp"
#include "oracle/xlstm_large.hpp"
#include "xlstm/config.hpp"

namespace oracle {

/// tests/golden of this repository.
std::filesystem::path golden_folder();

/// One batch entry of a cell_mlstm_*.safetensors.
struct CellCase {
  MlstmInputs inputs;
  MlstmState initial, last;  ///< `last` is empty if the file has none
  Vector h;                  ///< [T, H dv]
  Vector f;                  ///< the forget gate before its log sigmoid, [T, H]
  /// Gradients of the sum of dh h by the inputs; `i` and `log_f` are by the gates as in the file.
  Vector dh;
  MlstmInputs gradients;
  MlstmState initial_gradients;  ///< empty if the file has none
};
std::vector<CellCase> read_cell(const std::filesystem::path& file);

/// One batch entry of cell_slstm.safetensors, from the zero state.
struct SlstmCellCase {
  int heads = 1, head_width = 1;
  Vector wx, r, b;  ///< as slstm() takes them
  SlstmState last;
  Vector h, dh, d_wx;  ///< [T, D], [T, D], [T, 4 D]
};
struct SlstmCellCases {
  std::vector<SlstmCellCase> entries;
  Vector d_r, d_b;  ///< sums over the entries
};
SlstmCellCases read_slstm_cell(const std::filesystem::path& file);

struct ModelStates {
  std::size_t after;  ///< tokens
  std::vector<MlstmState> blocks;
};

/// One sequence through a model in one or more calls.
struct ModelPass {
  std::string name;
  std::vector<std::int32_t> ids;
  std::vector<std::size_t> ends;  ///< tokens read after each call
  Vector logits;                  ///< [T, V]
  std::vector<ModelStates> states;
};

/// A large_*.safetensors: weights, and what the reference computed with them in double.
struct ModelCase {
  xlstm::Config config;
  Weights weights;
  std::vector<ModelPass> passes;
};
ModelCase read_model(const std::filesystem::path& file);

/// A v1_*.safetensors: a model of the first xLSTM, and per sequence what NX-AI computed.
struct StackCase {
  xlstm::Config config;
  Weights weights;
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<Vector> logits, step_logits;  ///< [T, V]: the whole at once, and token by token
  double loss = 0;  ///< mean cross-entropy of the next tokens, all sequences
};
StackCase read_stack(const std::filesystem::path& file);
/// Those with weights in tests/golden, and in ../shared/golden where that exists.
std::vector<std::string> stack_files();

/// The large_*.safetensors with weights in tests/golden, and in ../shared/golden where that exists.
std::vector<std::string> model_files();

/// Files with a model's weights, with its gradients, and with ten steps of AdamW.
struct TrainingFiles {
  std::filesystem::path model, gradients, adamw;
};
/// Of the models that model_files() and stack_files() list, those that have them.
std::vector<TrainingFiles> training_files();

/// How the reference trained a model of either family.
struct TrainingCase {
  xlstm::Config config;
  Weights weights;
  Sequences ids;
  std::vector<Vector> logits;
  double loss = 0;
  Weights gradients;
  AdamW adamw;
  Vector losses;        ///< before each step
  Weights after;        ///< ten steps
  bool single = false;  ///< gradients and `after` are rounded to float32
};
TrainingCase read_training(const TrainingFiles& files);

}  // namespace oracle
