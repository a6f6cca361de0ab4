#pragma once
// Flags of one subcommand. The one file behind it is the only one that includes CLI11.

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/nearest.hpp"

namespace xlstm::cli {

/// What the user typed is not a valid command line: exit status 2.
class UsageError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Options are written "-n,--predict". Values given twice: the last counts, except where a list is
/// collected. `env`, where not empty, names an environment variable that stands in for the flag.
class OptionParser {
 public:
  /// `command` as typed ("generate"); `examples` are lines for the end of the help.
  OptionParser(const std::string& command, const std::string& description,
               const std::string& examples);
  ~OptionParser();

  /// Heading under which the help lists the options that follow.
  void group(const std::string& name);
  void flag(const std::string& names, bool& value, const std::string& help);
  /// A whole number in [min, max].
  void integer(const std::string& names, std::int64_t& value, std::int64_t min, std::int64_t max,
               const std::string& help, const std::string& env = {});
  /// A finite number in [min, max].
  void number(const std::string& names, float& value, double min, double max,
              const std::string& help);
  void text(const std::string& names, const std::string& metavar, std::string& value,
            const std::string& help, const std::string& env = {});
  /// One value for each time the flag is given; `value` is empty where it is not.
  void texts(const std::string& names, const std::string& metavar, std::vector<std::string>& value,
             const std::string& help);
  /// Exactly one of `choices`.
  void choice(const std::string& names, const std::vector<std::string>& choices, std::string& value,
              const std::string& help, const std::string& env = {});
  /// Numbers with commas between them.
  void integers(const std::string& names, std::vector<std::int64_t>& value, std::int64_t min,
                std::int64_t max, const std::string& help);
  /// Anything else; `take` throws UsageError if it does not like the value.
  void custom(const std::string& names, const std::string& metavar,
              std::function<void(const std::string&)> take, const std::string& help);

  /// Reads the arguments after the subcommand. False: the help was asked for and printed.
  /// @throws UsageError
  bool parse(std::span<const std::string> args);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The whole of `text` as a number in [min, max]. @throws UsageError naming `what`
std::int64_t parse_integer(std::string_view text, std::int64_t min, std::int64_t max,
                           const std::string& what);
double parse_number(std::string_view text, double min, double max, const std::string& what);
/// "0,5,9". @throws UsageError naming `what`
std::vector<std::int64_t> parse_integers(std::string_view text, std::int64_t min, std::int64_t max,
                                         const std::string& what);

}  // namespace xlstm::cli
