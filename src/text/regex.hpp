#pragma once
// What Split and Replace search for: a fixed text or a regular expression.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "text/function_ref.hpp"
#include "text/json_node.hpp"

namespace xlstm::text {

/// Cuts a text into stretches that match and stretches that do not, in order and without gaps.
class Matcher {
 public:
  /// `matched` is false for what lies between two matches. Matches may be empty.
  using Sink = FunctionRef<void(std::size_t begin, std::size_t end, bool matched)>;

  virtual ~Matcher() = default;
  virtual void find(std::string_view text, Sink sink) const = 0;
  /// The fixed text that is searched for, or null.
  virtual const std::string* literal() const { return nullptr; }
};

/// {"String": "..."} or {"Regex": "..."}. The `tokenizers` package runs expressions in Oniguruma;
/// they are translated for PCRE2. @throws Error(unsupported) naming an expression that cannot be
std::unique_ptr<Matcher> read_pattern(const JsonNode& pattern);

/// The expression of GPT-2, for which Split has a loop of its own.
extern const std::string_view kGpt2Pattern;
/// An expression of Oniguruma (Ruby syntax) in PCRE2's. @throws Error(unsupported)
std::string translate_oniguruma(std::string_view pattern);
/// The same search by PCRE2 in every case, also for kGpt2Pattern.
std::unique_ptr<Matcher> make_regex(const std::string& pattern);

}  // namespace xlstm::text
