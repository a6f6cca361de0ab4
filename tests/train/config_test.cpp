// What `xlstm train` is told: files, single keys, and what is said of mistakes in them.

#include "train/config.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"

namespace xlstm::train {
namespace {

using Texts = std::vector<std::string>;
using Numbers = std::vector<std::int64_t>;

// A value other than the default, as the command line and as a file write it.
struct Written {
  std::string word, toml;
};

Written other_value(const Key& key) {
  if (bool* const* value = std::get_if<bool*>(&key.value)) {
    const std::string text = **value ? "false" : "true";
    return {text, text};
  }
  if (std::int64_t* const* value = std::get_if<std::int64_t*>(&key.value)) {
    const std::string text = std::to_string(**value + 1);
    return {text, text};
  }
  if (double* const* value = std::get_if<double*>(&key.value)) {
    const std::string text = **value > 0.0625 ? "0.0625" : "0.125";
    return {text, text};
  }
  if (std::string* const* value = std::get_if<std::string*>(&key.value)) {
    std::string text = "other";
    for (const std::string& choice : key.choices)
      if (choice != **value) text = choice;
    return {text, '"' + text + '"'};
  }
  if (std::holds_alternative<Numbers*>(key.value)) return {"1,3", "[1, 3]"};
  return {"a.txt,b c.txt", "[\"a.txt\", \"b c.txt\"]"};
}

std::map<std::string, std::string> map_of(const TrainConfig& config) {
  std::map<std::string, std::string> map;
  for (const auto& [key, value] : snapshot(config)) map[key] = value;
  return map;
}

Key key_of(TrainConfig& config, const std::string& name) {
  for (const Key& key : list_keys(config))
    if (key.full_name() == name) return key;
  ADD_FAILURE() << "no key " << name;
  return {};
}

void expect_file_error(const std::string& toml, std::initializer_list<std::string_view> parts,
                       ErrorCode code = ErrorCode::invalid_argument) {
  SCOPED_TRACE(toml);
  expect_error(code, parts, [&] {
    TrainConfig config;
    read_config_text(toml, "run.toml", config);
  });
}

void expect_key_error(const std::string& name, const std::string& value,
                      std::initializer_list<std::string_view> parts) {
  SCOPED_TRACE(name + " = " + value);
  expect_error(ErrorCode::invalid_argument, parts, [&] {
    TrainConfig config;
    const auto before = snapshot(config);
    try {
      set_key(config, name, value);
    } catch (...) {
      EXPECT_EQ(snapshot(config), before);
      throw;
    }
  });
}

// --- setting keys --------------------------------------------------------------------------------

TEST(TrainConfig, EveryKeyIsSetByFileAndByCommandLine) {
  TrainConfig defaults;
  const auto before = map_of(defaults);
  for (const Key& key : list_keys(defaults)) {
    SCOPED_TRACE(key.full_name());
    const Written value = other_value(key);
    TrainConfig by_file, by_key;
    read_config_text("[" + key.section + "]\n" + key.name + " = " + value.toml + "\n", "f",
                     by_file);
    set_key(by_key, key.full_name(), value.word);
    auto expected = before;
    expected[key.full_name()] = value.toml;
    EXPECT_NE(expected, before);
    EXPECT_EQ(map_of(by_file), expected);
    EXPECT_EQ(map_of(by_key), expected);
  }
}

TEST(TrainConfig, KeysPointToTheFieldOfTheirName) {
  TrainConfig config;
  set_key(config, "model.hidden_size", "768");
  set_key(config, "data.seq_len", "12");
  set_key(config, "task.pairs", "9");
  set_key(config, "optimizer.lr", "3e-4");
  set_key(config, "run.save_dtype", "bf16");
  set_key(config, "model.slstm_at", "5,0,2");
  set_key(config, "data.train", "a,b");
  set_key(config, "run.exact_backward", "false");
  EXPECT_EQ(config.model.hidden_size, 768);
  EXPECT_EQ(config.data.seq_len, 12);
  EXPECT_EQ(config.task.pairs, 9);
  EXPECT_EQ(config.optimizer.lr, 3e-4);
  EXPECT_EQ(config.run.save_dtype, "bf16");
  EXPECT_EQ(config.model.slstm_at, (Numbers{5, 0, 2}));
  EXPECT_EQ(config.data.train, (Texts{"a", "b"}));
  EXPECT_FALSE(config.run.exact_backward);
  const std::vector<Key> keys = list_keys(config);
  std::set<std::string> names;
  std::set<const void*> fields;
  for (const Key& key : keys) {
    names.insert(key.full_name());
    fields.insert(std::visit([](auto* field) -> const void* { return field; }, key.value));
  }
  EXPECT_EQ(names.size(), keys.size());
  EXPECT_EQ(fields.size(), keys.size());
}

TEST(TrainConfig, DefaultsAreInTheirBounds) {
  TrainConfig config;
  for (const Key& key : list_keys(config)) {
    SCOPED_TRACE(key.full_name());
    if (std::int64_t* const* value = std::get_if<std::int64_t*>(&key.value))
      detail::assign(key, **value, "");
    if (double* const* value = std::get_if<double*>(&key.value)) detail::assign(key, **value, "");
    if (std::string* const* value = std::get_if<std::string*>(&key.value))
      detail::assign(key, **value, "");
  }
}

TEST(TrainConfig, ShortNamesWorkWhereOneSectionHasThem) {
  TrainConfig defaults;
  std::map<std::string, int> sections;
  for (const Key& key : list_keys(defaults)) ++sections[key.name];
  for (const Key& key : list_keys(defaults)) {
    SCOPED_TRACE(key.name);
    const std::string value = other_value(key).word;
    if (sections[key.name] > 1) {
      expect_key_error(key.name, value, {"--" + key.name, "--" + key.full_name()});
      EXPECT_THROW(is_switch(key.name), Error);
      continue;
    }
    TrainConfig by_short, by_full;
    set_key(by_short, key.name, value);
    set_key(by_full, key.full_name(), value);
    EXPECT_EQ(snapshot(by_short), snapshot(by_full));
    EXPECT_EQ(is_switch(key.name), std::holds_alternative<bool*>(key.value));
    EXPECT_EQ(is_switch(key.full_name()), std::holds_alternative<bool*>(key.value));
  }
  EXPECT_FALSE(is_switch("nonsense"));
}

TEST(TrainConfig, ListsHaveCommas) {
  TrainConfig config;
  set_key(config, "slstm_at", "");
  EXPECT_EQ(config.model.slstm_at, Numbers{});
  set_key(config, "slstm_at", "7");
  EXPECT_EQ(config.model.slstm_at, Numbers{7});
  set_key(config, "train", "one.txt");
  EXPECT_EQ(config.data.train, Texts{"one.txt"});
  set_key(config, "train", "");
  EXPECT_EQ(config.data.train, Texts{});
  read_config_text("[data]\ntrain = 'one.txt'\nvalidation = []", "f", config);  // one needs no list
  EXPECT_EQ(config.data.train, Texts{"one.txt"});
  expect_key_error("slstm_at", "1,,2", {"--model.slstm_at: expected a list of whole numbers"});
  expect_key_error("slstm_at", "1,x", {"--model.slstm_at", "found \"x\""});
  expect_key_error("slstm_at", "1,-2", {"--model.slstm_at", "from 0 to 9999", "found -2"});
}

TEST(TrainConfig, LaterFilesAndKeysWin) {
  TrainConfig config;
  read_config_text("[run]\nsteps = 5\nseed = 1\n[model]\nhidden_size = 64", "a", config);
  read_config_text("run.steps = 6", "b", config);
  set_key(config, "seed", "9");
  EXPECT_EQ(config.run.steps, 6);
  EXPECT_EQ(config.run.seed, 9);
  EXPECT_EQ(config.model.hidden_size, 64);
}

// --- mistakes ------------------------------------------------------------------------------------

TEST(TrainConfig, UnknownKeysAndSectionsAreNamedWithTheirPlace) {
  expect_file_error("[model]\n\nhiden_size = 3", {"run.toml:3: unknown key 'model.hiden_size'",
                                                  "did you mean model.hidden_size?"});
  expect_file_error("[optimizer]\nlr = 1e-3\nwarmup_step = 3\n",
                    {"run.toml:3: ", "'optimizer.warmup_step'", "optimizer.warmup_steps?"});
  expect_file_error("[modle]\nhidden_size = 3",
                    {"run.toml:1: unknown section 'modle'", "[model], [data], [task]"});
  expect_file_error("# top\nseq_len = 3", {"run.toml:2: unknown key 'seq_len'", "data.seq_len?"});
  expect_file_error("model = 3", {"run.toml:1: unknown key 'model'"});
  expect_file_error("[run]\n[run.out]\nx = 1", {"run.toml:2: run.out: expected text", "a table"});
  expect_file_error("[run]\n[run.zzzzzzzzz]\n", {"run.toml:2: unknown key 'run.zzzzzzzzz'"});
  expect_key_error("modle.hidden_size", "3", {"'modle.hidden_size'", "model.hidden_size?"});
  expect_key_error("hiddensize", "3", {"unknown key 'hiddensize'", "model.hidden_size?"});
  expect_key_error("zzzzzzzzzzzz", "3", {"unknown key 'zzzzzzzzzzzz'"});
}

TEST(TrainConfig, FilesThatAreNoTomlAreRefusedWithTheirPlace) {
  expect_file_error("[model]\nfamily = large", {"run.toml:2:"}, ErrorCode::invalid_file);
  expect_file_error("[run]\nseed = 1\nseed = 2", {"run.toml:3:"}, ErrorCode::invalid_file);
  const formats::TempDir dir;
  const auto path = dir.write("my.toml", "[run]\nsteps = 'x'");
  TrainConfig config;
  expect_error(ErrorCode::invalid_argument, {path.string() + ":2: run.steps"},
               [&] { read_config_file(path, config); });
  expect_error(ErrorCode::not_found, {"absent.toml"},
               [&] { read_config_file(dir / "absent.toml", config); });
}

TEST(TrainConfig, WrongTypesSayWhatIsExpected) {
  expect_file_error(
      "[run]\nsteps = \"many\"",
      {"run.toml:2: run.steps: expected a whole number of at least 1, found \"many\""});
  expect_file_error("[run]\nsteps = 2.5", {"run.steps: expected a whole number", "found 2.5"});
  expect_file_error("[run]\nsteps = true", {"run.steps: expected a whole number", "found true"});
  expect_file_error("[run]\nresume = 1", {"run.resume: expected true or false, found 1"});
  expect_file_error("[run]\nresume = \"true\"", {"run.resume: expected true or false"});
  expect_file_error("[run]\nout = 3", {"run.out: expected text, found 3"});
  expect_file_error("[run]\nout = 1979-05-27", {"run.out: expected text, found a date or time"});
  expect_file_error("[optimizer]\nlr = \"1\"", {"optimizer.lr: expected a number from 0 to 100"});
  expect_file_error("[model]\nfamily = \"huge\"",
                    {"model.family: expected one of large, v1, found \"huge\""});
  expect_file_error(
      "[model]\nslstm_at = [1, \"2\"]",
      {"run.toml:2: model.slstm_at: expected a list of whole numbers", "found \"2\""});
  expect_file_error("[model]\nslstm_at = 1", {"model.slstm_at: expected a list", "found 1"});
  expect_file_error("[data]\ntrain = [\"a\", 2]", {"data.train: expected a list of texts"});
  expect_file_error("[data]\ntrain = 2", {"data.train: expected a list of texts, found 2"});
  for (const char* list : {"[]", "[1]", "[\"x\"]"})
    for (const char* key : {"[run]\nsteps", "[optimizer]\nlr", "[run]\nout", "[run]\nresume"})
      expect_file_error(std::string(key) + " = " + list, {"expected ", "found a list"});
  expect_key_error("steps", "1e3", {"--run.steps: expected a whole number", "found \"1e3\""});
  expect_key_error("steps", "", {"--run.steps", "found \"\""});
  expect_key_error("steps", "5 ", {"--run.steps"});
  expect_key_error("resume", "yes", {"--run.resume: expected true or false, found \"yes\""});
  expect_key_error("lr", "fast", {"--optimizer.lr: expected a number", "found \"fast\""});
  expect_key_error("compute", "f64", {"--run.compute: expected one of f32, bf16"});
  // Bytes that are no UTF-8 are no reason to fall over.
  expect_key_error("compute", "\xff", {"--run.compute: expected one of f32, bf16"});
}

TEST(TrainConfig, WholeNumbersDoForNumbers) {
  TrainConfig config;
  read_config_text("[optimizer]\nlr = 1", "f", config);
  EXPECT_EQ(config.optimizer.lr, 1.0);
}

TEST(TrainConfig, BoundsOfEveryKeyAreKept) {
  TrainConfig config;
  for (const Key& key : list_keys(config)) {
    SCOPED_TRACE(key.full_name());
    const bool whole = std::holds_alternative<std::int64_t*>(key.value);
    if (!whole && !std::holds_alternative<double*>(key.value)) continue;
    const auto assign = [&](double value) {
      if (whole)
        detail::assign(key, static_cast<std::int64_t>(value), "here: ");
      else
        detail::assign(key, value, "here: ");
    };
    EXPECT_NO_THROW(assign(key.min));
    EXPECT_NO_THROW(assign(key.max));
    const double below = whole ? key.min - 1 : std::nextafter(key.min, -1e300);
    const double above = whole ? key.max + 1 : std::nextafter(key.max, 1e300);
    for (const double value : {below, above})
      expect_error(ErrorCode::invalid_argument,
                   {"here: " + key.full_name() + ": expected " + key.expected()},
                   [&] { assign(value); });
  }
  for (const char* value : {"nan", "inf", "-inf", "-0.001", "100.1"})
    expect_key_error("lr", value, {"--optimizer.lr: expected a number from 0 to 100"});
  expect_key_error("seed", "99999999999999999999", {"--run.seed"});
}

// --- what the bounds of single keys cannot say ---------------------------------------------------

TrainConfig good() {
  TrainConfig config;
  config.run.out = "out";
  config.data.train = {"a.txt"};
  return config;
}

template <class Change>
void expect_invalid(std::initializer_list<std::string_view> parts, Change&& change,
                    int processes = 1) {
  TrainConfig config = good();
  validate(config, 1);
  change(config);
  expect_error(ErrorCode::invalid_argument, parts, [&] { validate(config, processes); });
}

TEST(TrainConfig, ValidateNamesTheKeysThatDoNotFit) {
  expect_invalid({"run.out"}, [](TrainConfig& c) { c.run.out = ""; });
  expect_invalid({"data.train", "task.name", "neither"}, [](TrainConfig& c) { c.data.train = {}; });
  expect_invalid({"data.train", "task.name", "both"},
                 [](TrainConfig& c) { c.task.name = "parity"; });
  expect_invalid({"data.validation", "data.validation_fraction"}, [](TrainConfig& c) {
    c.data.validation = {"b.txt"};
    c.data.validation_fraction = 0.1;
  });
  expect_invalid(
      {"data.batch: expected a multiple of 12", "found 32"},
      [](TrainConfig& c) { c.run.accumulation = 4; }, 3);
  expect_invalid({"optimizer.warmup_steps", "run.steps = 10", "8 + 3"}, [](TrainConfig& c) {
    c.run.steps = 10;
    c.optimizer.warmup_steps = 8;
    c.optimizer.decay_steps = 3;
  });
  expect_invalid({"optimizer.decay_steps", "wsd"},
                 [](TrainConfig& c) { c.optimizer.schedule = "wsd"; });
  expect_invalid({"model.config", "model.init_from"}, [](TrainConfig& c) {
    c.model.config = "config.json";
    c.model.init_from = "model";
  });
  for (const bool validation : {false, true})
    expect_invalid({"task", "min_length <= max_length"}, [&](TrainConfig& c) {
      c.data.train = {};
      c.task.name = "parity";
      (validation ? c.task.validation_min_length : c.task.min_length) = 1000;
    });
  expect_invalid({"data.mode", "packed"}, [](TrainConfig& c) {
    c.data.train = {};
    c.task.name = "parity";
    c.data.mode = "stream";
  });
  expect_invalid({"model", "num_heads"}, [](TrainConfig& c) { c.model.num_heads = 7; });
}

TEST(TrainConfig, ValidateAcceptsWhatFits) {
  TrainConfig config = good();
  config.run.accumulation = 4;
  config.run.steps = 10;
  config.optimizer.schedule = "wsd";
  config.optimizer.warmup_steps = 6;
  config.optimizer.decay_steps = 4;
  EXPECT_NO_THROW(validate(config, 8));
  // How many ids the data has is not known yet: a task needs few.
  config.model.vocab_size = 12;
  EXPECT_NO_THROW(validate(config));
}

// --- architectures -------------------------------------------------------------------------------

TEST(TrainConfig, ArchitectureOfTheLargeFamily) {
  TrainConfig config;
  ModelKeys& m = config.model;
  m.hidden_size = 96;
  m.num_blocks = 3;
  m.num_heads = 3;
  m.qk_dim_factor = 0.25;
  m.v_dim_factor = 0.5;
  m.ffn_proj_factor = 2.0;
  m.gate_soft_cap = 0;
  m.output_logit_soft_cap = 20;
  m.tie_word_embeddings = true;
  m.use_bias = true;
  const Config found = architecture(config, 258);
  EXPECT_EQ(found.vocab_size, 320);  // the next multiple of 64
  EXPECT_EQ(architecture(config, 320).vocab_size, 320);
  EXPECT_EQ(found.hidden_size, 96);
  EXPECT_EQ(found.num_blocks, 3);
  EXPECT_EQ(found.num_heads, 3);
  EXPECT_EQ(found.qk_head_dim(), 8);
  EXPECT_EQ(found.v_head_dim(), 16);
  EXPECT_EQ(found.ffn_dim(), 192);
  EXPECT_FALSE(found.gate_soft_cap.has_value());
  EXPECT_EQ(found.output_logit_soft_cap, 20.0);
  EXPECT_TRUE(found.tie_word_embeddings);
  EXPECT_TRUE(found.use_bias);
  EXPECT_FALSE(found.block_stack.has_value());

  m.vocab_size = 300;
  EXPECT_EQ(architecture(config, 258).vocab_size, 300);
  expect_error(ErrorCode::invalid_argument, {"model.vocab_size", "301", "found 300"},
               [&] { architecture(config, 301); });
  m.num_heads = 5;
  expect_error(ErrorCode::invalid_argument, {"model", "qk_dim_factor", "num_heads (5)"},
               [&] { architecture(config, 258); });
  m.num_heads = 3;
  m.slstm_at = {1};
  expect_error(ErrorCode::invalid_argument, {"model.slstm_at", "large", "found 1"},
               [&] { architecture(config, 258); });
}

TEST(TrainConfig, ArchitectureOfTheFirstXlstm) {
  TrainConfig config;
  ModelKeys& m = config.model;
  m.family = "v1";
  m.hidden_size = 128;
  m.num_blocks = 4;
  m.num_heads = 4;
  m.slstm_at = {3, 1};
  m.conv1d_kernel_size = 3;
  m.mlstm_proj_factor = 1.5;
  m.slstm_ffn_proj_factor = 2.0;
  m.dropout = 0.25;
  m.use_bias = true;
  const Config found = architecture(config, 258);
  ASSERT_TRUE(found.block_stack.has_value());
  const BlockStackConfig& stack = *found.block_stack;
  EXPECT_EQ(stack.slstm_at, (Numbers{1, 3}));
  EXPECT_TRUE(stack.bias);
  EXPECT_EQ(stack.dropout, 0.25);
  ASSERT_TRUE(stack.mlstm.has_value());
  EXPECT_EQ(stack.mlstm->num_heads, 4);
  EXPECT_EQ(stack.mlstm->conv1d_kernel_size, 3);
  EXPECT_EQ(stack.inner_dim(128), 192);
  ASSERT_TRUE(stack.slstm.has_value());
  EXPECT_EQ(stack.slstm->num_heads, 4);
  EXPECT_EQ(stack.ffn_dim(128), 256);

  // 128 has no 3 heads, 192 has: only the sLSTM objects.
  m.num_heads = 3;
  expect_error(ErrorCode::invalid_argument, {"model", "slstm.num_heads", "128", "found 3"},
               [&] { architecture(config, 258); });
  m.slstm_at = {};
  EXPECT_FALSE(architecture(config, 258).block_stack->slstm.has_value());
  m.num_heads = 5;
  expect_error(ErrorCode::invalid_argument, {"model", "mlstm.num_heads", "192", "found 5"},
               [&] { architecture(config, 258); });
  m.num_heads = 4;
  m.slstm_at = {0, 1, 2, 3};
  EXPECT_FALSE(architecture(config, 258).block_stack->mlstm.has_value());
  for (const Numbers& bad : {Numbers{4}, Numbers{1, 1}, Numbers{0, 1, 1, 2}}) {
    m.slstm_at = bad;
    expect_error(ErrorCode::invalid_argument, {"model", "slstm_at"},
                 [&] { architecture(config, 258); });
  }
}

TEST(TrainConfig, ArchitectureOfAFile) {
  TrainConfig config;
  config.model.config = std::string(XLSTM_SOURCE_DIR) + "/models/shakespeare-byte/config.json";
  config.model.hidden_size = 17;  // says nothing beside a file
  const Config found = architecture(config, 258);
  EXPECT_NE(found.hidden_size, 17);
  EXPECT_GE(found.vocab_size, 258);
  config.model.vocab_size = 512;
  EXPECT_EQ(architecture(config, 258).vocab_size, 512);
  const formats::TempDir dir;
  config.model.config =
      dir.write("config.json", R"({"model_type": "xlstm", "num_blocs": 2})").string();
  expect_error(ErrorCode::invalid_argument, {config.model.config, "num_blocs"},
               [&] { architecture(config, 258); });
}

// --- checkpoints ---------------------------------------------------------------------------------

TEST(TrainConfig, ResumedRunsKeepWhatMayNotChange) {
  TrainConfig defaults;
  const auto saved = snapshot(defaults);
  EXPECT_NO_THROW(check_same(saved, defaults, "out"));
  int fixed = 0, free = 0;
  for (const Key& key : list_keys(defaults)) {
    SCOPED_TRACE(key.full_name());
    TrainConfig changed;
    const Written value = other_value(key);
    set_key(changed, key.full_name(), value.word);
    if (key.may_change) {
      ++free;
      EXPECT_NO_THROW(check_same(saved, changed, "out"));
    } else {
      ++fixed;
      expect_error(ErrorCode::invalid_argument,
                   {"out: " + key.full_name(), "started with " + key.text(), "found " + value.toml},
                   [&] { check_same(saved, changed, "out"); });
    }
  }
  EXPECT_GT(fixed, 0);
  EXPECT_GT(free, 0);
  for (const char* name : {"run.resume", "run.out", "run.stop_at", "run.threads"})
    EXPECT_TRUE(key_of(defaults, name).may_change) << name;
  for (const char* name : {"run.seed", "run.steps", "data.batch", "optimizer.lr", "data.train"})
    EXPECT_FALSE(key_of(defaults, name).may_change) << name;
  // A checkpoint that lacks a key.
  const std::span<const std::pair<std::string, std::string>> all(saved);
  expect_error(ErrorCode::invalid_argument, {"out: model.config", "started with nothing"},
               [&] { check_same(all.subspan(1), defaults, "out"); });
}

TEST(TrainConfig, TomlReadBackIsTheSame) {
  TrainConfig config;
  for (const Key& key : list_keys(config)) set_key(config, key.full_name(), other_value(key).word);
  config.data.train = {"with \"quotes\".txt", "back\\slash", "gr\xc3\xbc\xc3\x9f\x65", "a,b"};
  config.run.sample_prompt = "tab\t, line\n, bell\a, rubout\x7f, nul" + std::string(1, '\0');
  config.optimizer.lr = 0.1 + 0.2;
  config.optimizer.eps = 1e-30;
  config.optimizer.clip = 1e9;
  config.run.steps = 999999999999999;
  TrainConfig read;
  read_config_text(to_toml(config), "f", read);
  EXPECT_EQ(snapshot(read), snapshot(config));
  EXPECT_EQ(read.optimizer.lr, 0.1 + 0.2);
  EXPECT_EQ(read.optimizer.eps, 1e-30);
  EXPECT_EQ(read.data.train, config.data.train);
  EXPECT_EQ(read.run.sample_prompt, config.run.sample_prompt);
  TrainConfig defaults, again;
  config = {};
  read_config_text(to_toml(defaults), "f", config);
  EXPECT_EQ(snapshot(config), snapshot(again));
}

}  // namespace
}  // namespace xlstm::train
