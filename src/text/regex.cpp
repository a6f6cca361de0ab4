#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.hpp"

#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "core/check.hpp"
#include "text/gpt2_split.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// Steps that a match from one place may take: far more than any real expression needs, and little
// enough that no text hangs the program. A run of spaces, for one, may be gone back over once.
constexpr std::size_t kMatchSteps = 1'000'000;
constexpr std::size_t kMatchStepsPerByte = 32;
constexpr std::uint32_t kHeapLimitKiB = 256 * 1024;
constexpr std::size_t kJitStackBytes = std::size_t{1} << 20U;

using Range = std::pair<std::size_t, std::size_t>;

/// Walks over the matches as Oniguruma's find_iter does: after an empty match one character is
/// passed over, and an empty match right behind another match does not count.
template <class Search>
void find_all(std::string_view text, const Search& search, Matcher::Sink sink) {
  if (text.empty()) {
    sink(0, 0, false);
    return;
  }
  std::size_t from = 0;
  std::size_t covered = 0;
  std::optional<std::size_t> last_end;
  while (from <= text.size()) {
    const std::optional<Range> match = search(from);
    if (!match) break;
    const auto [begin, end] = *match;
    if (begin == end && last_end == end) {
      from += from < text.size() ? code_point_size(text[from]) : 1;
      continue;
    }
    if (covered != begin) sink(covered, begin, false);
    sink(begin, end, true);
    covered = end;
    from = end;
    last_end = end;
  }
  if (covered != text.size()) sink(covered, text.size(), false);
}

class LiteralMatcher final : public Matcher {
 public:
  explicit LiteralMatcher(std::string text) : text_(std::move(text)) {}
  const std::string* literal() const override { return &text_; }
  void find(std::string_view text, Sink sink) const override {
    const auto search = [&](std::size_t from) -> std::optional<Range> {
      const std::size_t begin = text.find(text_, from);
      if (begin == std::string_view::npos) return std::nullopt;
      return Range{begin, begin + text_.size()};
    };
    find_all(text, search, sink);
  }

 private:
  std::string text_;
};

class Gpt2Matcher final : public Matcher {
 public:
  void find(std::string_view text, Sink sink) const override {
    split_gpt2(text, [&](std::size_t begin, std::size_t end) { sink(begin, end, true); });
  }
};

template <auto kFree>
struct Free {
  template <class T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using CodePointer = std::unique_ptr<pcre2_code, Free<pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Free<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>>;

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

class RegexMatcher final : public Matcher {
 public:
  explicit RegexMatcher(const std::string& pattern) : pattern_(pattern) {
    const std::string translated = translate_oniguruma(pattern);
    const CompileContext context(pcre2_compile_context_create(nullptr));
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int code = 0;
    PCRE2_SIZE position = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                              &code, &position, context.get()));
    XLSTM_CHECK(code_, unsupported,
                "tokenizer: the regular expression {} is not supported: {} (in {}, at {})",
                pattern_, message_of(code), translated, position);
    // Where this fails the interpreter does the same, only slower.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  void find(std::string_view text, Sink sink) const override {
    const MatchData data(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    const MatchContext context(pcre2_match_context_create(nullptr));
    XLSTM_CHECK(data && context, out_of_memory, "tokenizer: no memory to match {}", pattern_);
    const std::size_t steps = kMatchSteps + kMatchStepsPerByte * text.size();
    pcre2_set_match_limit(context.get(),
                          static_cast<std::uint32_t>(std::min<std::size_t>(steps, UINT32_MAX)));
    pcre2_set_heap_limit(context.get(), kHeapLimitKiB);
    JitStack stack;  // made when the 32 KiB that a match has by itself do not suffice
    const auto run = [&](std::size_t from, std::uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                         options | PCRE2_NO_UTF_CHECK, data.get(), context.get());
    };
    const auto search = [&](std::size_t from) -> std::optional<Range> {
      int result = run(from, 0);
      if (result == PCRE2_ERROR_JIT_STACKLIMIT && !stack) {
        stack.reset(pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr));
        pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
        result = run(from, 0);
      }
      if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(from, PCRE2_NO_JIT);
      if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
      XLSTM_CHECK(result > 0, unsupported,
                  "tokenizer: the regular expression {} fails at byte {} of the text: {}", pattern_,
                  from, message_of(result));
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
      // \K in a lookahead can put the start behind the end.
      return Range{ends[0] < ends[1] ? ends[0] : ends[1], ends[1]};
    };
    find_all(text, search, sink);
  }

 private:
  std::string pattern_;
  CodePointer code_;
};

}  // namespace

std::unique_ptr<Matcher> make_regex(const std::string& pattern) {
  return std::make_unique<RegexMatcher>(pattern);
}

std::unique_ptr<Matcher> read_pattern(const JsonNode& pattern) {
  if (const auto text = pattern.find("String"))
    return std::make_unique<LiteralMatcher>(text->string());
  const auto regex = pattern.find("Regex");
  if (!regex) pattern.fail_expected("{\"String\": ...} or {\"Regex\": ...}");
  if (regex->string() == kGpt2Pattern) return std::make_unique<Gpt2Matcher>();
  return make_regex(regex->string());
}

}  // namespace xlstm::text
