// The tokenizer against recorded results of the `tokenizers` package (tests/golden/tokenizer; made
// by tools/make_tokenizer_cases.py and tools/fuzz_tokenizer.py --sample).

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/utf8.hpp"
#include "xlstm/tokenizer.hpp"

namespace {

using nlohmann::json;
using xlstm::EncodeOptions;
using xlstm::StreamDecoder;
using xlstm::Tokenizer;
using Ids = std::vector<std::int32_t>;

const std::filesystem::path kGolden =
    std::filesystem::path(XLSTM_SOURCE_DIR) / "tests/golden/tokenizer";

json read(const char* name) { return json::parse(std::ifstream(kGolden / name)); }

Ids encode(const Tokenizer& tokenizer, const json& text, bool special) {
  EncodeOptions options;
  options.add_special_tokens = special;
  return tokenizer.encode(text.get_ref<const std::string&>(), options);
}

/// Decodes at once and as a stream, whose pieces must be whole characters.
std::string decode(const Tokenizer& tokenizer, const Ids& ids, bool skip) {
  const std::string text = tokenizer.decode(ids, skip);
  StreamDecoder stream(tokenizer, skip);
  std::string streamed;
  const auto append = [&](const std::string& piece) {
    EXPECT_EQ(xlstm::text::find_invalid_utf8(piece), std::string::npos);
    streamed += piece;
  };
  for (const std::int32_t id : ids) append(stream.push(id));
  append(stream.finish());
  EXPECT_EQ(streamed, text);
  return text;
}

TEST(TokenizerCases, EveryComponent) {
  const json file = read("components.json");
  ASSERT_GT(file["cases"].size(), 140U);
  for (const json& entry : file["cases"]) {
    SCOPED_TRACE(entry["name"].get<std::string>());
    json description = entry["tokenizer"];
    if (description["model"].is_string())
      description["model"] = file["models"][description["model"].get<std::string>()];
    const Tokenizer tokenizer = Tokenizer::parse(description.dump());
    for (const json& c : entry["encode"]) {
      // [text, ids] or [text, ids without special tokens, ids with them]
      EXPECT_EQ(encode(tokenizer, c[0], false), c[1].get<Ids>()) << c[0];
      EXPECT_EQ(encode(tokenizer, c[0], true), c.back().get<Ids>()) << c[0];
    }
    for (const json& c : entry["decode"]) {
      // [ids, text] or [ids, text with special tokens, text without them]
      EXPECT_EQ(decode(tokenizer, c[0].get<Ids>(), false), c[1].get<std::string>()) << c[0];
      EXPECT_EQ(decode(tokenizer, c[0].get<Ids>(), true), c.back().get<std::string>()) << c[0];
    }
  }
}

TEST(TokenizerCases, SampleOfTheComparison) {
  const Tokenizer tokenizer = Tokenizer::load(kGolden / "reference.json");
  const json cases = read("sample.json");
  ASSERT_GE(cases.size(), 900U);
  for (const json& c : cases) {
    if (c.contains("encode")) {
      EXPECT_EQ(encode(tokenizer, c["encode"], c["special"]), c["expected"]["ids"].get<Ids>())
          << c["encode"];
    } else {
      EXPECT_EQ(decode(tokenizer, c["decode"].get<Ids>(), c["skip"]),
                c["expected"]["text"].get<std::string>())
          << c["decode"];
    }
  }
}

}  // namespace
