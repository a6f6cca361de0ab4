// Settings of the first xLSTM: nested in a config.json, alone in a file, and what is refused.

#include "formats/block_stack.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "formats/config_files.hpp"
#include "formats/expect_error.hpp"

namespace xlstm::formats {
namespace {

using nlohmann::json;

json community() {
  return {{"model_type", "xlstm"},
          {"bos_token_id", 1},
          {"_xlstm_config",
           {{"vocab_size", 97},
            {"embedding_dim", 64},
            {"num_blocks", 4},
            {"slstm_at", {1}},
            {"mlstm_block", {{"mlstm", {{"num_heads", 4}}}}},
            {"slstm_block",
             {{"slstm", {{"num_heads", 8}, {"backend", "cuda"}}},
              {"feedforward", {{"proj_factor", 1.3}, {"act_fn", "gelu"}}}}}}}};
}

Config parse(const json& object) { return parse_hf_config(object.dump(), "config.json"); }

// A language model whose vocabulary got lost is no stack alone, which has no such frame.
TEST(BlockStackConfigTest, ALanguageModelHasAVocabulary) {
  json object = community();
  object["_xlstm_config"].erase("vocab_size");
  expect_error(ErrorCode::invalid_file, {"config.json", "vocab_size", "it is missing"},
               [&] { parse(object); });
  object["vocab_size"] = 0;
  expect_error(ErrorCode::invalid_file, {"config.json", "vocab_size", "found 0"},
               [&] { parse(object); });
  object["vocab_size"] = 12;
  EXPECT_EQ(parse(object).vocab_size, 12);
}

TEST(BlockStackConfigTest, AbsentFieldsHaveNxaisDefaults) {
  const Config config = parse(community());
  ASSERT_TRUE(config.block_stack);
  const BlockStackConfig& stack = *config.block_stack;
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.num_blocks, 4);
  EXPECT_EQ(config.vocab_size, 97);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_TRUE(config.eos_token_id.empty());
  EXPECT_EQ(stack.slstm_at, std::vector<std::int64_t>{1});
  EXPECT_TRUE(stack.add_post_blocks_norm && stack.apply_post_blocks_norm);
  EXPECT_FALSE(stack.bias);
  ASSERT_TRUE(stack.mlstm && stack.slstm);
  EXPECT_EQ(stack.mlstm->conv1d_kernel_size, 4);
  EXPECT_EQ(stack.mlstm->qkv_proj_blocksize, 4);
  EXPECT_EQ(stack.inner_dim(64), 128);
  EXPECT_EQ(stack.slstm->num_heads, 8);
  EXPECT_EQ(stack.ffn_dim(64), 128);  // 64 ceil(83.2 / 64), a true ceiling
  EXPECT_EQ(stack.ffn_dim(768), 1024);
  EXPECT_TRUE(config.unknown.empty());
}

TEST(BlockStackConfigTest, OnlyOneKindOfBlock) {
  json object = community();
  object["_xlstm_config"].erase("mlstm_block");
  EXPECT_EQ(parse(object).block_stack->slstm_at, (std::vector<std::int64_t>{0, 1, 2, 3}));
  object = community();
  object["_xlstm_config"]["slstm_at"] = "all";
  EXPECT_EQ(parse(object).block_stack->slstm_at, (std::vector<std::int64_t>{0, 1, 2, 3}));
  object["_xlstm_config"].erase("slstm_block");
  object["_xlstm_config"]["slstm_at"] = json::array();
  EXPECT_FALSE(parse(object).block_stack->slstm);
}

TEST(BlockStackConfigTest, AFeedForwardLayerMayBeAbsent) {
  json object = community();
  object["_xlstm_config"]["slstm_block"]["feedforward"] = nullptr;
  EXPECT_FALSE(parse(object).block_stack->slstm->has_feed_forward);
  EXPECT_EQ(parse(object).block_stack->ffn_dim(64), 0);
}

TEST(BlockStackConfigTest, NxaisOwnFile) {
  const Config config = parse_nxai_config(community()["_xlstm_config"].dump(), "config.yaml");
  EXPECT_EQ(config.block_stack->slstm_at, std::vector<std::int64_t>{1});
  EXPECT_FALSE(config.bos_token_id);
}

TEST(BlockStackConfigTest, WhatIsWrittenIsRead) {
  json object = community();
  object["a_note"] = "kept";
  object["_xlstm_config"]["tie_weights"] = true;
  object["_xlstm_config"]["dropout"] = 0.25;
  object["_xlstm_config"]["apply_post_blocks_norm"] = false;
  object["_xlstm_config"]["slstm_block"]["slstm"]["gradient_recurrent_clipval"] = 10.0;
  const Config config = parse(object);
  const Config again = parse(json::parse(write_hf_config(config, "bf16")));
  EXPECT_EQ(write_hf_config(again, "bf16"), write_hf_config(config, "bf16"));
  EXPECT_TRUE(again.tie_word_embeddings);
  EXPECT_EQ(again.block_stack->dropout, 0.25);
  EXPECT_FALSE(again.block_stack->apply_post_blocks_norm);
  EXPECT_EQ(again.block_stack->slstm->gradient_recurrent_clipval, 10.0);
  EXPECT_EQ(again.unknown.at("a_note"), "\"kept\"");
}

TEST(BlockStackConfigTest, UnknownKeysAreKeptAtTheirPlace) {
  json object = community();
  object["a.b/c"] = 3;
  object["_xlstm_config"]["new_idea"] = 1;
  object["_xlstm_config"]["mlstm_block"]["mlstm"]["num_headz/~"] = 2;
  const Config config = parse(object);
  EXPECT_EQ(config.unknown, (std::map<std::string, std::string>{{"a.b/c", "3"}}));
  const std::map<std::string, std::string> nested = {{"/mlstm_block/mlstm/num_headz~1~0", "2"},
                                                     {"/new_idea", "1"}};
  EXPECT_EQ(config.block_stack->unknown, nested);
  const json written = json::parse(write_hf_config(config, "f32"));
  EXPECT_EQ(written["_xlstm_config"]["mlstm_block"]["mlstm"]["num_headz/~"], 2);
  EXPECT_EQ(parse(written).block_stack->unknown, nested);
  EXPECT_EQ(parse_nxai_config(object["_xlstm_config"].dump(), "config.yaml").block_stack->unknown,
            nested);
}

TEST(BlockStackConfigTest, WrongValues) {
  const auto expect_bad = [](const char* pointer, const json& value, const char* field,
                             const char* found) {
    json object = community();
    object[json::json_pointer(std::string("/_xlstm_config") + pointer)] = value;
    expect_error(ErrorCode::invalid_file, {"config.json", field, found}, [&] { parse(object); });
  };
  expect_bad("/slstm_at", {4}, "slstm_at", "found 4");
  expect_bad("/slstm_at", {-1}, "slstm_at", "found -1");
  expect_bad("/slstm_at", {1, 1}, "slstm_at", "found 1 after 1");
  expect_bad("/slstm_at", "some", "slstm_at", "found string");
  expect_bad("/num_blocks", 0, "num_blocks", "found 0");
  expect_bad("/embedding_dim", 63, "slstm.num_heads", "found 8");
  expect_bad("/dropout", 1.0, "dropout", "found 1");
  expect_bad("/mlstm_block", 3, "mlstm_block", "found");
  expect_bad("/mlstm_block/mlstm/num_heads", 3, "mlstm.num_heads", "found 3");
  expect_bad("/mlstm_block/mlstm/num_heads", 0, "mlstm.num_heads", "found 0");
  expect_bad("/mlstm_block/mlstm/qkv_proj_blocksize", 5, "mlstm.qkv_proj_blocksize", "found 5");
  expect_bad("/mlstm_block/mlstm/conv1d_kernel_size", 0, "mlstm.conv1d_kernel_size", "found 0");
  expect_bad("/mlstm_block/mlstm/proj_factor", 1e300, "mlstm.proj_factor", "found");
  expect_bad("/slstm_block/slstm/num_heads", 5, "slstm.num_heads", "found 5");
  expect_bad("/slstm_block/feedforward/act_fn", "tanh", "feedforward.act_fn", "found 'tanh'");

  json object = community();
  object["_xlstm_config"]["slstm_block"]["slstm"]["function"] = "lstm";
  expect_error(ErrorCode::unsupported, {"slstm", "function", "found 'lstm'"},
               [&] { parse(object); });
  object = community();
  object["_xlstm_config"].erase("mlstm_block");
  object["_xlstm_config"].erase("slstm_block");
  expect_error(ErrorCode::invalid_file, {"expected mlstm_block or slstm_block"},
               [&] { parse(object); });
}

}  // namespace
}  // namespace xlstm::formats
