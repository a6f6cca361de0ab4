#include "formats/fields.hpp"

#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/json.hpp"

namespace xlstm::formats {
namespace {

using nlohmann::json;

// Reads one value of one type; messages name the file and the key.
struct ValueReader {
  const std::string& name;
  const char* key;

  [[noreturn]] void wrong(const char* expected, const json& value) const {
    fail(ErrorCode::invalid_file, "{}: {}: expected {}, found {}", name, key, expected,
         describe(value));
  }

  void read(const json& value, std::int64_t& field) const {
    // Unsigned values beyond int64 are integers too, so compare before converting.
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max());
    if (!fits) wrong("an integer of 64 bits", value);
    field = value.get<std::int64_t>();
  }
  void read(const json& value, double& field) const {
    if (!value.is_number()) wrong("a number", value);
    field = value.get<double>();
  }
  void read(const json& value, bool& field) const {
    if (!value.is_boolean()) wrong("true or false", value);
    field = value.get<bool>();
  }
  void read(const json& value, std::string& field) const {
    if (!value.is_string()) wrong("a string", value);
    field = value.get<std::string>();
  }
  template <class T>
  void read(const json& value, std::optional<T>& field) const {
    if (value.is_null())
      field.reset();
    else
      read(value, field.emplace());
  }
  /// A number, a list of numbers or null.
  void read(const json& value, std::vector<std::int64_t>& field) const {
    field.clear();
    if (value.is_null()) return;
    if (!value.is_array()) return read(value, field.emplace_back());
    for (const json& element : value) read(element, field.emplace_back());
  }
};

}  // namespace

FieldReader::FieldReader(const json& object, const std::string& name)
    : object_(object), name_(name) {
  XLSTM_CHECK(object.is_object(), invalid_file, "{}: expected an object of settings, found {}",
              name, describe(object));
}

const json* FieldReader::find(const std::string& key) {
  known_.insert(key);
  const auto entry = object_.find(key);
  return entry == object_.end() ? nullptr : &*entry;
}

template <class T>
void FieldReader::operator()(const char* key, T& field) {
  if (const json* value = find(key)) ValueReader{name_, key}.read(*value, field);
}

template void FieldReader::operator()(const char*, bool&);
template void FieldReader::operator()(const char*, double&);
template void FieldReader::operator()(const char*, std::int64_t&);
template void FieldReader::operator()(const char*, std::string&);
template void FieldReader::operator()(const char*, std::optional<bool>&);
template void FieldReader::operator()(const char*, std::optional<double>&);
template void FieldReader::operator()(const char*, std::optional<std::int64_t>&);
template void FieldReader::operator()(const char*, std::optional<std::string>&);
template void FieldReader::operator()(const char*, std::vector<std::int64_t>&);

void FieldReader::alias(const char* key, const char* other, std::int64_t& field) {
  std::optional<std::int64_t> a, b;
  (*this)(key, a);
  (*this)(other, b);
  XLSTM_CHECK(!a || !b || *a == *b, invalid_file, "{}: {}: expected {} as {} says, found {}", name_,
              key, *b, other, *a);
  if (a || b) field = a ? *a : *b;
}

void FieldReader::expect_required(std::initializer_list<const char*> keys) {
  for (const char* key : keys)
    XLSTM_CHECK(object_.contains(key) && !object_[key].is_null(), invalid_file,
                "{}: expected the key {}, found none", name_, key);
}

void FieldReader::expect_off(const char* key) {
  const auto entry = object_.find(key);  // stays unknown: it is written back
  XLSTM_CHECK(entry == object_.end() || entry->is_null() || *entry == false, unsupported,
              "{}: {}: expected false, the only architecture supported, found {}", name_, key,
              describe(*entry));
}

std::map<std::string, std::string> FieldReader::rest() const {
  std::map<std::string, std::string> result;
  for (const auto& [key, value] : object_.items())
    if (!known_.contains(key)) result.emplace(key, write_json(value));
  return result;
}

template <class T>
void FieldWriter::operator()(const char* key, const T& field) {
  object[key] = field;
}
template <class T>
void FieldWriter::operator()(const char* key, const std::optional<T>& field) {
  object[key] = field ? json(*field) : json();
}
void FieldWriter::operator()(const char* key, const std::vector<std::int64_t>& field) {
  object[key] = field.empty() ? json() : field.size() == 1 ? json(field[0]) : json(field);
}

template void FieldWriter::operator()(const char*, const bool&);
template void FieldWriter::operator()(const char*, const double&);
template void FieldWriter::operator()(const char*, const std::int64_t&);
template void FieldWriter::operator()(const char*, const std::string&);
template void FieldWriter::operator()(const char*, const std::optional<bool>&);
template void FieldWriter::operator()(const char*, const std::optional<double>&);
template void FieldWriter::operator()(const char*, const std::optional<std::int64_t>&);

}  // namespace xlstm::formats
