// The tokenizer against what the `tokenizers` package gave for the reference tokenizer.

#include "xlstm/tokenizer.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "text/utf8.hpp"
#include "xlstm/error.hpp"

namespace {

using nlohmann::json;
using xlstm::Error;
using xlstm::ErrorCode;
using xlstm::StreamDecoder;
using xlstm::Tokenizer;

const std::filesystem::path kSource = XLSTM_SOURCE_DIR;
const std::filesystem::path kGolden = kSource / "tests/golden/tokenizer";

Tokenizer reference() { return Tokenizer::load(kGolden / "reference.json"); }

std::string streamed(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  StreamDecoder stream(tokenizer, false);
  std::string text;
  for (const std::int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

TEST(Tokenizer, GivesTheReferenceIdsAndText) {
  const Tokenizer tokenizer = reference();
  const json cases = json::parse(std::ifstream(kGolden / "reference_cases.json"));
  ASSERT_GE(cases.size(), 25U);
  for (const json& c : cases) {
    const auto ids = c.at("ids").get<std::vector<std::int32_t>>();
    EXPECT_EQ(tokenizer.encode(c.at("text").get<std::string>()), ids);
    EXPECT_EQ(tokenizer.decode(ids), c.at("decoded").get<std::string>());
    EXPECT_EQ(streamed(tokenizer, ids), c.at("decoded").get<std::string>());
  }
}

TEST(Tokenizer, DefaultModelKnowsItsSpecialTokens) {
  const Tokenizer tokenizer = Tokenizer::load(kSource / "models/shakespeare-byte/tokenizer.json");
  EXPECT_EQ(tokenizer.size(), 258);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 0);
  EXPECT_EQ(tokenizer.add_bos_token(), false);
  EXPECT_FALSE(tokenizer.template_adds_bos());
  EXPECT_TRUE(tokenizer.is_special(1));
  EXPECT_FALSE(tokenizer.is_special(2));
  EXPECT_EQ(tokenizer.token_to_id("<|padding|>"), 1);
  EXPECT_EQ(tokenizer.id_to_token(1), "<|padding|>");
  EXPECT_EQ(tokenizer.id_to_token(258), "");
  const std::vector<std::int32_t> ids = tokenizer.encode("Hi<|endoftext|>");
  EXPECT_EQ(ids, (std::vector<std::int32_t>{41, 74, 0}));
  EXPECT_EQ(tokenizer.decode(ids), "Hi<|endoftext|>");
  EXPECT_EQ(tokenizer.decode(ids, true), "Hi");
}

TEST(Tokenizer, StreamsGiveWholeCharactersAndTheWholeText) {
  const Tokenizer tokenizer = reference();
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) {
    // Ids at random: most of their bytes are no UTF-8, and characters go over many tokens.
    std::vector<std::int32_t> ids(random() % 20);
    const std::int32_t limit = i % 2 == 0 ? 258 : tokenizer.size();
    for (std::int32_t& id : ids)
      id = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(limit));
    StreamDecoder stream(tokenizer, i % 3 == 0);
    std::string text;
    for (const std::int32_t id : ids) {
      const std::string piece = stream.push(id);
      EXPECT_EQ(xlstm::text::find_invalid_utf8(piece), std::string::npos);
      text += piece;
    }
    text += stream.finish();
    EXPECT_EQ(text, tokenizer.decode(ids, i % 3 == 0));
  }
}

TEST(Tokenizer, AStreamWaitsForTheRestOfACharacter) {
  const Tokenizer tokenizer = reference();
  const std::vector<std::int32_t> ids = tokenizer.encode("\U0001F600");
  ASSERT_EQ(ids.size(), 4U);
  StreamDecoder stream(tokenizer);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.push(ids[static_cast<std::size_t>(i)]), "");
  EXPECT_EQ(stream.push(ids[3]), "\U0001F600");
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.push(ids[0]), "\uFFFD");  // it cannot become a character any more
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(Tokenizer, EmptyTextHasNoIds) {
  EXPECT_TRUE(reference().encode("").empty());
  EXPECT_EQ(reference().decode({}), "");
}

TEST(Tokenizer, InvalidUtf8IsAnErrorThatNamesTheByte) {
  try {
    reference().encode("ab\xC3(");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(error.what()).find("byte 2"), std::string::npos) << error.what();
  }
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreAnError) {
  const Tokenizer tokenizer = reference();
  for (const std::int32_t id : {-1, tokenizer.size()}) {
    EXPECT_THROW(tokenizer.decode(std::vector<std::int32_t>{id}), Error);
    EXPECT_THROW(StreamDecoder(tokenizer).push(id), Error);
  }
}

}  // namespace
