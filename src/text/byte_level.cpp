#include "text/byte_level.hpp"

#include "text/utf8.hpp"

namespace xlstm::text {

namespace {

constexpr char32_t kAlphabetEnd = 0x144;

/// Bytes that are printable in Latin-1 stand for themselves, the others follow from U+0100 on.
struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<std::int16_t, kAlphabetEnd> bytes;

  Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      const char32_t point = printable ? static_cast<char32_t>(byte) : next++;
      append_code_point(characters[static_cast<std::size_t>(byte)], point);
      bytes[point] = static_cast<std::int16_t>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

const std::array<std::string, 256>& byte_characters() { return alphabet().characters; }

std::optional<std::uint8_t> byte_of_character(char32_t character) {
  if (character >= kAlphabetEnd || alphabet().bytes[character] < 0) return std::nullopt;
  return static_cast<std::uint8_t>(alphabet().bytes[character]);
}

void append_byte_level(std::string& out, std::string_view bytes) {
  const auto& characters = byte_characters();
  for (const char byte : bytes) out += characters[static_cast<std::uint8_t>(byte)];
}

std::optional<std::string> bytes_of_byte_level(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = byte_of_character(next_code_point(text, i));
    if (!byte) return std::nullopt;
    bytes += static_cast<char>(*byte);
  }
  return bytes;
}

}  // namespace xlstm::text
