#pragma once
// Unicode properties and normalisation, code point by code point as the `tokenizers` package has
// them: it mixes libraries of several Unicode versions (see docs/formats.md, "Tokenizer").

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace xlstm::text {

/// Bits of properties().
enum Property : std::uint16_t {
  kLetter = 1,        ///< \p{L} of Split, Replace and the GPT-2 pattern
  kNumber = 2,        ///< \p{N} of the same
  kSpace = 4,         ///< White_Space: \s, Strip, WhitespaceSplit
  kWord = 8,          ///< \w of Whitespace and of single_word
  kNumeric = 16,      ///< Digits
  kPunctuation = 32,  ///< Punctuation
  kMark = 64,         ///< StripAccents
  kFrozen = 128,      ///< newer than the package's normalisation tables: left as it is
  kMayCompose = 256,  ///< without one of these, text is in NFC
};

/// Runs of code points with equal properties: first code point << 9 | properties, ascending.
extern const std::span<const std::uint32_t> kPropertyRuns;

/// Lower case where the package and utf8proc differ.
struct CaseRun {
  char32_t first;
  char32_t last;
  std::int32_t distance;
};
extern const std::span<const CaseRun> kLowerCaseRuns;

namespace detail {
const std::uint16_t* basic_plane_properties();
std::uint16_t search_properties(char32_t point);
}  // namespace detail

/// Properties of a code point (< 0x110000).
inline std::uint16_t properties(char32_t point) {
  static const std::uint16_t* const basic_plane = detail::basic_plane_properties();
  return point < 0x10000 ? basic_plane[point] : detail::search_properties(point);
}

enum class NormalForm { nfc, nfd, nfkc, nfkd };
/// True when `text` (UTF-8) surely is in the form already.
bool is_normalized(std::string_view text, NormalForm form);
std::string normalize(std::string_view text, NormalForm form);

void append_lower_case(std::string& text, char32_t point);

}  // namespace xlstm::text
