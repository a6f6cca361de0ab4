#pragma once
// GPT-2's byte-level alphabet: every byte is shown as a printable character.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace xlstm::text {

/// Character of each byte, as UTF-8.
const std::array<std::string, 256>& byte_characters();
/// Byte of a character of the alphabet.
std::optional<std::uint8_t> byte_of_character(char32_t character);

void append_byte_level(std::string& out, std::string_view bytes);
/// Bytes of a text in the alphabet; nothing if another character occurs.
std::optional<std::string> bytes_of_byte_level(std::string_view text);

}  // namespace xlstm::text
