#include "option_parser.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <type_traits>

#include "console.hpp"

namespace xlstm::cli {
namespace {

// "from 0 to 1"; a bound that is only the type's own is left out.
template <class Number>
std::string range_text(Number min, Number max) {
  const Number lowest = std::is_integral_v<Number> ? std::numeric_limits<Number>::lowest()
                                                   : Number(-std::numeric_limits<float>::max());
  const Number highest = std::is_integral_v<Number> ? std::numeric_limits<Number>::max()
                                                    : Number(std::numeric_limits<float>::max());
  if (min <= lowest && max >= highest) return "";
  if (max >= highest) return fmt::format(" of at least {}", min);
  return fmt::format(" from {} to {}", min, max);
}

// The help without CLI11's own remarks on environment variables and repetition.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_type_name().empty() ? "" : " " + option->get_type_name();
  }
};

}  // namespace

std::int64_t parse_integer(std::string_view text, std::int64_t min, std::int64_t max,
                           const std::string& what) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < min || value > max)
    throw UsageError(
        fmt::format("{}: expected a whole number{}, found '{}'", what, range_text(min, max), text));
  return value;
}

double parse_number(std::string_view text, double min, double max, const std::string& what) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  // The comparison is written so that NaN fails it.
  if (error != std::errc() || stop != end || !(value >= min && value <= max))
    throw UsageError(
        fmt::format("{}: expected a number{}, found '{}'", what, range_text(min, max), text));
  return value;
}

std::vector<std::int64_t> parse_integers(std::string_view text, std::int64_t min, std::int64_t max,
                                         const std::string& what) {
  std::vector<std::int64_t> values;
  while (true) {
    const std::size_t comma = text.find(',');
    std::string_view item = text.substr(0, comma);
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    values.push_back(parse_integer(item, min, max, what));
    if (comma == std::string_view::npos) return values;
    text.remove_prefix(comma + 1);
  }
}

struct OptionParser::Impl {
  CLI::App app;
  std::string group = "Options";

  explicit Impl(const std::string& description) : app(description) {}

  // Values reach `take` as they were typed: CLI11's own conversions read "[a]" and "{}" as lists.
  CLI::Option* add(const std::string& names, const std::string& metavar, const std::string& help,
                   std::function<void(const std::string&)> take, const std::string& env = {}) {
    CLI::Option* option = app.add_option(
        names,
        [take = std::move(take)](const CLI::results_t& results) {
          for (const std::string& value : results) take(value);
          return true;
        },
        env.empty() ? help : fmt::format("{} [${}]", help, env));
    option->type_name(metavar)->group(group)->allow_extra_args(false);
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    if (!env.empty()) option->envname(env);
    return option;
  }
};

OptionParser::OptionParser(const std::string& command, const std::string& description,
                           const std::string& examples)
    : impl_(std::make_unique<Impl>(description)) {
  impl_->app.name("xlstm " + command);
  impl_->app.footer("Examples:\n" + examples);
  impl_->app.formatter(std::make_shared<HelpFormatter>());
  impl_->app.get_formatter()->column_width(32);
}

OptionParser::~OptionParser() = default;

void OptionParser::group(const std::string& name) { impl_->group = name; }

void OptionParser::flag(const std::string& names, bool& value, const std::string& help) {
  impl_->app.add_flag(names, value, help)->group(impl_->group);
}

void OptionParser::integer(const std::string& names, std::int64_t& value, std::int64_t min,
                           std::int64_t max, const std::string& help, const std::string& env) {
  impl_->add(
      names, "N", help,
      [=, &value](const std::string& text) { value = parse_integer(text, min, max, names); }, env);
}

void OptionParser::number(const std::string& names, float& value, double min, double max,
                          const std::string& help) {
  impl_->add(names, "X", fmt::format("{} ({:g})", help, value),
             [=, &value](const std::string& text) {
               value = static_cast<float>(parse_number(text, min, max, names));
             });
}

void OptionParser::text(const std::string& names, const std::string& metavar, std::string& value,
                        const std::string& help, const std::string& env) {
  impl_->add(
      names, metavar, help, [&value](const std::string& text) { value = text; }, env);
}

void OptionParser::texts(const std::string& names, const std::string& metavar,
                         std::vector<std::string>& value, const std::string& help) {
  impl_->add(names, metavar, help, [&value](const std::string& text) { value.push_back(text); })
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void OptionParser::choice(const std::string& names, const std::vector<std::string>& choices,
                          std::string& value, const std::string& help, const std::string& env) {
  const std::string list = fmt::format("{}", fmt::join(choices, "|"));
  impl_->add(
      names, list, value.empty() ? help : fmt::format("{} ({})", help, value),
      [=, &value](const std::string& text) {
        if (std::find(choices.begin(), choices.end(), text) == choices.end())
          throw UsageError(fmt::format("{}: expected {}, found '{}'", names, list, text));
        value = text;
      },
      env);
}

void OptionParser::integers(const std::string& names, std::vector<std::int64_t>& value,
                            std::int64_t min, std::int64_t max, const std::string& help) {
  impl_->add(
      names, "N,...", fmt::format("{} ({})", help, fmt::join(value, ",")),
      [=, &value](const std::string& text) { value = parse_integers(text, min, max, names); });
}

void OptionParser::custom(const std::string& names, const std::string& metavar,
                          std::function<void(const std::string&)> take, const std::string& help) {
  impl_->add(names, metavar, help, std::move(take))
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

bool OptionParser::parse(std::span<const std::string> args) {
  CLI::App& app = impl_->app;
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));  // CLI11 takes from the back
  } catch (const CLI::CallForHelp&) {
    write_out(app.help());
    return false;
  } catch (const CLI::ExtrasError&) {
    const std::string extra = app.remaining().empty() ? "" : app.remaining().front();
    std::vector<std::string> names;
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
      for (const std::string& name : option->get_snames()) names.push_back("-" + name);
    }
    if (!extra.starts_with("-"))
      throw UsageError(
          fmt::format("unexpected argument '{}'; values belong to a flag (a prompt to "
                      "-p, a model to -m)",
                      extra));
    const std::string guess = nearest(extra.substr(0, extra.find('=')), names);
    throw UsageError(fmt::format("unknown option '{}'{}", extra,
                                 guess.empty() ? "" : fmt::format("; did you mean {}?", guess)));
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  return true;
}

}  // namespace xlstm::cli
