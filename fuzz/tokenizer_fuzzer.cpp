// Any text as tokenizer.json, and any text through a good one: an Error, or ids within the
// vocabulary, and a stream that decodes to what decode() gives.
//
// Up to a byte 0xFF the input is the file, behind it the text; without one, it is the text for a
// tokenizer with everything in it.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/utf8.hpp"
#include "xlstm/error.hpp"
#include "xlstm/tokenizer.hpp"

namespace {

using namespace xlstm;  // NOLINT: one file, one function

constexpr std::string_view kTokenizer = R"({
  "version": "1.0",
  "added_tokens": [
    {"id": 0, "content": "<s>", "single_word": true, "lstrip": true, "rstrip": true,
     "normalized": false, "special": true},
    {"id": 1, "content": "A b", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": true, "special": false}],
  "normalizer": {"type": "Sequence", "normalizers": [
    {"type": "NFKC"}, {"type": "NFD"}, {"type": "Lowercase"}, {"type": "Nmt"},
    {"type": "Replace", "pattern": {"Regex": "\\s+|x*"}, "content": " "}, {"type": "NFC"},
    {"type": "Strip", "strip_left": true, "strip_right": false},
    {"type": "Prepend", "prepend": "p"}]},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "(?i:'s)|\\p{L}+|\\s+(?!\\S)|\\b"},
     "behavior": "MergedWithNext", "invert": false},
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    {"type": "Punctuation", "behavior": "MergedWithPrevious"},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true}]},
  "decoder": {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "ab"}, "content": "a"}, {"type": "ByteFallback"},
    {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    {"type": "Replace", "pattern": {"String": "aa"}, "content": "a"},
    {"type": "Strip", "content": "a", "start": 1, "stop": 2}]},
  "model": {"type": "BPE", "unk_token": "?", "fuse_unk": true, "byte_fallback": true,
    "vocab": {"<s>": 0, "?": 1, "a": 2, "b": 3, "Ã": 4, "©": 5, "Ġ": 6, "ab": 7, "aa": 8, "aaaa": 9,
              "Ã©": 10, "<0xE2>": 11, "<0x96>": 12, "<0x81>": 13, "_": 14, "Ġa": 15, "À": 16},
    "merges": [["a", "b"], ["a", "a"], ["aa", "aa"], ["Ã", "©"], ["Ġ", "a"]]}
})";

void try_text(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::int32_t> ids;
  try {
    ids = tokenizer.encode(text, {.add_special_tokens = true});
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) __builtin_trap();
    for (const char byte : text.substr(0, 64))  // ids for the decoder all the same
      if (static_cast<unsigned char>(byte) < tokenizer.size())
        ids.push_back(static_cast<unsigned char>(byte));
  }
  try {
    for (const bool skip : {false, true}) {
      StreamDecoder stream(tokenizer, skip);
      std::string streamed;
      for (const std::int32_t id : ids) {
        const std::string piece = stream.push(id);
        if (text::find_invalid_utf8(piece) != std::string::npos) __builtin_trap();
        streamed += piece;
      }
      streamed += stream.finish();
      if (streamed != tokenizer.decode(ids, skip)) __builtin_trap();
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) __builtin_trap();  // an expression's limit
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t border = input.find('\xFF');
  if (border == std::string_view::npos) {
    static const Tokenizer tokenizer = Tokenizer::parse(kTokenizer);
    try_text(tokenizer, input);
    return 0;
  }
  try {
    try_text(Tokenizer::parse(input.substr(0, border)), input.substr(border + 1));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) __builtin_trap();
  }
  return 0;
}
