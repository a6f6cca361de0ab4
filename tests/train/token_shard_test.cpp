// Token shards against the tokenizer itself, their cache, and the tokenizer of bytes.

#include "train/token_shard.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "text/utf8.hpp"
#include "train/sources.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;
using formats::TempDir;
using Ids = std::vector<std::int32_t>;
using Ends = std::vector<std::int64_t>;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Ids ids_of(const TokenShard& shard) {
  Ids ids;
  for (std::int64_t i = 0; i < shard.tokens(); ++i) ids.push_back(shard[i]);
  return ids;
}

class TokenShardTest : public ::testing::Test {
 protected:
  TokenShard open(const fs::path& file, const ShardOptions& options = {},
                  std::uint64_t hash = 1) const {
    return TokenShard::open(file, tokenizer, hash, options, dir / "cache");
  }
  Ends ends_of(const TokenShard& shard) const { return {shard.ends().begin(), shard.ends().end()}; }
  std::vector<fs::path> cached() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(dir / "cache")) files.push_back(entry.path());
    return files;
  }
  // Text of a part of a file.
  std::string part(const fs::path& file, double begin, double end) const {
    ShardOptions options;
    options.begin = begin;
    options.end = end;
    return tokenizer.decode(ids_of(open(file, options)));
  }
  void expect_bad(const fs::path& file, std::initializer_list<std::string_view> parts,
                  const ShardOptions& options = {}) const {
    expect_error(ErrorCode::invalid_file, parts, [&] { open(file, options); });
    // The mistake is found again: nothing was cached.
    expect_error(ErrorCode::invalid_file, parts, [&] { open(file, options); });
  }

  TempDir dir;
  Tokenizer tokenizer = Tokenizer::parse(byte_tokenizer_json());
};

// --- documents -----------------------------------------------------------------------------------

TEST_F(TokenShardTest, ATextIsOneDocument) {
  const std::string text = "one\ntwo \xe2\x82\xac\n\n{\"text\": 1}\n";
  const auto shard = open(dir.write("a.txt", text));
  EXPECT_EQ(ids_of(shard), tokenizer.encode(text));
  EXPECT_EQ(ends_of(shard), (Ends{static_cast<std::int64_t>(text.size())}));
  EXPECT_EQ(shard.text_bytes(), static_cast<std::int64_t>(text.size()));
}

TEST_F(TokenShardTest, LinesOfJsonAreDocuments) {
  const auto file =
      dir.write("a.jsonl",
                "{\"text\": \"ab\"}\n\n  \r\n{\"id\": 3, \"text\": \"\\u20ac\\n\"}\r\n"
                "{\"text\": \"\"}\n{\"text\": \"c\"}");
  const auto shard = open(file);
  EXPECT_EQ(ids_of(shard), tokenizer.encode("ab\xe2\x82\xac\nc"));
  EXPECT_EQ(ends_of(shard), (Ends{2, 6, 7}));  // an empty document is none
  EXPECT_EQ(shard.text_bytes(), 7);
}

TEST_F(TokenShardTest, FormatIsByTheNameUnlessSaid) {
  const std::string line = "{\"body\": \"xyz\"}\n";
  ShardOptions options;
  options.text_key = "body";
  for (const char* name : {"a.jsonl", "a.ndjson"})
    EXPECT_EQ(open(dir.write(name, line), options).tokens(), 3) << name;
  const auto text = dir.write("a.json", line);
  EXPECT_EQ(open(text, options).tokens(), 16);
  options.format = "jsonl";
  EXPECT_EQ(open(text, options).tokens(), 3);
  options.format = "text";
  EXPECT_EQ(open(dir / "a.jsonl", options).tokens(), 16);
}

TEST_F(TokenShardTest, EveryDocumentGetsItsBeginAndEnd) {
  ShardOptions options;
  options.bos = 0;
  options.eos = 1;
  const auto file = dir.write("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"bc\"}\n");
  const auto shard = open(file, options);
  const std::int32_t a = tokenizer.encode("a")[0];
  EXPECT_EQ(ids_of(shard), (Ids{0, a, 1, 0, a + 1, a + 2, 1}));
  EXPECT_EQ(ends_of(shard), (Ends{3, 7}));
  EXPECT_EQ(shard.text_bytes(), 3);
}

TEST_F(TokenShardTest, PartsShareNothingAndCoverAll) {
  // Characters of one to four bytes.
  std::string text;
  for (int i = 0; i < 97; ++i) {
    text += static_cast<char>('a' + i % 26);
    for (const char* more : {"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"})
      if (i % 3 == 0) text += more;
  }
  const auto file = dir.write("a.txt", text);
  for (const double split : {0.001, 0.1, 1.0 / 3, 0.5, 0.9, 1 - 0.05}) {
    const std::string first = part(file, 0, split), second = part(file, split, 1);
    EXPECT_EQ(first + second, text) << split;
    // Of the characters, not the bytes.
    const auto characters = [](const std::string& s) {
      return std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xc0) != 0x80; });
    };
    EXPECT_EQ(characters(first), static_cast<int>(split * static_cast<double>(characters(text))));
  }
  EXPECT_EQ(part(file, 0, 0.2) + part(file, 0.2, 0.7) + part(file, 0.7, 1), text);
}

TEST_F(TokenShardTest, PartsOfJsonAreWholeDocuments) {
  std::string lines, all;
  for (int i = 0; i < 23; ++i) {
    const std::string document(static_cast<std::size_t>(1 + i % 5), static_cast<char>('a' + i));
    lines += "{\"text\": \"" + document + "\"}\n" + (i % 4 == 0 ? "\n" : "");
    all += document;
  }
  const auto file = dir.write("a.jsonl", lines);
  for (const double split : {0.01, 0.3, 0.5, 0.95}) {
    const std::string first = part(file, 0, split), second = part(file, split, 1);
    EXPECT_EQ(first + second, all) << split;
    ShardOptions options;
    options.end = split;
    EXPECT_EQ(open(file, options).ends().size(), static_cast<std::size_t>(split * 23));
    if (!first.empty()) {
      EXPECT_NE(first.back(), second.front()) << split;
    }
  }
}

TEST_F(TokenShardTest, LargeVocabulariesHaveWiderIds) {
  auto json = nlohmann::json::parse(byte_tokenizer_json());
  for (int i = 258; i < 65536; ++i) json["model"]["vocab"]["<" + std::to_string(i) + ">"] = i;
  const auto file = dir.write("a.txt", "abc");
  const auto size_with = [&](const Tokenizer& t, const Ids& expected) {
    const auto shard = TokenShard::open(file, t, static_cast<std::uint64_t>(t.size()), {},
                                        dir / std::to_string(t.size()));
    EXPECT_EQ(ids_of(shard), expected);
    return fs::file_size(*begin(fs::directory_iterator(dir / std::to_string(t.size()))));
  };
  const Tokenizer narrow = Tokenizer::parse(json.dump());
  ASSERT_EQ(narrow.size(), 65536);
  const auto bytes = size_with(narrow, narrow.encode("abc"));
  // "abc" becomes a token that 16 bits do not hold.
  json["added_tokens"].push_back({{"id", 65536},
                                  {"content", "abc"},
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", false},
                                  {"special", false}});
  const Tokenizer wide = Tokenizer::parse(json.dump());
  ASSERT_EQ(wide.size(), 65537);
  EXPECT_EQ(size_with(wide, {65536}), bytes - 3 * 2 + 4);
}

// --- mistakes ------------------------------------------------------------------------------------

TEST_F(TokenShardTest, BadTextIsNamedWithItsByte) {
  expect_bad(dir.write("a.txt", "caf\xc3\xa9 caf\xe9."), {"a.txt", "UTF-8", "byte 9 is not"});
  expect_bad(dir.write("cut.txt", "ab\xe2\x82"), {"cut.txt", "byte 2 is not"});
  expect_bad(dir.write("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"\xff\"}\n"),
             {"a.jsonl:3", "UTF-8", "byte 10 is not"});
}

TEST_F(TokenShardTest, EmptyFilesAreNamed) {
  expect_bad(dir.write("a.txt", ""), {"a.txt", "empty"});
  expect_bad(dir.write("a.jsonl", ""), {"a.jsonl", "empty"});
  expect_error(ErrorCode::not_found, {"absent.txt"}, [&] { open(dir / "absent.txt"); });
  // Lines, but no document: nothing to read, and no failure here.
  EXPECT_EQ(open(dir.write("b.jsonl", "\n \n")).tokens(), 0);
}

TEST_F(TokenShardTest, BadLinesOfJsonAreNamed) {
  const std::string good = "{\"text\": \"a\"}\n";
  for (const char* line : {"{\"text\": \"a\"", "text", "[\"text\"]", "\"text\"", "{} {}"})
    expect_bad(dir.write("a.jsonl", good + "\n" + line + "\n" + good),
               {"a.jsonl:3: expected a JSON object"});
  for (const char* line : {"{}", "{\"texts\": \"a\"}", "{\"text\": 3}", "{\"text\": null}"})
    expect_bad(dir.write("a.jsonl", good + line), {"a.jsonl:2: expected text under \"text\""});
  ShardOptions options;
  options.text_key = "content";
  expect_bad(dir.write("a.jsonl", good), {"a.jsonl:1: expected text under \"content\""}, options);
}

TEST_F(TokenShardTest, ACacheThatCannotBeIsNamed) {
  const auto file = dir.write("a.txt", "abc");
  dir.write("cache", "a file");
  expect_error(ErrorCode::io, {"data.cache", (dir / "cache").string()}, [&] { open(file); });
}

// --- the cache -----------------------------------------------------------------------------------

TEST_F(TokenShardTest, TheCacheIsUsed) {
  const auto file = dir.write("a.txt", "hello");
  const auto first = open(file);
  ASSERT_EQ(cached().size(), 1U);
  const auto written = fs::last_write_time(cached()[0]) - std::chrono::hours(1);
  fs::last_write_time(cached()[0], written);
  // A tokenizer that would give other ids is not asked again: the shard is found by its name.
  auto json = nlohmann::ordered_json::parse(byte_tokenizer_json());
  std::swap(json["model"]["vocab"]["h"], json["model"]["vocab"]["i"]);
  const Tokenizer other = Tokenizer::parse(json.dump());
  ASSERT_NE(other.encode("hello"), tokenizer.encode("hello"));
  const auto second = TokenShard::open(file, other, 1, {}, dir / "cache");
  EXPECT_EQ(ids_of(second), tokenizer.encode("hello"));
  EXPECT_EQ(second.hash(), first.hash());
  EXPECT_EQ(fs::last_write_time(cached()[0]), written);
}

TEST_F(TokenShardTest, WhateverChangesTheTokensHasAShardOfItsOwn) {
  const auto file = dir.write("a.jsonl", "{\"text\": \"hello\", \"other\": \"you\"}\n");
  std::vector<ShardOptions> all(6);
  all[1].format = "text";
  all[2].text_key = "other";
  all[3].begin = 0.5;
  all[4].end = 0.5;
  all[5].bos = 0;
  all.emplace_back().eos = 0;
  std::vector<std::uint64_t> hashes;
  for (const ShardOptions& options : all) hashes.push_back(open(file, options).hash());
  hashes.push_back(open(file, {}, 2).hash());
  dir.write("a.jsonl", "{\"text\": \"hallo\", \"other\": \"you\"}\n");
  hashes.push_back(open(file).hash());
  EXPECT_EQ(ids_of(open(file)), tokenizer.encode("hallo"));
  std::sort(hashes.begin(), hashes.end());
  EXPECT_EQ(std::unique(hashes.begin(), hashes.end()), hashes.end());
  EXPECT_EQ(cached().size(), hashes.size());
  // The content counts, not where it lies.
  const auto copy = dir.write("b.jsonl", read(file));
  EXPECT_EQ(open(copy).hash(), open(file).hash());
  EXPECT_EQ(cached().size(), hashes.size());
}

TEST_F(TokenShardTest, DamagedCacheFilesAreMadeAnew) {
  const auto file = dir.write("a.jsonl", "{\"text\": \"hello\"}\n{\"text\": \"you\"}\n");
  open(file);
  const fs::path path = cached().at(0);
  const std::string good = read(path);
  const auto expect_made_anew = [&](const std::string& damaged) {
    std::ofstream(path, std::ios::binary) << damaged;
    const auto shard = open(file);
    EXPECT_EQ(ids_of(shard), tokenizer.encode("helloyou"));
    EXPECT_EQ(ends_of(shard), (Ends{5, 8}));
    EXPECT_EQ(shard.text_bytes(), 8);
    EXPECT_EQ(read(path), good);
    return !HasFailure();
  };
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string damaged = good;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x20);
    ASSERT_TRUE(expect_made_anew(damaged)) << "byte " << i;
  }
  for (std::size_t size = 0; size < good.size(); ++size)
    ASSERT_TRUE(expect_made_anew(good.substr(0, size))) << size << " bytes";
  ASSERT_TRUE(expect_made_anew(good + "x"));
}

// --- the tokenizer of bytes ----------------------------------------------------------------------

TEST(ByteTokenizer, HasATokenForEveryByte) {
  const Tokenizer tokenizer = Tokenizer::parse(byte_tokenizer_json());
  EXPECT_EQ(tokenizer.size(), 258);
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_TRUE(tokenizer.is_special(1));
  std::vector<int> met(258);
  // Every character of one and two bytes, and some of three and four: all bytes that UTF-8 has.
  std::vector<char32_t> points;
  for (char32_t c = 0; c < 0x800; ++c) points.push_back(c);
  for (char32_t c = 0x800; c < 0x110000; c += 0x3ff)
    if (c < 0xd800 || c > 0xdfff) points.push_back(c);
  for (const char32_t c : points) {
    std::string text;
    text::append_code_point(text, c);
    const Ids ids = tokenizer.encode(text);
    ASSERT_EQ(ids.size(), text.size()) << static_cast<std::uint32_t>(c);
    ASSERT_EQ(tokenizer.decode(ids), text) << static_cast<std::uint32_t>(c);
    for (const std::int32_t id : ids) ++met[static_cast<std::size_t>(id)];
  }
  // C0, C1 and F5 to FF are in no UTF-8; the two special tokens are in no text.
  EXPECT_EQ(std::count(met.begin(), met.end(), 0), 13 + 2);
  EXPECT_EQ(tokenizer.encode("a<|endoftext|>b"), (Ids{tokenizer.encode("a")[0], 0,  //
                                                      tokenizer.encode("b")[0]}));
}

TEST(ByteTokenizer, HasTheVocabularyOfTheModelThatIsHere) {
  const auto ours = nlohmann::json::parse(byte_tokenizer_json());
  const auto theirs = nlohmann::json::parse(
      read(fs::path(XLSTM_SOURCE_DIR) / "models/shakespeare-byte/tokenizer.json"));
  EXPECT_EQ(ours["model"]["vocab"], theirs["model"]["vocab"]);
  EXPECT_EQ(ours["model"]["vocab"].size(), 258U);
}

}  // namespace
}  // namespace xlstm::train
