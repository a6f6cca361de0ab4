#pragma once
// GPT-2's expression as a loop:
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

#include <cstddef>
#include <string_view>

#include "text/unicode.hpp"
#include "text/utf8.hpp"

namespace xlstm::text {

namespace detail {

/// Letter, number, space or none of them: the alternatives of the expression.
inline std::uint16_t gpt2_class(std::string_view text, std::size_t i, std::size_t& next) {
  next = i;
  return properties(next_code_point(text, next)) & (kLetter | kNumber | kSpace);
}

/// End of the contraction at `i`, which holds an apostrophe; `i` if there is none.
inline std::size_t gpt2_contraction_end(std::string_view text, std::size_t i) {
  const char a = i + 1 < text.size() ? text[i + 1] : '\0';
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
  const char b = i + 2 < text.size() ? text[i + 2] : '\0';
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
  return i;
}

}  // namespace detail

/// Calls `sink(begin, end)` for every stretch that the expression finds; they cover the text.
template <class Sink>
void split_gpt2(std::string_view text, Sink&& sink) {
  std::size_t begin = 0;
  while (begin < text.size()) {
    if (text[begin] == '\'') {
      const std::size_t end = detail::gpt2_contraction_end(text, begin);
      if (end > begin) {
        sink(begin, end);
        begin = end;
        continue;
      }
    }
    std::size_t end = 0;
    std::uint16_t kind = detail::gpt2_class(text, begin, end);
    if (text[begin] == ' ' && end < text.size()) {
      std::size_t after = 0;
      const std::uint16_t next_kind = detail::gpt2_class(text, end, after);
      if ((next_kind & kSpace) == 0) {  // the space belongs to what follows
        kind = next_kind;
        end = after;
      }
    }
    std::size_t last = begin;  // where the last code point of the run starts
    while (end < text.size()) {
      std::size_t next = 0;
      if (detail::gpt2_class(text, end, next) != kind) break;
      last = end;
      end = next;
    }
    // \s+(?!\S): before something else, the last space of a run is left to it.
    if ((kind & kSpace) != 0 && end < text.size() && last > begin) end = last;
    sink(begin, end);
    begin = end;
  }
}

}  // namespace xlstm::text
