#pragma once
// YAML read as JSON values, so that one reader of fields serves both.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace xlstm::formats {

/// Parses one YAML document of mappings, sequences and plain values. Numbers, booleans and null
/// are those of YAML's core schema; "1e-06" is a number. Refuses duplicate keys, aliases, own tags
/// and nesting deeper than kMaxJsonDepth.
/// @throws Error(invalid_file) naming line and column
nlohmann::json parse_yaml(std::string_view text, const std::string& name);

}  // namespace xlstm::formats
