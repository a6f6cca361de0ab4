#pragma once
// UTF-8: reading and writing code points, finding what is malformed.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace xlstm::text {

/// What the stages of a tokenizer may make of a text of `size` bytes. Real ones stay far below (the
/// most that normalisation does is elevenfold); a file with many stages could grow it without end.
constexpr std::size_t growth_limit(std::size_t size) { return (std::size_t{1} << 20U) + 64 * size; }

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

/// Code point at `text[i]`; moves `i` behind it. `text` must be valid UTF-8 and `i` a border.
inline char32_t next_code_point(std::string_view text, std::size_t& i) {
  const auto byte = [&](std::size_t k) { return static_cast<std::uint8_t>(text[k]); };
  const std::uint8_t lead = byte(i);
  if (lead < 0x80) {
    i += 1;
    return lead;
  }
  if (lead < 0xE0) {
    i += 2;
    return static_cast<char32_t>((lead & 0x1F) << 6 | (byte(i - 1) & 0x3F));
  }
  if (lead < 0xF0) {
    i += 3;
    return static_cast<char32_t>((lead & 0x0F) << 12 | (byte(i - 2) & 0x3F) << 6 |
                                 (byte(i - 1) & 0x3F));
  }
  i += 4;
  return static_cast<char32_t>((lead & 0x07) << 18 | (byte(i - 3) & 0x3F) << 12 |
                               (byte(i - 2) & 0x3F) << 6 | (byte(i - 1) & 0x3F));
}

/// Where the code point that ends before `end` starts (`end` > 0, valid UTF-8).
inline std::size_t previous_border(std::string_view text, std::size_t end) {
  do --end;
  while (end > 0 && (static_cast<std::uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

/// Bytes of the code point that starts with `lead`, in valid UTF-8.
inline std::size_t code_point_size(char lead) {
  const auto byte = static_cast<std::uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

void append_code_point(std::string& text, char32_t point);

/// Result of reading one code point of text that may be malformed.
struct Utf8Step {
  std::size_t size = 0;     ///< bytes of the character, or of the malformed part to replace
  bool valid = false;       ///< a whole character
  bool incomplete = false;  ///< the text ends inside what may become a character
};
/// The maximal malformed part is as in the Unicode standard (3.9, U+FFFD substitution).
Utf8Step read_utf8(std::string_view text) noexcept;

/// Byte where `text` stops being UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text) noexcept;

}  // namespace xlstm::text
