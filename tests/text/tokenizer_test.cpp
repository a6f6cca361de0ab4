// The tokenizer against what the `tokenizers` package gave for the reference tokenizer.

#include "xlstm/tokenizer.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

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
