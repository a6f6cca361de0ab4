#include "core/json.hpp"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/check.hpp"

namespace xlstm {
namespace {

/// Receives the parser's events and builds the value, checking what the library does not.
class Builder {
 public:
  using Json = nlohmann::json;
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  explicit Builder(const std::string& name) : name_(name) {}

  Json take() { return std::move(root_); }

  bool null() { return add(nullptr), true; }
  bool boolean(bool value) { return add(value), true; }
  bool number_integer(number_integer_t value) { return add(value), true; }
  bool number_unsigned(number_unsigned_t value) { return add(value), true; }
  bool number_float(number_float_t value, const string_t&) { return add(value), true; }
  bool string(string_t& value) { return add(std::move(value)), true; }
  bool binary(binary_t&) { return false; }  // only in binary formats

  bool start_object(std::size_t) { return open(Json::object()), true; }
  bool start_array(std::size_t) { return open(Json::array()), true; }
  bool end_object() { return close(), true; }
  bool end_array() { return close(), true; }

  bool key(string_t& key) {
    const auto [entry, is_new] = stack_.back()->get_ref<Json::object_t&>().emplace(key, nullptr);
    XLSTM_CHECK(is_new, invalid_file, "{}: expected every key once, found '{}' twice", name_,
                excerpt(key));
    slot_ = &entry->second;
    last_key_ = &entry->first;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const Json::exception& error) {
    std::string_view what = error.what();  // "[json.exception.parse_error.101] parse error ..."
    if (const auto end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
    fail(ErrorCode::invalid_file, "{}: expected JSON, found: {}{}", name_, excerpt(what, 300),
         last_key_ ? fmt::format(" (the last key is '{}')", excerpt(*last_key_)) : "");
  }

 private:
  Json* add(Json value) {
    if (stack_.empty()) return &(root_ = std::move(value));
    if (stack_.back()->is_object()) return &(*slot_ = std::move(value));
    auto& array = stack_.back()->get_ref<Json::array_t&>();
    array.push_back(std::move(value));
    return &array.back();
  }

  void open(Json empty) {
    XLSTM_CHECK(stack_.size() < static_cast<std::size_t>(kMaxJsonDepth), invalid_file,
                "{}: expected at most {} nested JSON containers, found more", name_, kMaxJsonDepth);
    stack_.push_back(add(std::move(empty)));
  }
  void close() { stack_.pop_back(); }

  const std::string& name_;
  Json root_;
  std::vector<Json*> stack_;  // the containers that are open
  Json* slot_ = nullptr;      // where the value of the last key goes
  const std::string* last_key_ = nullptr;
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& name) {
  Builder builder(name);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string write_json(const nlohmann::json& value, int indent) {
  try {
    return value.dump(indent);
  } catch (const nlohmann::json::exception&) {  // it has no other reason to throw
    const auto replace = nlohmann::json::error_handler_t::replace;
    fail(ErrorCode::invalid_argument, "JSON: expected UTF-8, found {}",
         excerpt(value.dump(-1, ' ', true, replace)));
  }
}

std::string describe(const nlohmann::json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return value.get<bool>() ? "boolean true" : "boolean false";
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("an array of {}", value.size());
  if (value.is_string())
    return fmt::format("string '{}'", excerpt(value.get_ref<const std::string&>()));
  return fmt::format("{} {}", value.is_number_float() ? "number" : "integer", value.dump());
}

std::string excerpt(std::string_view text, std::size_t limit) {
  std::string result;
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f)
      result += c;
    else
      result += fmt::format("\\x{:02x}", byte);
  }
  if (text.size() > limit) result += "...";
  return result;
}

}  // namespace xlstm
