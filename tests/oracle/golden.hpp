#pragma once
// The reference implementations' golden data, read into the oracle's types. Files and their
// contents: tests/golden/README.md.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "oracle/ops.hpp"
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
};
std::vector<CellCase> read_cell(const std::filesystem::path& file);

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

}  // namespace oracle
