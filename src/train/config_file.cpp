// TOML. The header is slow to compile: this is the only file that includes it.

#define TOML_HEADER_ONLY 1
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include <algorithm>

#include "core/check.hpp"
#include "formats/config_files.hpp"
#include "train/config.hpp"

namespace xlstm::train {
namespace {

std::string type_name(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table: return "a table";
    case toml::node_type::array: return "a list";
    case toml::node_type::string: return fmt::format("\"{}\"", node.as_string()->get());
    case toml::node_type::integer: return fmt::format("{}", node.as_integer()->get());
    case toml::node_type::floating_point: return fmt::format("{}", node.as_floating_point()->get());
    case toml::node_type::boolean: return node.as_boolean()->get() ? "true" : "false";
    default: return "a date or time";
  }
}

void assign_list(const Key& key, const toml::array& list, const std::string& where) {
  if (std::holds_alternative<std::vector<std::int64_t>*>(key.value)) {
    std::vector<std::int64_t> values;
    for (const toml::node& item : list) {
      XLSTM_CHECK(item.is_integer(), invalid_argument, "{}{}: expected {}, found {} in it", where,
                  key.full_name(), key.expected(), type_name(item));
      values.push_back(item.as_integer()->get());
    }
    return detail::assign(key, std::move(values), where);
  }
  XLSTM_CHECK(std::holds_alternative<std::vector<std::string>*>(key.value), invalid_argument,
              "{}{}: expected {}, found {}", where, key.full_name(), key.expected(),
              type_name(list));
  std::vector<std::string> values;
  for (const toml::node& item : list) {
    XLSTM_CHECK(item.is_string(), invalid_argument, "{}{}: expected {}, found {} in it", where,
                key.full_name(), key.expected(), type_name(item));
    values.push_back(item.as_string()->get());
  }
  detail::assign(key, std::move(values), where);
}

void assign_node(const Key& key, const toml::node& node, const std::string& where) {
  if (node.is_boolean()) return detail::assign(key, node.as_boolean()->get(), where);
  if (node.is_integer()) return detail::assign(key, node.as_integer()->get(), where);
  if (node.is_floating_point()) return detail::assign(key, node.as_floating_point()->get(), where);
  if (node.is_string()) return detail::assign(key, node.as_string()->get(), where);
  if (node.is_array()) return assign_list(key, *node.as_array(), where);
  fail(ErrorCode::invalid_argument, "{}{}: expected {}, found {}", where, key.full_name(),
       key.expected(), type_name(node));
}

}  // namespace

void read_config_text(std::string_view text, const std::string& name, TrainConfig& config) {
  toml::table table;
  try {
    table = toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    fail(ErrorCode::invalid_file, "{}:{}:{}: {}", name, error.source().begin.line,
         error.source().begin.column, error.description());
  }
  const std::vector<Key> keys = list_keys(config);
  for (const auto& [section, node] : table) {
    const std::string section_name(section.str());
    const std::string place = fmt::format("{}:{}: ", name, node.source().begin.line);
    const bool known = std::any_of(keys.begin(), keys.end(),
                                   [&](const Key& key) { return key.section == section_name; });
    if (!node.is_table() || !known) {
      fail(ErrorCode::invalid_argument, "{}unknown {} '{}'{}", place,
           node.is_table() ? "section" : "key", section_name,
           node.is_table() ? "; expected [model], [data], [task], [optimizer], [lora] or [run]"
                           : detail::guess(section_name));
    }
    for (const auto& [key_name, value] : *node.as_table()) {
      const std::string full = section_name + "." + std::string(key_name.str());
      const std::string where = fmt::format("{}:{}: ", name, value.source().begin.line);
      const auto key = std::find_if(keys.begin(), keys.end(),
                                    [&](const Key& k) { return k.full_name() == full; });
      XLSTM_CHECK(key != keys.end(), invalid_argument, "{}unknown key '{}'{}", where, full,
                  detail::guess(full));
      assign_node(*key, value, where);
    }
  }
}

void read_config_file(const std::filesystem::path& path, TrainConfig& config) {
  read_config_text(formats::read_text_file(path), path.string(), config);
}

}  // namespace xlstm::train
