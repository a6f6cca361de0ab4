// What files and texts that are not as they should be give.

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "formats/expect_error.hpp"
#include "xlstm/tokenizer.hpp"

namespace xlstm {
namespace {

using nlohmann::json;

/// A small tokenizer.json that is in order.
json good() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 7, "content": "<s>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": null,
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "dropout": null, "unk_token": "u", "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "vocab": {"a": 0, "b": 1, "ab": 2, "u": 3, "c": 4, "abc": 5, "ba": 6},
              "merges": [["a", "b"], ["ab", "c"], ["b", "a"]]}
  })");
}

using Parts = std::initializer_list<std::string_view>;

void expect_bad(const std::string& text, Parts parts, ErrorCode code = ErrorCode::invalid_file) {
  expect_error(code, parts, [&] { Tokenizer::parse(text); });
}
/// `change` is a JSON merge patch; note that null removes a key.
void expect_bad_change(const char* patch, Parts parts, ErrorCode code = ErrorCode::invalid_file) {
  json file = good();
  file.merge_patch(json::parse(patch));
  expect_bad(file.dump(), parts, code);
}
void expect_unsupported(const char* patch, Parts parts) {
  expect_bad_change(patch, parts, ErrorCode::unsupported);
}

TEST(BadTokenizer, TheUnchangedFileIsGood) {
  const Tokenizer tokenizer = Tokenizer::parse(good().dump());
  EXPECT_EQ(tokenizer.size(), 8);
  EXPECT_EQ(tokenizer.encode("abc ba x <s>"), (std::vector<std::int32_t>{5, 6, 3, 7}));
  EXPECT_EQ(tokenizer.description(), "BPE, 7 tokens, 3 merges, NFC, Whitespace");
}

TEST(BadTokenizer, NotJson) {
  expect_bad("", {"tokenizer.json", "expected JSON"});
  expect_bad("{", {"tokenizer.json", "expected JSON"});
  expect_bad("[1", {"tokenizer.json", "expected JSON"});
  expect_bad("{\"model\": \"\xC3\x28\"}", {"tokenizer.json", "UTF-8"});
  expect_bad("[]", {"expected an object", "array"});
  expect_bad("{}", {"model"});
  const std::string text = good().dump();
  for (std::size_t size = 0; size < text.size(); size += 7)
    expect_bad(text.substr(0, size), {"tokenizer.json"});
  expect_bad(std::string(100000, '['), {"nested"});
}

TEST(BadTokenizer, DuplicateKeys) {
  std::string text = good().dump();
  text.insert(1, "\"model\": null, ");
  expect_bad(text, {"model", "twice"});
  text = good().dump();
  text.insert(text.find("\"ab\":"), "\"ab\":6,");
  expect_bad(text, {"'ab'", "twice"});
}

TEST(BadTokenizer, WrongTypes) {
  expect_bad_change(R"({"version": "2.0"})", {"version", "2.0"}, ErrorCode::unsupported);
  expect_bad_change(R"({"model": 5})", {"model", "expected an object", "5"});
  expect_bad_change(R"({"model": {"vocab": [1]}})", {"model.vocab", "expected an object"});
  expect_bad_change(R"({"model": {"vocab": {"a": "x"}}})", {"model.vocab", "\"a\"", "'x'"});
  expect_bad_change(R"({"model": {"vocab": {"a": 1.5}}})", {"model.vocab", "\"a\"", "1.5"});
  expect_bad_change(R"({"model": {"merges": {"a": 1}}})", {"model.merges", "expected an array"});
  expect_bad_change(R"({"model": {"merges": [5]}})", {"model.merges[0]", "5"});
  expect_bad_change(R"({"model": {"merges": [["a"]]}})", {"model.merges[0]"});
  expect_bad_change(R"({"model": {"merges": ["a  b"]}})", {"model.merges[0]", "one space"});
  expect_bad_change(R"({"model": {"merges": ["ab"]}})", {"model.merges[0]", "one space"});
  expect_bad_change(R"({"model": {"fuse_unk": 1}})", {"model.fuse_unk", "true or false"});
  expect_bad_change(R"({"model": {"unk_token": 1}})", {"model.unk_token", "a string"});
  expect_bad_change(R"({"added_tokens": {}})", {"added_tokens", "an array"});
  expect_bad_change(R"({"added_tokens": [{"id": 7, "content": "<s>"}]})",
                    {"added_tokens[0]", "single_word"});
  expect_bad_change(R"({"normalizer": {"type": "Strip", "strip_left": 1, "strip_right": true}})",
                    {"normalizer.strip_left"});
  expect_bad_change(R"({"normalizer": ["NFC"]})", {"normalizer", "an object"});
  expect_bad_change(R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "xy"}})",
                    {"replacement", "one character"});
  expect_bad_change(R"({"pre_tokenizer": {"type": "FixedLength", "length": 0}})", {"length"});
  expect_bad_change(R"({"pre_tokenizer": {"type": "Split", "pattern": {"String": "x"},
                       "behavior": "Sideways", "invert": false}})",
                    {"behavior", "Sideways"});
  expect_bad_change(R"({"pre_tokenizer": {"type": "Split", "pattern": {"Glob": "x"},
                       "behavior": "Removed", "invert": false}})",
                    {"pattern"});
  expect_bad_change(R"({"post_processor": {"type": "TemplateProcessing", "single":
                       [{"SpecialToken": {"id": "x", "type_id": 0}}], "special_tokens": {}}})",
                    {"SpecialToken.id", "'x'"});
  expect_bad_change(R"({"post_processor": {"type": "TemplateProcessing", "single":
                       [{"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {}}})",
                    {"Sequence.id", "'B'"});
  expect_bad_change(R"({"post_processor": {"type": "BertProcessing", "sep": ["x", 99],
                       "cls": ["x", 0]}})",
                    {"post_processor", "99"});
}

TEST(BadTokenizer, Vocabulary) {
  expect_bad_change(R"({"model": {"vocab": {"x": 1}}})", {"model.vocab", "id 1", "\"b\"", "\"x\""});
  expect_bad_change(R"({"model": {"vocab": {"x": -1}}})", {"model.vocab", "\"x\"", "-1"});
  expect_bad_change(R"({"model": {"vocab": {"x": 4294967296}}})", {"model.vocab", "4294967296"});
  expect_bad_change(R"({"model": {"vocab": {"x": 1e300}}})", {"model.vocab", "1e+300"});
  expect_bad_change(R"({"model": {"merges": [["a", "zz"]]}})", {"merges[0]", "\"zz\""});
  expect_bad_change(R"({"model": {"merges": [["a", "b"], ["c", "a"]]}})", {"merges[1]", "\"ca\""});
  expect_bad_change(R"({"model": {"continuing_subword_prefix": "##"}})", {"merges[0]", "prefix"});

  // An id far from the others is allowed, and costs nothing.
  json file = good();
  file["model"]["vocab"]["x"] = 2000000000;
  const Tokenizer tokenizer = Tokenizer::parse(file.dump());
  EXPECT_EQ(tokenizer.size(), 2000000001);
  EXPECT_EQ(tokenizer.encode("x"), (std::vector<std::int32_t>{2000000000}));
  EXPECT_EQ(tokenizer.decode(std::vector<std::int32_t>{2000000000, 1999999999, 0}), "xa");
}

TEST(BadTokenizer, UnknownTokenThatIsNotThere) {
  json file = good();
  file["model"]["unk_token"] = "<unk>";
  const Tokenizer tokenizer = Tokenizer::parse(file.dump());
  EXPECT_EQ(tokenizer.encode("abc"), (std::vector<std::int32_t>{5}));
  expect_error(ErrorCode::invalid_file, {"unk_token", "<unk>"}, [&] { tokenizer.encode("x"); });
}

TEST(BadTokenizer, UnsupportedComponentsAreNamed) {
  expect_unsupported(R"({"model": {"type": "Unigram"}})", {"model.type", "Unigram"});
  expect_unsupported(R"({"model": {"type": "WordPiece"}})", {"model.type", "WordPiece"});
  expect_unsupported(R"({"model": {"dropout": 0.1}})", {"model.dropout"});
  expect_unsupported(R"({"normalizer": {"type": "Precompiled"}})", {"normalizer", "Precompiled"});
  expect_unsupported(R"({"normalizer": {"type": "Sequence", "normalizers":
                        [{"type": "NFC"}, {"type": "BertNormalizer"}]}})",
                     {"normalizers[1]", "BertNormalizer"});
  expect_unsupported(R"({"pre_tokenizer": {"type": "UnicodeScripts"}})",
                     {"pre_tokenizer", "UnicodeScripts"});
  expect_unsupported(R"({"decoder": {"type": "CTC"}})", {"decoder", "CTC"});
  expect_unsupported(R"({"post_processor": {"type": "Magic"}})", {"post_processor", "Magic"});
  expect_unsupported(R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?<=a*)b"},
                        "behavior": "Removed", "invert": false}})",
                     {"regular expression", "(?<=a*)b"});
}

TEST(BadTokenizer, DeepNestingIsAnErrorNotACrash) {
  std::string open;
  std::string close;
  for (int i = 0; i < 1000; ++i) {
    open += R"({"type": "Sequence", "normalizers": [)";
    close += "]}";
  }
  json file = good();
  file["normalizer"] = "HERE";
  std::string text = file.dump();
  text.replace(text.find("\"HERE\""), 6, open + close);
  expect_bad(text, {"nested"});
}

TEST(BadTokenizer, Config) {
  const std::string file = good().dump();
  const auto with = [&](const char* config) { return Tokenizer::parse(file, config); };
  EXPECT_EQ(with(R"({"bos_token": "<s>", "eos_token": {"content": "ab", "lstrip": false},
                     "add_bos_token": true})")
                .bos_id(),
            7);
  EXPECT_EQ(with(R"({"eos_token": {"content": "ab"}})").eos_id(), 2);
  EXPECT_EQ(with(R"({"add_bos_token": true})").add_bos_token(), true);
  EXPECT_EQ(with(R"({"bos_token": null, "add_bos_token": null})").add_bos_token(), std::nullopt);
  EXPECT_EQ(with(R"({"bos_token": "nowhere"})").bos_id(), std::nullopt);
  expect_error(ErrorCode::invalid_file, {"tokenizer_config.json", "bos_token"},
               [&] { with(R"({"bos_token": 5})"); });
  expect_error(ErrorCode::invalid_file, {"tokenizer_config.json", "add_bos_token"},
               [&] { with(R"({"add_bos_token": "yes"})"); });
  expect_error(ErrorCode::invalid_file, {"tokenizer_config.json", "twice"},
               [&] { with(R"({"bos_token": "a", "bos_token": "b"})"); });
}

TEST(BadTokenizer, MissingFile) {
  expect_error(ErrorCode::not_found, {"no/such/tokenizer.json"},
               [] { Tokenizer::load("no/such/tokenizer.json"); });
}

TEST(BadTokenizer, MutilatedFilesGiveErrors) {
  const std::string text = good().dump();
  std::mt19937 random(11);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string bad = text;
    for (unsigned changes = 1 + random() % 3; changes > 0; --changes) {
      const std::size_t at = random() % bad.size();
      switch (random() % 3) {
        case 0: bad[at] = static_cast<char>(random() % 256); break;
        case 1: bad.erase(at, 1 + random() % 8); break;
        default: bad.insert(at, bad.substr(random() % bad.size(), random() % 12));
      }
    }
    try {
      Tokenizer::parse(bad).encode("abc <s> ba\u0301");
    } catch (const Error& error) {
      EXPECT_NE(error.code(), ErrorCode::internal) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(BadTokenizer, StagesThatGrowTheTextWithoutEndAreAnError) {
  const json doubling =
      json::parse(R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"})");
  const json bytes = json::parse(R"({"type": "ByteLevel", "add_prefix_space": false,
                                     "trim_offsets": true, "use_regex": false})");
  json file = good();
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::vector<json>(60, doubling)}};
  expect_error(ErrorCode::unsupported, {"normalizer", "more than"},
               [&] { Tokenizer::parse(file.dump()).encode("a"); });
  file = good();
  file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", std::vector<json>(60, bytes)}};
  expect_error(ErrorCode::unsupported, {"pre-tokenizer", "more than"},
               [&] { Tokenizer::parse(file.dump()).encode("\u00e9"); });
  file = good();
  file["decoder"] = {{"type", "Sequence"}, {"decoders", std::vector<json>(60, doubling)}};
  expect_error(ErrorCode::unsupported, {"decoder", "more than"},
               [&] { Tokenizer::parse(file.dump()).decode(std::vector<std::int32_t>{0}); });
}

TEST(BadTokenizer, LongRunsTakeLinearTime) {
  // Quadratic time would be minutes.
  json file = good();
  file["model"]["merges"] = json::parse(R"([["a", "b"], ["a", "a"], ["aa", "aa"]])");
  file["model"]["vocab"]["aa"] = 8;
  file["model"]["vocab"]["aaaa"] = 9;
  const Tokenizer tokenizer = Tokenizer::parse(file.dump());
  const auto start = std::chrono::steady_clock::now();
  const std::vector<std::int32_t> ids = tokenizer.encode(std::string(1 << 20, 'a'));
  EXPECT_EQ(ids, std::vector<std::int32_t>((1 << 20) / 4, 9));
  EXPECT_EQ(tokenizer.encode(std::string(1 << 20, ' ')).size(), 0U);

  json spaces = good();
  spaces["added_tokens"][0]["content"] = "  ";
  spaces["added_tokens"][0]["rstrip"] = true;
  spaces["added_tokens"][0]["lstrip"] = true;
  const std::vector<std::int32_t> all =
      Tokenizer::parse(spaces.dump()).encode(std::string(1 << 20, ' '));
  EXPECT_EQ(all, std::vector<std::int32_t>{7});  // it takes all the white space there is
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace xlstm
