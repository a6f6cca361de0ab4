#pragma once
// Typed fields of JSON objects, read with messages that name the key and written with Python's
// types.

#include <cstdint>
#include <initializer_list>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace xlstm::formats {

/// Reads typed values of an object and remembers which keys were asked for.
class FieldReader {
 public:
  /// @param name  for messages; both must outlive the reader
  FieldReader(const nlohmann::json& object, const std::string& name);

  /// The value of a key, or null if it is absent.
  const nlohmann::json* find(const std::string& key);
  /// Leaves `field` as it is when the key is absent. T: bool, double, std::int64_t, std::string, an
  /// optional of these (null: none), or a vector of std::int64_t (a number, a list or null).
  template <class T>
  void operator()(const char* key, T& field);
  /// A size with two names, either of which may be absent or null; both must agree.
  void alias(const char* key, const char* other, std::int64_t& field);
  void expect_required(std::initializer_list<const char*> keys);
  /// A switch that changes the architecture to one that is not built here.
  void expect_off(const char* key);
  /// Keys that nobody asked for, as JSON text.
  std::map<std::string, std::string> rest() const;

 private:
  const nlohmann::json& object_;
  const std::string& name_;
  std::set<std::string> known_;
};

/// Writes fields with Python's types: a float stays a float even when it is whole.
struct FieldWriter {
  nlohmann::json& object;

  template <class T>
  void operator()(const char* key, const T& field);
  template <class T>
  void operator()(const char* key, const std::optional<T>& field);
  void operator()(const char* key, const std::vector<std::int64_t>& field);
};

}  // namespace xlstm::formats
