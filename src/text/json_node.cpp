#include "text/json_node.hpp"

#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/json.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

std::string JsonNode::path_to(std::string_view key) const {
  return fmt::format("{}{}{}", path_, path_.ends_with(':') ? " " : ".", key);
}

std::string JsonNode::place() const { return path_.ends_with(':') ? path_ : path_ + ":"; }

bool JsonNode::is_null() const { return value_->is_null(); }
bool JsonNode::is_object() const { return value_->is_object(); }
bool JsonNode::is_string() const { return value_->is_string(); }

JsonNode JsonNode::at(const char* key) const {
  if (!value_->is_object()) fail_expected("an object");
  const auto place = value_->find(key);
  if (place == value_->end())
    fail(ErrorCode::invalid_file, "{} expected the key \"{}\"", this->place(), key);
  return {*place, path_to(key)};
}

std::optional<JsonNode> JsonNode::find(const char* key) const {
  if (!value_->is_object()) fail_expected("an object");
  const auto place = value_->find(key);
  if (place == value_->end() || place->is_null()) return std::nullopt;
  return JsonNode(*place, path_to(key));
}

std::vector<JsonNode> JsonNode::elements() const {
  if (!value_->is_array()) fail_expected("an array");
  std::vector<JsonNode> result;
  result.reserve(value_->size());
  for (std::size_t i = 0; i < value_->size(); ++i)
    result.emplace_back((*value_)[i], fmt::format("{}[{}]", path_, i));
  return result;
}

const std::string& JsonNode::string() const {
  if (!value_->is_string()) fail_expected("a string");
  return value_->get_ref<const std::string&>();
}

bool JsonNode::boolean() const {
  if (!value_->is_boolean()) fail_expected("true or false");
  return value_->get<bool>();
}

std::uint32_t JsonNode::integer(std::uint32_t limit) const {
  if (!value_->is_number_unsigned() || value_->get<std::uint64_t>() >= limit)
    fail_expected(fmt::format("an integer from 0 to {}", limit - 1));
  return value_->get<std::uint32_t>();
}

char32_t JsonNode::character() const {
  const std::string& text = string();
  if (text.empty() || code_point_size(text[0]) != text.size()) fail_expected("one character");
  std::size_t i = 0;
  return next_code_point(text, i);
}

bool JsonNode::boolean_or(const char* key, bool otherwise) const {
  const auto member = find(key);
  return member ? member->boolean() : otherwise;
}

const std::string& JsonNode::type() const { return at("type").string(); }

void JsonNode::fail_expected(std::string_view expected) const {
  fail(ErrorCode::invalid_file, "{} expected {}, found {}", place(), expected, describe(*value_));
}

void JsonNode::fail_unsupported(std::string_view what) const {
  fail(ErrorCode::unsupported, "{} {} is not supported", place(), what);
}

}  // namespace xlstm::text
