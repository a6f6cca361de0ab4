// Adapters: their gradients against those of the matrices they are added to and against the loss
// itself, what they leave as it was, and the way from a run to a model that reads them.

#include "train/lora.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "formats/config_files.hpp"
#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "model/adapter.hpp"
#include "model/small_model.hpp"
#include "model/trainable.hpp"
#include "train/checkpoint.hpp"
#include "train/learner.hpp"
#include "train/trainer.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;
using formats::TempDir;
using Values = std::map<std::string, std::vector<float>>;

Config large_config() {
  Config config = testing::small_config();
  config.vocab_size = 320;
  return config;
}
Config stack_config() { return testing::small_stack_config(320, 2); }

fs::path write_model(const TempDir& folder, const Config& config, DType dtype = DType::f32) {
  const fs::path path = folder / "base";
  Model::random(config, DType::f32, 7).save(path, dtype);
  return path;
}

LearnerOptions lora_options(std::vector<std::string> targets = {"all"}) {
  LearnerOptions options;
  options.threads = 2;
  options.lora = {.rank = 3, .alpha = 6, .targets = std::move(targets), .seed = 5, .base = "base"};
  return options;
}

Learner make_learner(const fs::path& base, const LearnerOptions& options) {
  return Learner(model::trainable_model(base, {}), options);
}

Examples some_examples(std::initializer_list<int> lengths = {40, 9}) {
  Examples examples;
  int number = 3;
  for (const int length : lengths) {
    std::vector<std::int32_t> ids, targets;
    for (int i = 0; i <= length; ++i) ids.push_back(number = (number * 11 + 7) % 310);
    targets.assign(ids.begin() + 1, ids.end());
    ids.pop_back();
    examples.add(ids, targets);
  }
  return examples;
}

// Numbers of what is trained ("weight.") or its moments ("m.", "v."), by name.
Values values(const Learner& learner, const std::string& kind) {
  Values found;
  for (const auto& [name, tensor] : learner.state())
    if (name.starts_with(kind))
      found[name.substr(kind.size())].assign(tensor.as<float>(),
                                             tensor.as<float>() + tensor.count());
  return found;
}

void add_to_weights(Learner& learner, const Values& direction, double step) {
  for (const auto& [name, tensor] : learner.state()) {
    if (!name.starts_with("weight.")) continue;
    const auto found = direction.find(name.substr(7));
    if (found == direction.end()) continue;
    for (std::size_t i = 0; i < found->second.size(); ++i)
      tensor.as<float>()[i] += static_cast<float>(step * found->second[i]);
  }
  learner.state_changed();
}

// A and B such that neither gradient is 0.
void fill_factors(Learner& learner) {
  Values numbers = values(learner, "weight.");
  std::uint32_t seed = 1;
  for (auto& [name, list] : numbers)
    for (float& x : list) {
      seed = seed * 1664525U + 1013904223U;
      x = 0.1F * (static_cast<float>(seed >> 8) * 0x1p-23F - 1);
    }
  add_to_weights(learner, numbers, 1);
}

// With beta1 = 0 the first moment is the gradient; with lr = 0 nothing moves.
Values gradients(Learner& learner, std::initializer_list<Examples> parts) {
  learner.zero_gradients();
  for (const Examples& examples : parts) learner.forward_backward(examples, 1);
  learner.step({.lr = 0, .beta1 = 0, .weight_decay = 0}, 1.0);
  return values(learner, "m.");
}

std::vector<float> weights_of(const Model& model, const std::string& name) {
  for (const model::Parameter& p : model.impl().parameters)
    if (p.name == name) return {p.view->as<float>(), p.view->as<float>() + p.count()};
  ADD_FAILURE() << name;
  return {};
}

double largest(const std::vector<double>& x) {
  double m = 0;
  for (const double v : x) m = std::max(m, std::fabs(v));
  return m;
}

void expect_close(const std::vector<float>& found, const std::vector<double>& expected,
                  double tolerance, const std::string& name) {
  ASSERT_EQ(found.size(), expected.size()) << name;
  const double scale = largest(expected);
  EXPECT_GT(scale, 0) << name;
  double worst = 0;
  for (std::size_t i = 0; i < found.size(); ++i)
    worst = std::max(worst, std::fabs(found[i] - expected[i]));
  EXPECT_LE(worst, tolerance * scale) << name;
}

struct Family {
  const char* name;
  Config (*config)();
  std::vector<std::string> targets;
  std::size_t matrices;
};

// Every kind of matrix: those of the blocks, and by name also gates and the head.
const std::vector<Family> kFamilies = {
    {"large", large_config, {"all", "igate_preact", "fgate_preact", "lm_head"}, 2 * 10 + 1},
    {"first", stack_config, {"all", "mlstm_cell.igate", "lm_head"}, 2 + 1 + 2 + 1}};

TEST(Lora, GradientsAreThoseOfTheMatricesByTheChainRule) {
  for (const Family& family : kFamilies) {
    const TempDir folder;
    const fs::path base = write_model(folder, family.config());
    const Examples examples = some_examples();
    Learner adapter = make_learner(base, lora_options(family.targets));
    fill_factors(adapter);
    const Values factors = values(adapter, "weight.");
    const Values found = gradients(adapter, {examples});
    ASSERT_EQ(found.size(), 2 * family.matrices) << family.name;

    // A learner of all weights, which are the adapter's sums.
    Model merged = model::trainable_model(base, {});
    for (const model::Parameter& p : merged.impl().parameters)
      std::ranges::copy(weights_of(adapter.model(), p.name), p.view->as<float>());
    LearnerOptions plain;
    plain.threads = 2;
    Learner whole(std::move(merged), plain);
    const Values full = gradients(whole, {examples});

    for (const auto& [name, a] : factors) {
      if (!name.ends_with(".lora_A")) continue;
      const std::string module = name.substr(0, name.size() - 7);
      const std::vector<float>& b = factors.at(module + ".lora_B");
      const std::vector<float>& d_w = full.at(module + ".weight");
      constexpr std::size_t kRank = 3;
      constexpr double kScale = 2;
      const std::size_t in = a.size() / kRank, out = b.size() / kRank;
      ASSERT_EQ(d_w.size(), in * out) << module;
      std::vector<double> d_a(a.size()), d_b(b.size());
      for (std::size_t o = 0; o < out; ++o)
        for (std::size_t r = 0; r < kRank; ++r)
          for (std::size_t i = 0; i < in; ++i) {
            d_b[o * kRank + r] += kScale * d_w[o * in + i] * a[r * in + i];
            d_a[r * in + i] += kScale * b[o * kRank + r] * d_w[o * in + i];
          }
      expect_close(found.at(module + ".lora_A"), d_a, 2e-5, module + " A");
      expect_close(found.at(module + ".lora_B"), d_b, 2e-5, module + " B");
    }
  }
}

TEST(Lora, GradientsAreThoseOfTheLoss) {
  for (const Family& family : kFamilies) {
    const TempDir folder;
    const Examples examples = some_examples();
    Learner learner =
        make_learner(write_model(folder, family.config()), lora_options(family.targets));
    fill_factors(learner);
    for (const std::string half : {".lora_A", ".lora_B"}) {
      Values direction = gradients(learner, {examples});
      std::erase_if(direction, [&](const auto& entry) { return !entry.first.ends_with(half); });
      double squares = 0;
      for (const auto& [name, list] : direction)
        for (const float x : list) squares += static_cast<double>(x) * x;
      const double step = 0.05 / squares;  // the loss changes by so much
      add_to_weights(learner, direction, step);
      const double above = learner.evaluate(examples).loss;
      add_to_weights(learner, direction, -2 * step);
      const double below = learner.evaluate(examples).loss;
      add_to_weights(learner, direction, step);
      EXPECT_NEAR((above - below) / (2 * step), squares, 1e-2 * squares) << family.name << half;
    }
  }
}

TEST(Lora, PassesOfAStepAddUp) {
  const TempDir folder;
  Learner learner = make_learner(write_model(folder, large_config()), lora_options());
  fill_factors(learner);
  Examples first = some_examples({40}), both = first;
  const Examples second = some_examples({17});
  both.add(second.ids, second.targets);
  const Values expected = gradients(learner, {both});
  for (const auto& [name, found] : gradients(learner, {first, second}))
    expect_close(found, {expected.at(name).begin(), expected.at(name).end()}, 2e-5, name);
}

TEST(Lora, BeginsAsTheBaseAndTrainsNothingElse) {
  for (const Family& family : kFamilies) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      const TempDir folder;
      const fs::path base = write_model(folder, family.config());
      const Examples examples = some_examples();
      LearnerOptions options = lora_options({"all"});
      options.compute = compute;
      Learner learner = make_learner(base, options);
      LearnerOptions plain;
      plain.threads = 2;
      plain.compute = compute;
      const double first = make_learner(base, plain).evaluate(examples).loss;
      EXPECT_EQ(learner.evaluate(examples).loss, first) << family.name;
      for (int step = 1; step <= 20; ++step) {
        learner.zero_gradients();
        learner.forward_backward(examples, 1);
        EXPECT_TRUE(std::isfinite(learner.gradient_norm()));
        learner.step({.step = step, .lr = 5e-3}, 1.0 / 49);
      }
      EXPECT_LT(learner.evaluate(examples).loss, 0.9 * first) << family.name;

      const Model before = Model::load(base);
      for (const model::Parameter& p : before.impl().parameters) {
        const bool adapted =
            p.quantisable && p.shape.size() == 2 && p.name.find("blocks.") != std::string::npos;
        const bool same = weights_of(before, p.name) == weights_of(learner.model(), p.name);
        EXPECT_EQ(same, !adapted) << p.name;
      }
      for (const auto& [name, tensor] : learner.state())
        EXPECT_NE(name.find(".lora_"), std::string::npos) << name;
    }
  }
}

// Trains a little and writes the adapter.
fs::path train_adapter(Learner& learner, const TempDir& folder, DType dtype = DType::f32) {
  const Examples examples = some_examples();
  for (int step = 1; step <= 5; ++step) {
    learner.zero_gradients();
    learner.forward_backward(examples, 1);
    learner.step({.step = step, .lr = 1e-2}, 1.0 / 49);
  }
  learner.save(folder / "adapter", dtype);
  return folder / "adapter";
}

std::vector<float> logits(Model& model) {
  const Examples examples = some_examples({30});
  State state = model.make_state();
  const SequenceInput input{examples.ids, &state};
  std::vector<float> result(examples.ids.size() *
                            static_cast<std::size_t>(model.config().vocab_size));
  model.forward({&input, 1}, Logits::all, result);
  return result;
}

double distance(const std::vector<float>& x, const std::vector<float>& y) {
  EXPECT_EQ(x.size(), y.size());
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::fabs(static_cast<double>(x[i]) - y[i]));
  return worst;
}

TEST(Lora, LoadedAdaptersGiveTheLearnersLogits) {
  for (const Family& family : kFamilies) {
    const TempDir folder;
    const fs::path base = write_model(folder, family.config());
    Learner learner = make_learner(base, lora_options(family.targets));
    const fs::path path = train_adapter(learner, folder);
    LoadOptions with, twice, half;
    with.adapters = {{.directory = path}};
    half.adapters = {{.directory = path, .scale = 0.5}};
    twice.adapters = {half.adapters[0], half.adapters[0]};
    Model plain = Model::load(base), adapted = Model::load(base, with);
    const std::vector<float> expected = logits(learner.model());
    EXPECT_LE(distance(logits(adapted), expected), 1e-5) << family.name;
    EXPECT_GE(distance(logits(plain), expected), 1e-2) << family.name;
    Model halves = Model::load(base, twice), one_half = Model::load(base, half);
    EXPECT_LE(distance(logits(halves), expected), 1e-4) << family.name;
    EXPECT_GE(distance(logits(one_half), expected), 1e-3) << family.name;

    EXPECT_NE(plain.hash(), adapted.hash());
    EXPECT_NE(one_half.hash(), adapted.hash());
    LoadOptions threads = with;
    threads.threads = 1;
    EXPECT_EQ(Model::load(base, threads).hash(), adapted.hash());
  }
}

TEST(Lora, SumsAreRoundedToTheTypeOfTheBase) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const TempDir folder;
    const fs::path base = write_model(folder, large_config(), dtype);
    Learner learner = make_learner(base, lora_options({"q"}));
    const fs::path path = train_adapter(learner, folder);
    LoadOptions options;
    options.adapters = {{.directory = path}};
    const Model adapted = Model::load(base, options);
    for (const model::Parameter& p : adapted.impl().parameters) {
      EXPECT_EQ(p.view->dtype, dtype) << p.name;
      if (!p.name.ends_with(".q.weight")) continue;
      const std::vector<float> exact = weights_of(learner.model(), p.name);
      const TempDir copy;
      adapted.save(copy.path(), DType::f32);
      const std::vector<float> rounded = weights_of(Model::load(copy.path()), p.name);
      const double unit = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
      bool any = false;
      for (std::size_t i = 0; i < exact.size(); ++i) {
        EXPECT_LE(std::fabs(rounded[i] - exact[i]), 1.01 * unit * std::fabs(exact[i]) + 1e-7);
        any |= rounded[i] != exact[i];
      }
      EXPECT_TRUE(any);
    }
  }
}

// The files: their names are peft's, and the numbers are of the type that was asked for.
TEST(Lora, WritesTheFilesOfPeft) {
  const TempDir folder;
  Learner learner = make_learner(write_model(folder, large_config()), lora_options({"q", "all"}));
  const fs::path path = train_adapter(learner, folder, DType::bf16);
  const auto file = formats::SafetensorsFile::open(path / "adapter_model.safetensors");
  EXPECT_EQ(file.tensors().size(), 2U * 2 * 8);
  const Tensor a =
      file.tensors().at("base_model.model.backbone.blocks.1.ffn.proj_down.lora_A.weight");
  const Tensor b =
      file.tensors().at("base_model.model.backbone.blocks.1.ffn.proj_down.lora_B.weight");
  EXPECT_EQ(to_string(a), "bf16[3, 96]");
  EXPECT_EQ(to_string(b), "bf16[48, 3]");
  const std::string text = formats::read_text_file(path / "adapter_config.json");
  for (const char* part : {R"("peft_type": "LORA")", R"("r": 3)", R"("lora_alpha": 6.0)",
                           R"("task_type": "CAUSAL_LM")", R"("base_model_name_or_path": "base")",
                           R"("proj_up_gate")", R"("ogate_preact")"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  EXPECT_EQ(text.find("\"all\""), std::string::npos) << text;
  const formats::AdapterFile read = formats::read_adapter(path);
  EXPECT_EQ(read.config.scale(), 2);
  EXPECT_EQ(read.matrices.size(), 16U);
}

TEST(Lora, TargetsThatAreNotThereAreNamed) {
  const TempDir folder;
  const fs::path large = write_model(folder, large_config());
  expect_error(ErrorCode::invalid_argument,
               {"lora.targets", "found 'q_proj'", "all", "q, k, v, ogate_preact", "lm_head"}, [&] {
                 make_learner(large, lora_options({"q", "q_proj"}));
               });
  const TempDir other;
  const fs::path first = write_model(other, stack_config());
  // q_proj is block-diagonal there: not a matrix.
  expect_error(ErrorCode::invalid_argument, {"found 'q_proj'", "proj_up", "proj_down"},
               [&] { make_learner(first, lora_options({"q_proj"})); });
  expect_error(ErrorCode::invalid_argument, {"found 'embeddings'"},
               [&] { make_learner(large, lora_options({"embeddings"})); });
}

// One adapter for "q" of block 0, then spoiled.
class AdapterFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    base_ = write_model(folder_, large_config());
    fs::create_directories(path_);
    write_tensors("backbone.blocks.0.mlstm_layer.q", 2, 48, 24, 2);
    write_config("");
  }
  void write_config(const std::string& more) {
    folder_.write("adapter/adapter_config.json",
                  R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4)" + more + "}");
  }
  void write_tensors(const std::string& module, std::int64_t a_rows, std::int64_t a_columns,
                     std::int64_t b_rows, std::int64_t b_columns, float value = 0.25F) {
    std::vector<float> numbers(static_cast<std::size_t>(a_rows * a_columns + b_rows * b_columns),
                               value);
    const formats::AdapterMatrix matrix{
        module, Tensor::dense(numbers.data(), DType::f32, {a_rows, a_columns}),
        Tensor::dense(numbers.data() + a_rows * a_columns, DType::f32, {b_rows, b_columns})};
    formats::write_adapter(path_, {.base = "", .rank = 2, .alpha = 4, .targets = {}}, {&matrix, 1});
    write_config("");
  }
  Model load() {
    LoadOptions options;
    options.adapters = {{.directory = path_}};
    return Model::load(base_, options);
  }
  void expect(ErrorCode code, std::initializer_list<std::string_view> parts) {
    expect_error(code, parts, [&] { load(); });
  }

  TempDir folder_;
  fs::path path_ = folder_ / "adapter", base_;
};

constexpr const char* kQ = "'base_model.model.backbone.blocks.0.mlstm_layer.q.lora_A.weight'";

TEST_F(AdapterFiles, SumIsTheFormula) {
  const std::string name = "backbone.blocks.0.mlstm_layer.q.weight";
  const std::vector<float> before = weights_of(Model::load(base_), name);
  const auto expect_added = [&](double added) {
    const std::vector<float> after = weights_of(load(), name);
    for (std::size_t i = 0; i < before.size(); ++i) ASSERT_NEAR(after[i], before[i] + added, 1e-6);
  };
  expect_added(2 * 2 * 0.25 * 0.25);
  write_config(R"(, "use_rslora": true, "unknown": 5, "target_modules": "all-linear")");
  expect_added(4 / std::sqrt(2) * 2 * 0.25 * 0.25);
  // NX-AI's name of a module is as good as Hugging Face's.
  write_tensors("lm_head", 2, 48, 320, 2);
  EXPECT_EQ(weights_of(load(), name), before);
}

TEST_F(AdapterFiles, WhatDoesNotFitIsAnError) {
  const ErrorCode invalid = ErrorCode::invalid_file, unsupported = ErrorCode::unsupported;
  write_tensors("backbone.blocks.2.mlstm_layer.q", 2, 48, 24, 2);
  expect(invalid, {"adapter_model.safetensors", "backbone.blocks.2.mlstm_layer.q.weight"});
  write_tensors("backbone.embeddings", 2, 48, 320, 2);
  expect(invalid, {"backbone.embeddings.weight"});
  write_tensors("backbone.blocks.0.mlstm_layer.q", 2, 47, 24, 2);
  expect(invalid, {"adapter_model.safetensors", kQ, "[2, 48]", "f32[2, 47]"});
  write_tensors("backbone.blocks.0.mlstm_layer.q", 2, 48, 48, 2);
  expect(invalid, {"lora_B.weight", "[24, 2]", "f32[48, 2]"});
  write_tensors("backbone.blocks.0.mlstm_layer.q", 3, 48, 24, 3);
  expect(invalid, {kQ, "[2, in]", "adapter_config.json", "f32[3, 48]"});
  write_tensors("backbone.blocks.0.mlstm_layer.q", 2, 48, 24, 2, NAN);
  expect(invalid, {kQ, "NaN", "element 0"});

  float number[2] = {1, 2};
  const Tensor a = Tensor::dense(number, DType::f32, {2, 1});
  const auto alone = [&](const std::string& name) {
    const formats::NamedTensor tensor{name, a};
    formats::write_safetensors(path_ / "adapter_model.safetensors", {&tensor, 1});
  };
  alone("base_model.model.lm_head.lora_A.weight");
  expect(ErrorCode::not_found, {"'base_model.model.lm_head.lora_B.weight' is missing"});
  alone("base_model.model.lm_head.lora_magnitude_vector");
  expect(unsupported, {"lora_magnitude_vector"});
  alone("base_model.model.lm_head.base_layer.weight");  // a copy of the base's: not an adapter
  expect(invalid, {"found none of an adapter"});
  alone("lm_head.lora_A.weight");
  expect(unsupported, {"'lm_head.lora_A.weight'", "base_model.model."});
}

TEST_F(AdapterFiles, ConfigurationsOfAnotherFormulaAreErrors) {
  load();
  for (const char* more :
       {R"(, "use_dora": true)", R"(, "fan_in_fan_out": true)", R"(, "bias": "all")",
        R"(, "rank_pattern": {"q": 4})", R"(, "alpha_pattern": {"q": 4})",
        R"(, "modules_to_save": ["lm_head"])"}) {
    write_config(more);
    const std::string text = more;
    const std::string key = text.substr(3, text.find('"', 3) - 3);
    expect(ErrorCode::unsupported, {"adapter_config.json: " + key});
  }
  write_config(
      R"(, "use_dora": false, "bias": "none", "rank_pattern": {}, "modules_to_save": null)");
  load();
  const auto config = [&](const char* text) { folder_.write("adapter/adapter_config.json", text); };
  config(R"({"peft_type": "IA3"})");
  expect(ErrorCode::unsupported, {"peft_type", "IA3"});
  config(R"({"peft_type": "LORA", "lora_alpha": 1})");
  expect(ErrorCode::invalid_file, {"the key r, found none"});
  config(R"({"peft_type": "LORA", "r": 0, "lora_alpha": 1})");
  expect(ErrorCode::invalid_file, {"r: expected at least 1"});
  config("[");
  expect(ErrorCode::invalid_file, {"adapter_config.json"});
  fs::remove(path_ / "adapter_config.json");
  expect(ErrorCode::not_found, {"adapter_config.json"});
  fs::remove_all(path_);
  expect(ErrorCode::not_found, {"no such adapter directory"});

  LoadOptions options;
  options.adapters = {{.directory = path_}};
  expect_error(ErrorCode::invalid_argument, {"no adapters"},
               [&] { Model::random(large_config(), DType::f32, 1, options); });
}

class LoraRun : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 400; ++i) text += "to be or not to be, " + std::to_string(i * i % 97);
    config_.data.train = {folder_.write("text.txt", text).string()};
    config_.data.cache = (folder_ / "cache").string();
    config_.data.seq_len = 24;
    config_.data.batch = 4;
    config_.data.validation_fraction = 0.1;
    config_.model.init_from = write_model(folder_, large_config()).string();
    config_.optimizer.lr = 1e-2;
    config_.lora.rank = 4;
    config_.lora.targets = {"q", "proj_down"};
    config_.run.steps = 6;
    config_.run.threads = 2;
    config_.run.out = (folder_ / "whole").string();
  }
  TrainResult run() {
    Communicator alone;
    return train(config_, alone, {});
  }
  std::string adapter(const std::string& run, const std::string& file) {
    return formats::read_text_file(folder_ / run / "model" / file);
  }

  TempDir folder_;
  TrainConfig config_;
};

TEST_F(LoraRun, AResumedRunGivesTheSameBits) {
  const TrainResult whole = run();
  EXPECT_EQ(whole.step, 6);
  config_.run.out = (folder_ / "parts").string();
  config_.run.stop_at = 3;
  run();
  config_.run.stop_at = 0;
  config_.run.resume = true;
  const TrainResult parts = run();
  EXPECT_EQ(parts.validation.loss, whole.validation.loss);
  for (const char* file : {"adapter_model.safetensors", "adapter_config.json"})
    EXPECT_TRUE(adapter("whole", file) == adapter("parts", file)) << file;
  LoadOptions options;
  options.adapters = {{.directory = folder_ / "whole" / "model"}};
  EXPECT_NE(Model::load(config_.model.init_from, options).hash(),
            Model::load(config_.model.init_from).hash());
  EXPECT_TRUE(fs::exists(folder_ / "whole" / "best" / "adapter_config.json"));

  const auto state = formats::SafetensorsFile::open(folder_ / "whole" / "checkpoints" /
                                                    "step-000000006" / "state.safetensors");
  EXPECT_EQ(state.tensors().size(), 4U * 2 * 3);  // four matrices, A and B, numbers and moments

  // Another model in the base's place.
  Model::random(large_config(), DType::f32, 8).save(config_.model.init_from, DType::f32);
  expect_error(ErrorCode::invalid_argument, {"another model", "base"}, [&] { run(); });
}

TEST_F(LoraRun, NeedsAModelAndTargets) {
  TrainConfig config = config_;
  config.model.init_from = "";
  expect_error(ErrorCode::invalid_argument, {"lora.rank", "model.init_from"},
               [&] { validate(config); });
  config = config_;
  config.lora.targets.clear();
  expect_error(ErrorCode::invalid_argument, {"lora.targets"}, [&] { validate(config); });
  config = {};
  read_config_text("[lora]\nrank = 4\nalpha = 8\ntargets = [\"q\"]\n", "file", config);
  EXPECT_EQ(config.lora.rank, 4);
  EXPECT_EQ(config.lora.alpha, 8);
  EXPECT_EQ(config.lora.targets, std::vector<std::string>{"q"});
  const TrainPlan needs = plan(config_);
  EXPECT_EQ(needs.trained, 2 * 4 * (48 + 24) + 2 * 4 * (48 + 96));
  EXPECT_GT(needs.parameters, 10 * needs.trained);
}

}  // namespace
}  // namespace xlstm::train
