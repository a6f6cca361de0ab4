#pragma once
// Values of a JSON file that know where they stand in it, so that errors name file and key.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "xlstm/error.hpp"

namespace xlstm::text {

/// A value and the way to it, for messages such as "tokenizer.json: model.vocab: expected ...".
class JsonNode {
 public:
  /// `path` of a root is "<file>:".
  JsonNode(const nlohmann::json& value, std::string path)
      : value_(&value), path_(std::move(path)) {}

  const nlohmann::json& value() const noexcept { return *value_; }
  const std::string& path() const noexcept { return path_; }
  bool is_null() const;
  bool is_object() const;
  bool is_string() const;

  /// The member `key`; an error if absent.
  JsonNode at(const char* key) const;
  /// The member `key`, or nothing if it is absent or null.
  std::optional<JsonNode> find(const char* key) const;
  std::vector<JsonNode> elements() const;

  const std::string& string() const;
  bool boolean() const;
  std::uint32_t integer(std::uint32_t limit) const;  ///< 0 <= value < limit
  char32_t character() const;                        ///< a string of one code point

  bool boolean_or(const char* key, bool otherwise) const;
  /// The member "type", a string.
  const std::string& type() const;

  /// Throws Error(invalid_file): "<path>: expected <expected>, found <value>".
  [[noreturn]] void fail_expected(std::string_view expected) const;
  /// Throws Error(unsupported) about this value.
  [[noreturn]] void fail_unsupported(std::string_view what) const;

 private:
  std::string path_to(std::string_view key) const;
  std::string place() const;  ///< the path as messages begin

  const nlohmann::json* value_;
  std::string path_;
};

}  // namespace xlstm::text
