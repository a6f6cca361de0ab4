// Expressions of Oniguruma in its Ruby syntax, rewritten for PCRE2.

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "core/check.hpp"
#include "text/regex.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

// Contents of character classes. PCRE2's own \s holds U+180E, its \w and \b know no marks, and
// Oniguruma counts the fractions and superscripts of Latin-1 as parts of words.
constexpr std::string_view kSpaceSet =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpaceSet =
    R"(\x{0}-\x{8}\x{e}-\x{1f}!-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr std::string_view kWordSet = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\xb2\xb3\xb9\xbc-\xbe)";
constexpr std::string_view kHexSet = "0-9A-Fa-f";

/// Names that both know, beside the one- and two-letter categories.
constexpr std::array<std::pair<std::string_view, std::string_view>, 15> kPropertyNames = {{
    {"letter", "L"},
    {"mark", "M"},
    {"number", "N"},
    {"punctuation", "P"},
    {"symbol", "S"},
    {"separator", "Z"},
    {"other", "C"},
    {"lowercaseletter", "Ll"},
    {"uppercaseletter", "Lu"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"decimalnumber", "Nd"},
    {"any", "Any"},
    {"emoji", "Emoji"},
}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (!at_end()) {
      switch (peek()) {
        case '(': open_group(); break;
        case ')':
          take();
          if (groups_.empty()) refuse("an unmatched )");
          atom_ = groups_.back();
          groups_.pop_back();
          out_ += ')';
          break;
        case '[':
          atom_ = out_.size();
          character_class();
          break;
        case '\\':
          atom_ = out_.size();
          escape();
          break;
        case '{': repetition(); break;
        case '*':
        case '+':
        case '?':
          out_ += take();
          if (!at_end() && (peek() == '?' || peek() == '+')) out_ += take();
          break;
        default: literal();
      }
    }
    if (!groups_.empty()) refuse("an unmatched (");
    return out_;
  }

 private:
  bool at_end() const { return i_ >= pattern_.size(); }
  char peek(std::size_t ahead = 0) const {
    return i_ + ahead < pattern_.size() ? pattern_[i_ + ahead] : '\0';
  }
  char take() { return pattern_[i_++]; }
  bool take_if(std::string_view text) {
    if (!pattern_.substr(i_).starts_with(text)) return false;
    i_ += text.size();
    return true;
  }
  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorCode::unsupported,
         "tokenizer: the regular expression {} is not supported: {} (at {})", pattern_, what, i_);
  }

  void literal() {
    atom_ = out_.size();
    const std::size_t size = code_point_size(peek());
    out_ += pattern_.substr(i_, size);
    i_ += size;
  }

  void open_group() {
    const std::size_t begin = out_.size();
    take();
    if (peek() == '*') refuse("(*");
    if (peek() != '?') {
      groups_.push_back(begin);
      out_ += '(';
      return;
    }
    for (const std::string_view kind : {"?:", "?=", "?!", "?<=", "?<!", "?>"})
      if (take_if(kind)) {
        groups_.push_back(begin);
        out_ += '(';
        out_ += kind;
        return;
      }
    if (take_if("?#")) {
      while (!at_end() && peek() != ')') take();
      if (!take_if(")")) refuse("an unfinished comment");
      return;
    }
    take();
    if (peek() == '<' && is_letter(peek(1))) {
      groups_.push_back(begin);
      out_ += "(?";
      while (!at_end() && peek() != '>') out_ += take();
      return;
    }
    options(begin);
  }

  /// (?im-im) and (?im-im:...). Ruby's m is what Perl calls s.
  void options(std::size_t begin) {
    std::string flags;
    while (peek() == 'i' || peek() == 'm' || peek() == '-') {
      const char flag = take();
      flags += flag == 'm' ? 's' : flag;
    }
    if (take_if(":")) {
      groups_.push_back(begin);
      out_ += "(?" + flags + ":";
    } else if (take_if(")")) {
      // Later in a branch the two differ in how far the option reaches.
      if (!out_.empty() && out_.back() != '|' && out_.back() != '(' && !out_.ends_with("?:"))
        refuse("an option within a branch");
      out_ += "(?" + flags + ")";
    } else {
      refuse("a group of this kind");
    }
  }

  /// {n}, {n,}, {n,m}, {,m}; anything else in braces stands for itself.
  void repetition() {
    std::size_t i = i_ + 1;
    std::string low;
    std::string high;
    while (i < pattern_.size() && is_digit(pattern_[i])) low += pattern_[i++];
    const bool comma = i < pattern_.size() && pattern_[i] == ',';
    if (comma) ++i;
    while (comma && i < pattern_.size() && is_digit(pattern_[i])) high += pattern_[i++];
    if (i >= pattern_.size() || pattern_[i] != '}' || (low.empty() && high.empty())) {
      take();
      atom_ = out_.size();
      out_ += "\\{";
      return;
    }
    i_ = i + 1;
    if (low.empty()) low = "0";
    out_ += "{" + low + (comma ? "," : "") + high + "}";
    // Ruby repeats the repetition where Perl makes it possessive or lazy.
    if (peek() == '+' || (peek() == '?' && !comma)) {
      out_.insert(atom_, "(?:");
      out_ += ')';
      out_ += take();
    } else if (peek() == '?') {
      out_ += take();
    }
  }

  /// \xHH, \x{H...} and \uHHHH behind the backslash: as \x{...}. False if it is none of them.
  bool code_point_escape() {
    std::size_t count = 0;
    if (peek() == 'x' && peek(1) == '{') {
      i_ += 2;
      std::string digits;
      while (is_hex(peek())) digits += take();
      if (digits.empty() || !take_if("}")) refuse("an escape of this kind");
      out_ += "\\x{" + digits + "}";
      return true;
    }
    if (peek() == 'x') count = 2;
    if (peek() == 'u') count = 4;
    if (count == 0) return false;
    take();
    std::string digits;
    while (digits.size() < count && is_hex(peek())) digits += take();
    if (digits.empty() || (count == 4 && digits.size() < 4) ||
        (count == 2 && digits.size() == 2 && digits[0] >= '8'))
      refuse("an escape of this kind");
    out_ += "\\x{" + digits + "}";
    return true;
  }

  /// \p{...} and \P{...} behind the backslash.
  void property() {
    bool negated = take() == 'P';
    if (!take_if("{")) refuse("\\p without braces");
    if (take_if("^")) negated = !negated;
    std::string name;
    std::string plain;  // as names are compared: without case, spaces and underscores
    while (!at_end() && peek() != '}') {
      const char c = take();
      if (!is_letter(c) && c != '_' && c != ' ' && c != '-') refuse("a property of this kind");
      name += c;
      if (is_letter(c)) plain += static_cast<char>(c | 0x20);
    }
    if (!take_if("}") || plain.empty()) refuse("a property of this kind");
    std::string translated;
    for (const auto& [from, to] : kPropertyNames)
      if (plain == from) translated = to;
    if (translated.empty()) {
      if (plain.size() <= 2) {
        translated = plain;
        translated[0] = static_cast<char>(translated[0] & ~0x20);
      } else {
        translated = "sc:" + name;  // PCRE2 would take the name for script extensions
      }
    }
    out_ += negated ? "\\P{" : "\\p{";
    out_ += translated + "}";
  }

  void set(std::string_view content, bool negated) {
    out_ += negated ? "[^" : "[";
    out_ += content;
    out_ += ']';
  }

  void escape() {
    take();
    if (at_end()) refuse("a \\ at the end");
    const char c = peek();
    if (code_point_escape()) return;
    if (c == 'p' || c == 'P') return property();
    if (!is_letter(c) && !is_digit(c)) {
      out_ += '\\';
      literal_after_backslash();
      return;
    }
    take();
    switch (c) {
      case 's': return set(kSpaceSet, false);
      case 'S': return set(kSpaceSet, true);
      case 'w': return set(kWordSet, false);
      case 'W': return set(kWordSet, true);
      case 'h': return set(kHexSet, false);
      case 'H': return set(kHexSet, true);
      case 'd': out_ += "\\p{Nd}"; return;
      case 'D': out_ += "\\P{Nd}"; return;
      case 'b': return word_border(true);
      case 'B': return word_border(false);
      case 'v': out_ += "\\x{b}"; return;
      case 'O': out_ += "(?s:.)"; return;
      case 'k':
        if (peek() != '<') refuse("a back-reference of this kind");
        out_ += "\\k";
        return;
      default: break;
    }
    constexpr std::string_view kSame = "aefnrtAzZGKRN123456789";
    if (kSame.find(c) == std::string_view::npos) refuse(fmt::format("\\{}", c));
    out_ += '\\';
    out_ += c;
  }

  void literal_after_backslash() {
    if (static_cast<unsigned char>(peek()) >= 0x80) out_.pop_back();  // nothing to escape
    const std::size_t size = code_point_size(peek());
    out_ += pattern_.substr(i_, size);
    i_ += size;
  }

  void word_border(bool wanted) {
    const std::string word = "[" + std::string(kWordSet) + "]";
    out_ += "(?:(?<=" + word + ")(?" + (wanted ? "!" : "=") + word + ")|(?<!" + word + ")(?" +
            (wanted ? "=" : "!") + word + "))";
  }

  void character_class() {
    out_ += take();
    if (take_if("^")) out_ += '^';
    if (peek() == ']') refuse("an empty character class");
    while (!at_end() && peek() != ']') {
      if (peek() == '[') {
        posix_class();
      } else if (peek() == '&' && peek(1) == '&') {
        refuse("an intersection of character classes");
      } else if (peek() == '\\') {
        take();
        class_escape();
      } else {
        const std::size_t size = code_point_size(peek());
        out_ += pattern_.substr(i_, size);
        i_ += size;
      }
    }
    if (!take_if("]")) refuse("an unfinished character class");
    out_ += ']';
  }

  void posix_class() {
    if (take_if("[:space:]")) {
      out_ += kSpaceSet;
    } else if (take_if("[:digit:]")) {
      out_ += "\\p{Nd}";
    } else if (take_if("[:xdigit:]")) {
      out_ += kHexSet;
    } else {
      refuse("a nested or named character class");
    }
  }

  void class_escape() {
    if (at_end()) refuse("a \\ at the end");
    const char c = peek();
    if (code_point_escape()) return;
    if (c == 'p' || c == 'P') return property();
    if (!is_letter(c) && !is_digit(c)) {
      out_ += '\\';
      literal_after_backslash();
      return;
    }
    take();
    switch (c) {
      case 's': out_ += kSpaceSet; return;
      case 'S': out_ += kNotSpaceSet; return;
      case 'w': out_ += kWordSet; return;
      case 'h': out_ += kHexSet; return;
      case 'd': out_ += "\\p{Nd}"; return;
      case 'D': out_ += "\\P{Nd}"; return;
      case 'v': out_ += "\\x{b}"; return;
      default: break;
    }
    constexpr std::string_view kSame = "abefnrt";
    if (kSame.find(c) == std::string_view::npos)
      refuse(fmt::format("\\{} in a character class", c));
    out_ += '\\';
    out_ += c;
  }

  std::string_view pattern_;
  std::size_t i_ = 0;
  std::string out_;
  std::size_t atom_ = 0;             // where the last atom starts in out_
  std::vector<std::size_t> groups_;  // where the open groups start in out_
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace xlstm::text
