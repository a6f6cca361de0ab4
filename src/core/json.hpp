#pragma once
// Strict reading of JSON that somebody else wrote.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace xlstm {

/// Containers inside containers that a file may have.
inline constexpr int kMaxJsonDepth = 64;

/// Parses one JSON text. Unlike nlohmann::json::parse it refuses duplicate keys (the library keeps
/// the last one silently) and nesting deeper than kMaxJsonDepth. `name` is put before messages.
/// @throws Error(invalid_file) with the line and column, or the key
nlohmann::json parse_json(std::string_view text, const std::string& name);

/// The text of a value, on one line unless `indent` says how far to indent.
/// @throws Error(invalid_argument) if a string in it is not UTF-8
std::string write_json(const nlohmann::json& value, int indent = -1);

/// "integer", "string", ... with the value when it is short: what was found, for messages.
std::string describe(const nlohmann::json& value);

/// Text from a file made fit for a message: at most `limit` bytes, printable ASCII kept, the rest
/// as \xNN.
std::string excerpt(std::string_view text, std::size_t limit = 100);

}  // namespace xlstm
