#pragma once
// Settings of the first xLSTM: NX-AI's nested xLSTMLMModelConfig (specification B.1), alone in a
// file or as `_xlstm_config` of a config.json (the community's schema, specification B.8).

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "xlstm/config.hpp"
#include "xlstm/dtype.hpp"

namespace xlstm::formats {

/// Whether an object holds these settings: it has mlstm_block or slstm_block.
bool is_block_stack(const nlohmann::json& object);
/// Reads them; absent keys have NX-AI's defaults. Not validated yet.
/// @throws Error(invalid_file) naming the key, expected and found; Error(unsupported) for what is
/// not
///         built here (the plain LSTM cell, ungated feed-forward layers)
Config read_block_stack(const nlohmann::json& object, const std::string& name);
/// Reads a config.json that holds them as `_xlstm_config`.
Config read_community_config(const nlohmann::json& object, const std::string& name);
/// The content of such a config.json; for a stack alone, of NX-AI's xLSTMBlockStackConfig.
nlohmann::json write_community_config(const Config& config, DType dtype);

/// torch's name of a type of weights.
const char* torch_name(DType dtype) noexcept;

}  // namespace xlstm::formats
