// Config: derived sizes and rules; config.json, config.yaml and generation_config.json.

#include "xlstm/config.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "formats/config_files.hpp"
#include "formats/expect_error.hpp"

namespace xlstm::formats {
namespace {

using nlohmann::json;

const std::string kSource = XLSTM_SOURCE_DIR;

Config config_of(std::int64_t hidden_size, double ffn_proj_factor = 2.667) {
  Config config;
  config.hidden_size = hidden_size;
  config.ffn_proj_factor = ffn_proj_factor;
  return config;
}

/// A config.json with one key set to a JSON text.
std::string with(const std::string& key, const std::string& value) {
  json object = {{"model_type", "xlstm"},
                 {"hidden_size", 128},
                 {"num_blocks", 2},
                 {"num_heads", 2},
                 {"vocab_size", 320}};
  object[key] = json::parse(value);
  return object.dump();
}

Config parse(const std::string& text) { return parse_hf_config(text, "config.json"); }

// --- sizes -------------------------------------------------------------------------------------

TEST(ConfigTest, FeedForwardWidthIsNotATrueCeiling) {
  EXPECT_EQ(config_of(4096).ffn_dim(), 10944);
  EXPECT_EQ(config_of(2048).ffn_dim(), 5504);
  EXPECT_EQ(config_of(768).ffn_dim(), 2048);  // 2048.256: the fraction is lost
  EXPECT_EQ(config_of(1536).ffn_dim(), 4096);
  EXPECT_EQ(config_of(128).ffn_dim(), 384);
}

TEST(ConfigTest, FeedForwardWidthEqualsPythons) {
  // int(((D * factor + r - 1) // r) * r) computed by Python.
  struct Case {
    std::int64_t hidden_size;
    double factor;
    std::int64_t multiple;
    std::int64_t expected;
  };
  for (const Case& c : {Case{384, 2.6667, 64, 1024}, Case{256, 2.6667, 64, 704},
                        Case{64, 2.6667, 64, 192}, Case{100, 1.3, 7, 133}, Case{10, 0.1, 1, 1},
                        Case{3, 1.1, 1, 3}, Case{1000, 2.5, 3, 2502}}) {
    Config config = config_of(c.hidden_size, c.factor);
    config.ffn_round_up_to_multiple_of = c.multiple;
    EXPECT_EQ(config.ffn_dim(), c.expected) << c.hidden_size << " * " << c.factor;
  }
}

TEST(ConfigTest, SizesOfThePublished7B) {
  const Config config;
  config.validate();
  EXPECT_EQ(config.qk_dim(), 2048);
  EXPECT_EQ(config.qk_head_dim(), 256);
  EXPECT_EQ(config.v_head_dim(), 512);
  EXPECT_EQ(config.parameter_count(), 6'865'424'896);
  EXPECT_EQ(config.state_count(), 33'620'224);
}

TEST(ConfigTest, ParameterCountFollowsTheSwitches) {
  Config config = config_of(128);
  config.num_blocks = 2;
  config.num_heads = 2;
  config.vocab_size = 320;
  const std::int64_t plain = config.parameter_count();
  config.tie_word_embeddings = true;
  EXPECT_EQ(plain - config.parameter_count(), 320 * 128);
  config.tie_word_embeddings = false;
  config.add_out_norm = false;
  EXPECT_EQ(plain - config.parameter_count(), 128);
  config.add_out_norm = true;
  config.use_bias = true;
  // q k 64, v o 128, out_proj 128, gate up 384, down 128, three norms 128
  EXPECT_EQ(config.parameter_count() - plain,
            2 * (2 * 64 + 2 * 128 + 128 + 2 * 384 + 128 + 3 * 128));
}

// --- rules -------------------------------------------------------------------------------------

TEST(ConfigTest, ValidateNamesTheField) {
  const auto expect_bad = [](const char* field, const char* found, auto&& change) {
    Config config = config_of(128);
    change(config);
    expect_error(ErrorCode::invalid_argument, {"here: ", field, "expected", found},
                 [&] { config.validate("here"); });
  };
  const double infinity = std::numeric_limits<double>::infinity();
  expect_bad("num_heads", "found 0", [](Config& c) { c.num_heads = 0; });
  expect_bad("num_heads (3)", "found 64", [](Config& c) { c.num_heads = 3; });
  expect_bad("num_blocks", "found 0", [](Config& c) { c.num_blocks = 0; });
  expect_bad("num_blocks", "found 4097", [](Config& c) { c.num_blocks = 4097; });
  expect_bad("vocab_size", "found -1", [](Config& c) { c.vocab_size = -1; });
  expect_bad("vocab_size", "found 2147483648", [](Config& c) { c.vocab_size = 1LL << 31; });
  expect_bad("hidden_size", "found 0", [](Config& c) { c.hidden_size = 0; });
  expect_bad("qk_dim_factor", "found inf", [=](Config& c) { c.qk_dim_factor = infinity; });
  expect_bad("qk_dim_factor", "found 128 * 1e+300", [](Config& c) { c.qk_dim_factor = 1e300; });
  expect_bad("v_dim_factor", "found nan", [](Config& c) { c.v_dim_factor = std::nan(""); });
  expect_bad("v_dim_factor", "found 0", [](Config& c) { c.v_dim_factor = 0.001; });
  expect_bad("ffn_proj_factor", "found -1", [](Config& c) { c.ffn_proj_factor = -1; });
  expect_bad("ffn_proj_factor", "1e+300", [](Config& c) { c.ffn_proj_factor = 1e300; });
  expect_bad("ffn_round_up_to_multiple_of", "found 0",
             [](Config& c) { c.ffn_round_up_to_multiple_of = 0; });
  expect_bad("norm_eps", "found -1", [](Config& c) { c.norm_eps = -1; });
  expect_bad("eps", "found inf", [=](Config& c) { c.eps = infinity; });
  expect_bad("gate_soft_cap", "found 0", [](Config& c) { c.gate_soft_cap = 0; });
  expect_bad("output_logit_soft_cap", "found -3", [](Config& c) { c.output_logit_soft_cap = -3; });
  expect_bad("weight_mode", "found 'double'", [](Config& c) { c.weight_mode = "double"; });
  expect_bad("chunk_size", "found 0", [](Config& c) { c.chunk_size = 0; });
  expect_bad("chunk_size", "found 65537", [](Config& c) { c.chunk_size = 65537; });
  expect_bad("max_inference_chunksize", "found 0",
             [](Config& c) { c.max_inference_chunksize = 0; });
  expect_bad("bos_token_id", "found -1", [](Config& c) { c.bos_token_id = -1; });
  expect_bad("eos_token_id", "found -7", [](Config& c) { c.eos_token_id = {3, -7}; });
  expect_bad("pad_token_id", "found -1", [](Config& c) { c.pad_token_id = -1; });
}

TEST(ConfigTest, ValidateRefusesSizesThatOverflow) {
  Config config;
  config.hidden_size = 2'000'000'000;
  config.num_heads = 1;
  config.ffn_proj_factor = 1;
  config.num_blocks = 4096;
  expect_error(ErrorCode::invalid_argument, {"weights", "hidden_size 2000000000"},
               [&] { config.validate(); });
}

// --- config.json -------------------------------------------------------------------------------

TEST(HfConfigTest, ReadsAWrittenByTransformers) {
  const Config config = parse(read_text_file(kSource + "/tests/golden/hf_plain/config.json"));
  EXPECT_EQ(config.vocab_size, 320);
  EXPECT_EQ(config.hidden_size, 128);
  EXPECT_EQ(config.num_blocks, 2);
  EXPECT_EQ(config.num_heads, 2);
  EXPECT_EQ(config.chunk_size, 16);
  EXPECT_EQ(config.qk_head_dim(), 32);
  EXPECT_EQ(config.v_head_dim(), 64);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-6);
  EXPECT_EQ(config.gate_soft_cap, 15.0);
  EXPECT_EQ(config.autocast_kernel_dtype, "float32");
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_EQ(config.eos_token_id, std::vector<std::int64_t>{2});
  EXPECT_EQ(config.force_bos_token_insert, std::nullopt);
  EXPECT_TRUE(config.unknown.empty());
}

TEST(HfConfigTest, AbsentKeysHaveTransformersDefaults) {
  const Config config = parse(R"({"model_type": "xlstm"})");
  EXPECT_EQ(config.parameter_count(), 6'865'424'896);
  EXPECT_EQ(config.pad_token_id, 1);
}

TEST(HfConfigTest, ReadsThePublished7B) {
  const Config config = parse(R"({
    "add_out_norm": true, "add_post_norm": false, "add_qk_norm": false,
    "architectures": ["xLSTMForCausalLM"], "bos_token_id": 0, "chunk_size": 64,
    "chunkwise_kernel": "chunkwise--triton_xl_chunk", "embedding_dim": 4096, "eos_token_id": 2,
    "force_bos_token_insert": true, "head_dim": 512, "igate_bias_init_range": -10.0,
    "model_type": "xlstm", "num_blocks": 32, "num_heads": 8, "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0", "vocab_size": 50304})");
  EXPECT_EQ(config.parameter_count(), 6'865'424'896);
  EXPECT_EQ(config.force_bos_token_insert, true);
  EXPECT_EQ(config.chunkwise_kernel, "chunkwise--triton_xl_chunk");
  const std::map<std::string, std::string> unknown = {{"add_post_norm", "false"},
                                                      {"add_qk_norm", "false"},
                                                      {"head_dim", "512"},
                                                      {"igate_bias_init_range", "-10.0"}};
  EXPECT_EQ(config.unknown, unknown);
}

TEST(HfConfigTest, SizesWithTwoNames) {
  const auto text = [](const std::string& keys) {
    return R"({"model_type": "xlstm", "num_heads": 2)" + keys + "}";
  };
  EXPECT_EQ(parse(text(R"(, "embedding_dim": 64)")).hidden_size, 64);
  EXPECT_EQ(parse(text(R"(, "embedding_dim": 64, "hidden_size": null)")).hidden_size, 64);
  EXPECT_EQ(parse(text(R"(, "hidden_size": 64, "embedding_dim": null)")).hidden_size, 64);
  EXPECT_EQ(parse(text(R"(, "num_blocks": 3)")).num_blocks, 3);
  EXPECT_EQ(parse(text(R"(, "num_hidden_layers": 3, "num_blocks": null)")).num_blocks, 3);
  expect_error(ErrorCode::invalid_file,
               {"config.json: hidden_size: expected 64 as embedding_dim says, found 128"},
               [&] { parse(text(R"(, "embedding_dim": 64, "hidden_size": 128)")); });
  expect_error(ErrorCode::invalid_file,
               {"config.json: num_hidden_layers: expected 4 as num_blocks says, found 3"},
               [&] { parse(text(R"(, "num_blocks": 4, "num_hidden_layers": 3)")); });
}

TEST(HfConfigTest, NullMeansNone) {
  EXPECT_EQ(parse(with("gate_soft_cap", "null")).gate_soft_cap, std::nullopt);
  EXPECT_EQ(parse(with("output_logit_soft_cap", "null")).output_logit_soft_cap, std::nullopt);
  EXPECT_EQ(parse(with("bos_token_id", "null")).bos_token_id, std::nullopt);
  EXPECT_EQ(parse(with("pad_token_id", "null")).pad_token_id, std::nullopt);
  EXPECT_EQ(parse(with("eos_token_id", "null")).eos_token_id, std::vector<std::int64_t>());
  EXPECT_EQ(parse(with("eos_token_id", "[0, 2]")).eos_token_id, (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(parse(with("force_bos_token_insert", "null")).force_bos_token_insert, std::nullopt);
}

TEST(HfConfigTest, TypesAreChecked) {
  const auto expect_bad = [](const char* key, const char* value, const char* expected,
                             const char* found) {
    expect_error(ErrorCode::invalid_file, {"config.json: ", key, expected, found},
                 [&] { parse(with(key, value)); });
  };
  expect_bad("num_heads", "true", "expected an integer", "found boolean true");
  expect_bad("num_heads", "2.0", "expected an integer", "found number 2.0");
  expect_bad("num_heads", "\"2\"", "expected an integer", "found string '2'");
  expect_bad("num_heads", "null", "expected an integer", "found null");
  expect_bad("vocab_size", "18446744073709551615", "expected an integer",
             "found integer 18446744073709551615");
  expect_bad("vocab_size", "1e30", "expected an integer", "found number 1e+30");
  expect_bad("hidden_size", "[128]", "expected an integer", "found an array of 1");
  expect_bad("norm_eps", "false", "expected a number", "found boolean false");
  expect_bad("use_bias", "0", "expected true or false", "found integer 0");
  expect_bad("weight_mode", "{}", "expected a string", "found an object");
  expect_bad("eos_token_id", "[0, \"2\"]", "expected an integer", "found string '2'");
  expect_bad("model_type", "7", "expected a string", "found integer 7");
}

TEST(HfConfigTest, ValuesAreChecked) {
  const auto expect_bad = [](const char* key, const char* value, const char* found) {
    expect_error(ErrorCode::invalid_file, {"config.json: ", key, "expected", found},
                 [&] { parse(with(key, value)); });
  };
  expect_bad("num_heads", "0", "found 0");
  expect_bad("num_heads", "-2", "found -2");
  expect_bad("hidden_size", "9223372036854775807", "found 9223372036854775807");
  expect_bad("num_blocks", "1000000000", "found 1000000000");
  expect_bad("qk_dim_factor", "1e300", "found 128 * 1e+300");
  expect_bad("weight_mode", "\"both\"", "found 'both'");
  expect_bad("chunk_size", "1000000000", "found 1000000000");
}

TEST(HfConfigTest, OtherArchitecturesAreUnsupported) {
  expect_error(ErrorCode::unsupported, {"config.json: model_type: expected 'xlstm', found 'llama'"},
               [] { parse(R"({"model_type": "llama"})"); });
  expect_error(ErrorCode::unsupported,
               {"config.json: add_qk_norm: expected false", "found boolean true"},
               [] { parse(with("add_qk_norm", "true")); });
  expect_error(ErrorCode::unsupported, {"config.json: add_post_norm: expected false"},
               [] { parse(with("add_post_norm", "true")); });
  expect_error(ErrorCode::unsupported, {"config.json: quantization_config", "found an object"},
               [] { parse(with("quantization_config", R"({"bits": 4})")); });
}

TEST(HfConfigTest, BrokenJson) {
  expect_error(ErrorCode::invalid_file, {"config.json: expected JSON, found: ", "line 1, column 1"},
               [] { parse(""); });
  expect_error(ErrorCode::invalid_file, {"config.json: expected JSON", "line 2"},
               [] { parse("{\n\"model_type\": xlstm}"); });
  expect_error(ErrorCode::invalid_file, {"config.json: expected JSON"},
               [] { parse(R"({"model_type": "xlstm", "norm_eps": NaN})"); });
  expect_error(ErrorCode::invalid_file,
               {"config.json: expected JSON", "'-I' (the last key is 'norm_eps')"},
               [] { parse(R"({"model_type": "xlstm", "norm_eps": -Infinity})"); });
  expect_error(ErrorCode::invalid_file, {"config.json: expected JSON", "1e999"},
               [] { parse(R"({"model_type": "xlstm", "norm_eps": 1e999})"); });
  expect_error(ErrorCode::invalid_file, {"config.json: expected JSON"},
               [] { parse("{\"model_type\": \"\xff\"}"); });
  expect_error(ErrorCode::invalid_file,
               {"config.json: expected every key once, found 'num_heads' twice"},
               [] { parse(R"({"num_heads": 2, "model_type": "xlstm", "num_heads": 4})"); });
  expect_error(ErrorCode::invalid_file, {"config.json: expected an object", "found an array of 1"},
               [] { parse("[1]"); });
  expect_error(ErrorCode::invalid_file, {"config.json: model_type: expected 'xlstm', found none"},
               [] { parse("{}"); });
  expect_error(ErrorCode::invalid_file, {"config.json: expected at most 64 nested"},
               [] { parse(std::string(100'000, '[')); });
  expect_error(ErrorCode::invalid_file, {"config.json: expected at most 64 nested"}, [] {
    std::string text;
    for (int i = 0; i < 100'000; ++i) text += "{\"a\":";
    parse(text);
  });
}

TEST(HfConfigTest, RoundTripKeepsEverything) {
  Config config = parse(with("igate_bias_init_range", "-10.0"));
  config.unknown["nested"] = R"({"a":[1,2.5,null],"b":"x"})";
  config.gate_soft_cap = 7.5;
  config.output_logit_soft_cap.reset();
  config.bos_token_id.reset();
  config.eos_token_id = {0, 2};
  config.force_bos_token_insert = true;
  config.use_bias = true;
  config.weight_mode = "fused";
  config.chunkwise_kernel = "chunkwise--triton_xl_chunk";
  const std::string text = write_hf_config(config, "bf16");
  const Config back = parse(text);
  EXPECT_EQ(back.unknown, config.unknown);
  EXPECT_EQ(back.gate_soft_cap, 7.5);
  EXPECT_EQ(back.output_logit_soft_cap, std::nullopt);
  EXPECT_EQ(back.bos_token_id, std::nullopt);
  EXPECT_EQ(back.eos_token_id, (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(back.force_bos_token_insert, true);
  EXPECT_TRUE(back.use_bias);
  EXPECT_EQ(back.weight_mode, "fused");
  EXPECT_EQ(back.parameter_count(), config.parameter_count());
  EXPECT_EQ(back.chunkwise_kernel, "chunkwise--native_autograd");  // what transformers has itself
  EXPECT_EQ(write_hf_config(back, "bf16"), text);
}

TEST(HfConfigTest, WritesWhatTransformersWrites) {
  const std::string text = read_text_file(kSource + "/tests/golden/hf_plain/config.json");
  json expected = json::parse(text);
  expected.erase("transformers_version");
  EXPECT_EQ(json::parse(write_hf_config(parse(text), "f32")), expected);
}

TEST(HfConfigTest, WritesWholeNumbersAsFloats) {  // transformers checks the types strictly
  EXPECT_NE(write_hf_config(Config(), "f32").find("\"gate_soft_cap\": 15.0"), std::string::npos);
}

TEST(HfConfigTest, WritesAnNxaiConfigAsTransformersCanGenerateWithIt) {
  const Config back = parse(write_hf_config(
      parse_nxai_config("{embedding_dim: 64, num_heads: 2, num_blocks: 2, vocab_size: 131}", "y"),
      "f32"));
  EXPECT_EQ(back.mode, "inference");
  EXPECT_TRUE(back.return_last_states);
  EXPECT_EQ(back.step_kernel, "native");
  EXPECT_EQ(back.ffn_proj_factor, 2.6667);
  EXPECT_EQ(back.bos_token_id, std::nullopt);
}

TEST(HfConfigTest, RefusesToWriteABadConfig) {
  expect_error(ErrorCode::invalid_argument, {"dtype", "found 'int4'"},
               [] { write_hf_config(Config(), "int4"); });
  Config config;
  config.num_heads = 0;
  expect_error(ErrorCode::invalid_argument, {"num_heads"}, [&] { write_hf_config(config, "f32"); });
}

// --- config.yaml -------------------------------------------------------------------------------

Config parse_yaml_config(const std::string& text) { return parse_nxai_config(text, "config.yaml"); }

const std::string kSmallYaml = "embedding_dim: 64\nnum_heads: 2\nnum_blocks: 2\nvocab_size: 131\n";

// Kept as an unknown key it would make the config.json written from this the community's.
TEST(NxaiConfigTest, TheCommunitysKeyIsRefused) {
  expect_error(ErrorCode::invalid_file, {"config.yaml", "_xlstm_config"}, [] {
    parse_yaml_config(
        "{embedding_dim: 64, num_heads: 2, num_blocks: 2, vocab_size: 131, _xlstm_config: [1]}");
  });
}

TEST(NxaiConfigTest, ReadsAReferenceDirectory) {
  const Config config =
      parse_yaml_config(read_text_file(kSource + "/tests/golden/nxai_large/config.yaml"));
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.num_blocks, 2);
  EXPECT_EQ(config.vocab_size, 131);
  EXPECT_EQ(config.chunk_size, 16);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-6);  // written as 1e-06
  EXPECT_DOUBLE_EQ(config.ffn_proj_factor, 2.6667);
  EXPECT_EQ(config.chunkwise_kernel, "chunkwise--triton_xl_chunk");
  EXPECT_EQ(config.mode, "inference");
  EXPECT_EQ(config.bos_token_id, std::nullopt);
  EXPECT_TRUE(config.unknown.empty());
}

TEST(NxaiConfigTest, AbsentKeysHaveThePackagesDefaults) {
  const Config config = parse_yaml_config(kSmallYaml);
  EXPECT_DOUBLE_EQ(config.ffn_proj_factor, 2.6667);
  EXPECT_EQ(config.chunkwise_kernel, "chunkwise--triton_limit_chunk");
  EXPECT_EQ(config.sequence_kernel, "native_sequence__triton");
  EXPECT_EQ(config.step_kernel, "triton");
  EXPECT_EQ(config.mode, "train");
  EXPECT_FALSE(config.return_last_states);
  EXPECT_TRUE(config.eos_token_id.empty());
}

TEST(NxaiConfigTest, YamlValues) {
  EXPECT_EQ(parse_yaml_config(kSmallYaml + "gate_soft_cap: null\n").gate_soft_cap, std::nullopt);
  EXPECT_EQ(parse_yaml_config(kSmallYaml + "gate_soft_cap: ~\n").gate_soft_cap, std::nullopt);
  EXPECT_EQ(parse_yaml_config(kSmallYaml + "gate_soft_cap: +1.5E1\n").gate_soft_cap, 15.0);
  EXPECT_TRUE(parse_yaml_config(kSmallYaml + "use_bias: True\n").use_bias);
  EXPECT_EQ(parse_yaml_config("{"
                              R"("embedding_dim": 64, num_heads: 2, num_blocks: 2, )"
                              "vocab_size: 131}")
                .hidden_size,
            64);
  const Config config = parse_yaml_config(kSmallYaml + "extra: {a: [1, x], b: \"2\"}\n");
  EXPECT_EQ(config.unknown.at("extra"), R"({"a":[1,"x"],"b":"2"})");
}

TEST(NxaiConfigTest, BadInput) {
  const auto expect_bad = [](const std::string& text, std::string_view found) {
    expect_error(ErrorCode::invalid_file, {"config.yaml: ", "expected", found},
                 [&] { parse_yaml_config(text); });
  };
  expect_bad("", "expected an object of settings, found null");
  expect_bad("- 1\n", "found an array of 1");
  expect_bad("embedding_dim: 64\n", "expected the key num_heads, found none");
  expect_bad(kSmallYaml + "vocab_size: 5\n", "found 'vocab_size' twice");
  expect_bad(kSmallYaml + "norm_eps: .inf\n", "norm_eps: expected a number, found string '.inf'");
  expect_bad(kSmallYaml + "norm_eps: infinity\n", "found string 'infinity'");
  expect_bad(kSmallYaml + "chunk_size: \"16\"\n", "expected an integer");
  expect_bad(kSmallYaml + "chunk_size: yes\n", "chunk_size: expected an integer");
  expect_bad(kSmallYaml + "chunk_size: 0\n", "found 0");
  expect_bad(kSmallYaml + "a: &x [1]\nb: *x\n",
             "line 6, column 4: expected plain values, found an alias");
  expect_bad(kSmallYaml + "a: !!python/object:os.system x\n", "found the tag");
  expect_bad(kSmallYaml + "---\na: 1\n", "expected one YAML document, found more");
  expect_bad(kSmallYaml + "a: [1\n", "expected YAML, found:");
  expect_bad(kSmallYaml + "a: x\xff\n", "line 5, column 4: expected UTF-8, found 'x\\xff'");
  expect_bad(kSmallYaml + "? [1]\n: 2\n", "expected a key, found a container");
  expect_bad(kSmallYaml + "a: " + std::string(100'000, '['), "config.yaml");
  expect_bad(kSmallYaml + std::string(1 << 20, '\n'), "expected at most 1048576 bytes");
  expect_bad(kSmallYaml + "a: " + std::string(65, '[') + std::string(65, ']'), "nested containers");
}

// --- generation_config.json --------------------------------------------------------------------

TEST(GenerationConfigTest, EosMayBeANumberAListOrNull) {
  const auto eos = [](const std::string& text) {
    return parse_generation_config(text, "generation_config.json").eos_ids;
  };
  EXPECT_EQ(eos(R"({"eos_token_id": 2})"), std::vector<std::int32_t>{2});
  EXPECT_EQ(eos(R"({"eos_token_id": [0, 2]})"), (std::vector<std::int32_t>{0, 2}));
  EXPECT_EQ(eos(R"({"eos_token_id": null})"), std::vector<std::int32_t>{});
  EXPECT_EQ(eos("{}"), std::vector<std::int32_t>{});
}

TEST(GenerationConfigTest, ReadsAWrittenByTransformers) {
  const auto defaults = parse_generation_config(
      read_text_file(kSource + "/tests/golden/hf_plain/generation_config.json"), "g");
  EXPECT_EQ(defaults.bos_id, 0);
  EXPECT_EQ(defaults.eos_ids, std::vector<std::int32_t>{2});
}

TEST(GenerationConfigTest, BadInput) {
  const auto expect_bad = [](const std::string& text, std::string_view found) {
    expect_error(ErrorCode::invalid_file, {"generation_config.json: ", "expected", found},
                 [&] { parse_generation_config(text, "generation_config.json"); });
  };
  expect_bad("[]", "found an array of 0");
  expect_bad(R"({"bos_token_id": "0"})",
             "bos_token_id: expected an integer of 64 bits, found string");
  expect_bad(R"({"bos_token_id": -1})", "bos_token_id: expected 0 to 2147483647, found -1");
  expect_bad(R"({"eos_token_id": 2147483648})", "found 2147483648");
  expect_bad(R"({"eos_token_id": [[2]]})", "found an array of 1");
}

}  // namespace
}  // namespace xlstm::formats
