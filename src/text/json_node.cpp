#include "text/json_node.hpp"

#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 64;

/// Builds the tree from the parser's events; the library's own builder keeps the last of two equal
/// keys without a word.
class TreeBuilder final : public nlohmann::json_sax<json> {
 public:
  TreeBuilder(json& root, const std::string& name) : root_(root), name_(name) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t& /*value*/) override { return false; }
  bool start_object(std::size_t /*count*/) override { return open(json::object()); }
  bool start_array(std::size_t /*count*/) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& key) override {
    const auto [place, is_new] = open_.back()->get_ref<json::object_t&>().emplace(key, nullptr);
    XLSTM_CHECK(is_new, invalid_file, "{}: duplicate key \"{}\"", name_, key);
    member_ = &place->second;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) override {
    fail(ErrorCode::invalid_file, "{}: expected JSON, malformed at byte {}: {}", name_, position,
         error.what());
  }

 private:
  json* add(json value, bool /*tag*/) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      auto& elements = open_.back()->get_ref<json::array_t&>();
      elements.push_back(std::move(value));
      return &elements.back();
    }
    *member_ = std::move(value);
    return member_;
  }
  bool add(json value) {
    add(std::move(value), true);
    return true;
  }
  bool open(json value) {
    XLSTM_CHECK(open_.size() < kMaxDepth, invalid_file, "{}: more than {} levels of nesting", name_,
                kMaxDepth);
    open_.push_back(add(std::move(value), true));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  json& root_;
  const std::string& name_;
  std::vector<json*> open_;
  json* member_ = nullptr;
};

/// The value as a message shows it: short.
std::string shown(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  constexpr std::size_t kLongest = 60;
  if (text.size() > kLongest) {
    text.resize(previous_border(text, kLongest));
    text += "...";
  }
  return text;
}

}  // namespace

json parse_json(std::string_view text, const std::string& name) {
  json root;
  TreeBuilder builder(root, name);
  json::sax_parse(text, &builder);
  return root;
}

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
  fail(ErrorCode::invalid_file, "{} expected {}, found {}", place(), expected, shown(*value_));
}

void JsonNode::fail_unsupported(std::string_view what) const {
  fail(ErrorCode::unsupported, "{} {} is not supported", place(), what);
}

}  // namespace xlstm::text
