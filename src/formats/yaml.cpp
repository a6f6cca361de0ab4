#include "formats/yaml.hpp"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>
#include <vector>

#include "core/check.hpp"
#include "core/json.hpp"

namespace xlstm::formats {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxYamlBytes = std::size_t{1} << 20;  // yaml-cpp takes a second for 2 MB

bool is_utf8(const std::string& text) {
  try {
    json(text).dump();
    return true;
  } catch (const json::exception&) {
    return false;
  }
}

template <class T>
bool parse_number(std::string_view text, T& value) {
  if (text.starts_with('+')) text.remove_prefix(1);  // from_chars does not know it
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

/// What a scalar without quotes means in YAML's core schema.
json plain_scalar(const std::string& text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL")
    return nullptr;
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  // Only what looks like a number: from_chars would also read "inf", "nan" and "infinity".
  if (text.find_first_not_of("0123456789+-.eE") == text.npos) {
    std::int64_t integer = 0;
    if (parse_number(text, integer)) return integer;
    double number = 0;
    if (parse_number(text, number)) return number;
  }
  return text;
}

/// Builds the value from the parser's events; nothing in it grows faster than the text.
class Builder final : public YAML::EventHandler {
 public:
  explicit Builder(const std::string& name) : name_(name) {}

  json take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { add(mark, nullptr); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(ErrorCode::invalid_file, "{}: expected plain values, found an alias", at(mark));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    const bool is_plain = tag.empty() || tag == "?";  // "!" marks a quoted scalar
    XLSTM_CHECK(is_plain || tag == "!", invalid_file, "{}: expected plain values, found the tag {}",
                at(mark), excerpt(tag));
    XLSTM_CHECK(is_utf8(value), invalid_file, "{}: expected UTF-8, found '{}'", at(mark),
                excerpt(value));
    add(mark, is_plain ? plain_scalar(value) : json(value));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, json::array());
  }
  void OnSequenceEnd() override { stack_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, json::object());
  }
  void OnMapEnd() override { stack_.pop_back(); }

 private:
  struct Open {
    json* container;
    json* slot = nullptr;  // of a map: where the value of the key goes; null: a key comes next
  };

  std::string at(const YAML::Mark& mark) const {
    return fmt::format("{}: line {}, column {}", name_, mark.line + 1, mark.column + 1);
  }

  void open(const YAML::Mark& mark, const std::string& tag, json empty) {
    XLSTM_CHECK(tag.empty() || tag == "?" || tag == "!", invalid_file,
                "{}: expected plain values, found the tag {}", at(mark), excerpt(tag));
    XLSTM_CHECK(stack_.size() < static_cast<std::size_t>(kMaxJsonDepth), invalid_file,
                "{}: expected at most {} nested containers, found more", at(mark), kMaxJsonDepth);
    XLSTM_CHECK(stack_.empty() || stack_.back().container->is_array() || stack_.back().slot,
                invalid_file, "{}: expected a key, found a container", at(mark));
    stack_.push_back({add(mark, std::move(empty))});
  }

  json* add(const YAML::Mark& mark, json value) {
    if (stack_.empty()) return &(root_ = std::move(value));
    Open& top = stack_.back();
    if (top.container->is_array()) {
      top.container->push_back(std::move(value));
      return &top.container->back();
    }
    if (top.slot) return &(*std::exchange(top.slot, nullptr) = std::move(value));
    const std::string key = value.is_string() ? value.get<std::string>() : write_json(value);
    const auto [entry, is_new] = top.container->get_ref<json::object_t&>().emplace(key, nullptr);
    XLSTM_CHECK(is_new, invalid_file, "{}: expected every key once, found '{}' twice", at(mark),
                excerpt(key));
    return top.slot = &entry->second;
  }

  const std::string& name_;
  json root_;
  std::vector<Open> stack_;
};

}  // namespace

json parse_yaml(std::string_view text, const std::string& name) {
  XLSTM_CHECK(text.size() <= kMaxYamlBytes, invalid_file,
              "{}: expected at most {} bytes of YAML, found {}", name, kMaxYamlBytes, text.size());
  std::istringstream stream{std::string(text)};
  Builder builder(name);
  try {
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    Builder rest(name);
    XLSTM_CHECK(!parser.HandleNextDocument(rest), invalid_file,
                "{}: expected one YAML document, found more", name);
  } catch (const YAML::Exception& error) {
    fail(ErrorCode::invalid_file, "{}: expected YAML, found: {}", name, excerpt(error.what(), 300));
  }
  return builder.take();
}

}  // namespace xlstm::formats
