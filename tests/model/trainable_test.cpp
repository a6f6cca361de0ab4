// The weights that training begins with, against specification A.6 and B.5.

#include "model/trainable.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <regex>
#include <set>

#include "core/float_bits.hpp"
#include "formats/config_files.hpp"
#include "formats/temp_dir.hpp"
#include "model/model_impl.hpp"

namespace xlstm::testing {
namespace {

namespace fs = std::filesystem;
using Values = std::vector<float>;

std::map<std::string, Values> weights_of(const Model& model) {
  std::map<std::string, Values> weights;
  for (const model::Parameter& p : model.impl().parameters) {
    EXPECT_EQ(p.view->dtype, DType::f32) << p.name;
    weights[p.name] = {p.view->as<float>(), p.view->as<float>() + p.count()};
  }
  return weights;
}

std::map<std::string, Values> initial_weights(const Config& config, std::uint64_t seed = 3) {
  return weights_of(model::initial_model(config, seed, {}, {}));
}

// --- what a weight is expected to be -------------------------------------------------------------

using Check = std::function<void(const Values&)>;

// Five deviations of every estimate.
Check normal(double deviation) {
  return [=](const Values& values) {
    const auto n = static_cast<double>(values.size());
    double sum = 0, squares = 0, far = 0;
    for (const double x : values) {
      sum += x;
      squares += x * x;
      far += std::abs(x) > deviation ? 1 : 0;
    }
    EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n));
    EXPECT_NEAR(std::sqrt(squares / n) / deviation, 1, 5 / std::sqrt(2 * n));
    EXPECT_NEAR(far / n, 0.3173, 5 * std::sqrt(0.3173 * 0.6827 / n));  // no uniform numbers
  };
}

Check uniform(double bound) {
  return [=](const Values& values) {
    const auto n = static_cast<double>(values.size());
    double sum = 0, squares = 0;
    for (const double x : values) {
      EXPECT_LE(std::abs(x), bound * (1 + 1e-6));
      sum += x;
      squares += x * x;
    }
    EXPECT_NEAR(sum / n, 0, 5 * bound / std::sqrt(3 * n));
    // The deviation of x^2 is bound^2 sqrt(4 / 45).
    EXPECT_NEAR(squares / n / (bound * bound), 1.0 / 3, 5 * std::sqrt(4 / (45 * n)));
  };
}

Check constant(float value) {
  return [=](const Values& values) {
    for (const float x : values) ASSERT_EQ(x, value);
  };
}

Check equal(const std::vector<double>& expected) {
  return [=](const Values& values) {
    ASSERT_EQ(values.size(), expected.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(values[i], expected[i], 1e-5) << "element " << i;
  };
}

double small(double d) { return std::sqrt(2 / (5 * d)); }
double wang(double n, double d) { return 2 / (n * std::sqrt(d)); }

// Every weight meets the check of the one pattern that its name has.
void expect_weights(const std::map<std::string, Values>& weights,
                    const std::vector<std::pair<std::string, Check>>& rules) {
  std::set<std::string> used;
  for (const auto& [name, values] : weights) {
    SCOPED_TRACE(name);
    int found = 0;
    for (const auto& [pattern, check] : rules) {
      if (!std::regex_search(name, std::regex(pattern))) continue;
      ++found;
      used.insert(pattern);
      check(values);
    }
    EXPECT_EQ(found, 1);
  }
  for (const auto& [pattern, check] : rules) EXPECT_TRUE(used.contains(pattern)) << pattern;
}

// --- families ------------------------------------------------------------------------------------

Config large_config() {
  Config config;
  config.vocab_size = 300;
  config.hidden_size = 96;
  config.num_blocks = 3;
  config.num_heads = 4;
  config.use_bias = true;
  return config;
}

TEST(InitialModel, LargeIsAsTheReferenceTrainedIt) {
  expect_weights(
      initial_weights(large_config()),
      {{"norm.*weight$", constant(1)},
       {"norm.*bias$", constant(0)},
       {"igate_preact\\.bias$", constant(-10)},
       {"fgate_preact\\.bias$", equal({3, 4, 5, 6})},
       {"[ifo]gate_preact\\.weight$", constant(0)},
       {"(\\.[qkv]|ogate_preact|proj[a-z_]*)\\.bias$", constant(0)},
       {"(out_proj|proj_down)\\.weight$", normal(wang(3, 96))},
       {"(\\.[qkv]|proj_up|proj_up_gate|embeddings|lm_head)\\.weight$", normal(small(96))}});
}

Config stack_config() {
  Config config;
  config.vocab_size = 300;
  config.hidden_size = 96;
  config.num_blocks = 3;
  config.block_stack.emplace();
  config.block_stack->bias = true;
  config.block_stack->mlstm.emplace();
  config.block_stack->mlstm->conv1d_kernel_size = 9;
  config.block_stack->slstm.emplace();
  config.block_stack->slstm->num_heads = 2;
  config.block_stack->slstm_at = {1, 2};
  return config;
}

// b of all four gates, where those of the forget gates are `forget` of the place in the head.
std::vector<double> slstm_bias(const std::function<double(double)>& forget) {
  std::vector<double> bias(4 * 96);
  for (std::size_t i = 0; i < 96; ++i) bias[96 + i] = forget(static_cast<double>(i % 48) / 47);
  return bias;
}
Check power_law(double exponent) {
  return equal(slstm_bias([=](double part) { return 5 - 12 * std::pow(part, exponent); }));
}

TEST(InitialModel, TheFirstXlstmIsAsTheReferenceBegins) {
  expect_weights(
      initial_weights(stack_config()),
      {{"norm.weight$", constant(0)},
       {"learnable_skip$", constant(1)},
       {"blocks\\.0\\..*conv1d\\.conv", uniform(1 / std::sqrt(9))},
       {"blocks\\.[12]\\..*conv1d\\.conv", uniform(1 / std::sqrt(4))},
       {"mlstm_cell\\.[if]gate\\.weight$", constant(0)},
       {"mlstm_cell\\.igate\\.bias$",
        [](const Values& b) {
          for (const float x : b) {
            EXPECT_NE(x, 0);
            EXPECT_LT(std::abs(x), 0.5F);
          }
        }},
       {"mlstm_cell\\.fgate\\.bias$", equal({3, 4, 5, 6})},
       {"_recurrent_kernel_$", constant(0)},
       {"blocks\\.1\\..*_bias_$", power_law(0.3 + 1.3 * 0.5)},
       {"blocks\\.2\\..*_bias_$", power_law(0.3 + 1.3)},
       {"(proj[a-z_]*|[qkv]_proj)\\.bias$", constant(0)},
       {"proj_down\\.weight$", normal(wang(3, 96))},
       {"(proj_up|[qkv]_proj|xlstm\\.[ifzo]gate|embedding|lm_head)\\.weight$", normal(small(96))}});
}

TEST(InitialModel, InputGatesOfManyHeadsAreNormal) {
  Config config = stack_config();
  config.hidden_size = 4096;
  config.num_blocks = 1;
  config.vocab_size = 1;
  config.block_stack->slstm_at = {};
  config.block_stack->slstm.reset();
  config.block_stack->bias = false;
  config.block_stack->mlstm->num_heads = 64;
  config.block_stack->mlstm->proj_factor = 0.25;
  const auto weights = initial_weights(config);
  normal(0.1)(weights.at("model.xlstm_block_stack.blocks.0.xlstm.mlstm_cell.igate.bias"));
}

TEST(InitialModel, OtherBeginningsOfTheSlstm) {
  Config config = stack_config();
  SlstmBlockConfig& slstm = *config.block_stack->slstm;
  const std::string cell = "model.xlstm_block_stack.blocks.1.xlstm.slstm_cell.";
  slstm.recurrent_weight_init = "standard";
  slstm.bias_init = "standard";
  const double bound = 1 / std::sqrt(96);
  uniform(bound)(initial_weights(config).at(cell + "_recurrent_kernel_"));
  uniform(bound)(initial_weights(config).at(cell + "_bias_"));
  slstm.bias_init = "small_init";
  equal(slstm_bias([](double part) { return 3 + 3 * part; }))(
      initial_weights(config).at(cell + "_bias_"));
  slstm.bias_init = "zeros";
  constant(0)(initial_weights(config).at(cell + "_bias_"));
  // A single block has the exponent of a first one.
  slstm.bias_init = "powerlaw_blockdependent";
  config.num_blocks = 1;
  config.block_stack->slstm_at = {0};
  config.block_stack->mlstm.reset();
  power_law(0.3)(
      initial_weights(config).at("model.xlstm_block_stack.blocks.0.xlstm.slstm_cell._bias_"));
}

TEST(InitialModel, TheSeedNamesTheWeights) {
  for (const Config& config : {large_config(), stack_config()}) {
    const auto first = initial_weights(config, 0), again = initial_weights(config, 0),
               other = initial_weights(config, 1);
    EXPECT_EQ(first, again);
    std::set<Values> begins;
    std::size_t random = 0;
    for (const auto& [name, values] : first) {
      const bool fixed = values == other.at(name);
      const std::set<float> different(values.begin(), values.end());
      if (fixed) continue;
      // Numbers of their own, none of them twice, beside all other parameters of both seeds.
      random += 2;
      EXPECT_GT(different.size(), values.size() * 99 / 100) << name;
      for (const Values& all : {values, other.at(name)})
        begins.insert({all.begin(), all.begin() + std::min<std::ptrdiff_t>(4, std::ssize(all))});
    }
    EXPECT_GE(random, 20U);
    EXPECT_EQ(begins.size(), random);
  }
  // More rows leave those before as they are.
  Config longer = large_config();
  longer.vocab_size += 50;
  const auto few = initial_weights(large_config()).at("backbone.embeddings.weight"),
             more = initial_weights(longer).at("backbone.embeddings.weight");
  EXPECT_TRUE(std::equal(few.begin(), few.end(), more.begin()));
}

TEST(InitialModel, TakesAVocabularyAlong) {
  const fs::path directory = fs::path(XLSTM_SOURCE_DIR) / "models/shakespeare-byte";
  const Model with = model::initial_model(large_config(), 1, directory, {});
  ASSERT_NE(with.tokenizer(), nullptr);
  EXPECT_EQ(with.tokenizer()->size(), 258);
  EXPECT_EQ(model::initial_model(large_config(), 1, {}, {}).tokenizer(), nullptr);
}

// --- models that go on ---------------------------------------------------------------------------

TEST(TrainableModel, HasFloatWeightsOfItsOwn) {
  for (const bool tied : {false, true}) {
    for (const DType stored : {DType::f32, DType::bf16, DType::f16}) {
      Config config = large_config();
      config.tie_word_embeddings = tied;
      const formats::TempDir dir;
      const Model before = model::initial_model(config, 5, {}, {});
      before.save(dir / "model", stored);
      Model model = model::trainable_model(dir / "model", {});
      const auto weights = weights_of(model);
      EXPECT_EQ(weights.contains("lm_head.weight"), !tied);
      for (const auto& [name, values] : weights_of(before)) {
        ASSERT_EQ(weights.at(name).size(), values.size()) << name;
        for (std::size_t i = 0; i < values.size(); ++i) {
          const float expected = stored == DType::f32    ? values[i]
                                 : stored == DType::bf16 ? bf16_to_f32(f32_to_bf16(values[i]))
                                                         : f16_to_f32(f32_to_f16(values[i]));
          ASSERT_EQ(weights.at(name)[i], expected) << name;
        }
      }
      // They may be written to, and what the model computes follows; the file stays.
      const std::vector<std::int32_t> ids = {1, 2, 3};
      const auto logits = [&](const Model& m) {
        State state = m.make_state();
        const auto row = const_cast<Model&>(m).eval(state, ids);
        return Values(row.begin(), row.end());
      };
      const Values first = logits(model);
      for (const model::Parameter& p : model.impl().parameters)
        if (p.name == "backbone.embeddings.weight")
          for (std::int64_t i = 0; i < p.count(); ++i) p.view->as<float>()[i] *= 2;
      EXPECT_NE(logits(model), first);
      EXPECT_EQ(logits(model::trainable_model(dir / "model", {})), first);
      if (tied) {
        EXPECT_EQ(model.impl().network.lm_head[0].data, model.impl().network.embedding.data);
      }
    }
  }
}

TEST(TrainableModel, HeadsThatAreNotTheEmbeddingStayApart) {
  Config config = large_config();
  const formats::TempDir dir;
  model::initial_model(config, 5, {}, {}).save(dir / "model", DType::f32);
  std::string json = formats::read_text_file(dir / "model" / "config.json");
  const std::string untied = "\"tie_word_embeddings\": false";
  ASSERT_NE(json.find(untied), std::string::npos);
  json.replace(json.find(untied), untied.size(), "\"tie_word_embeddings\": true");
  dir.write("model/config.json", json);
  const auto weights = weights_of(model::trainable_model(dir / "model", {}));
  EXPECT_NE(weights.at("lm_head.weight"), weights.at("backbone.embeddings.weight"));
}

}  // namespace
}  // namespace xlstm::testing
