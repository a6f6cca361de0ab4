// Loss and gradients of whole models against NX-AI's, and what holds for them whatever the numbers.

#include "model/training_pass.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "formats/temp_dir.hpp"
#include "model/golden.hpp"
#include "model/model_impl.hpp"
#include "ops/optim.hpp"
#include "ops/support.hpp"
#include "xlstm/error.hpp"

namespace xlstm::testing {
namespace {

namespace fs = std::filesystem;
using formats::SafetensorsFile;

// A second network of the same shape whose views are float32 values of its own: gradients, which
// begin at 0, or weights to train.
struct Gradients {
  explicit Gradients(const Model& model, bool weights = false) {
    const Model::Impl& impl = model.impl();
    parameters = model::list_parameters(impl.config, model::Dialect::nxai, network);
    std::erase_if(parameters, [&](const model::Parameter& p) {
      return std::none_of(impl.parameters.begin(), impl.parameters.end(),
                          [&](const model::Parameter& q) { return q.name == p.name; });
    });
    for (const model::Parameter& p : parameters) {
      values.emplace_back(static_cast<std::size_t>(p.count()));
      *p.view = model::dense_view(values.back().data(), DType::f32, p.shape);
    }
    if (!network.lm_head[0]) network.lm_head[0] = network.embedding;
    network.hp = impl.network.hp;
    network.state = impl.network.state;
    if (!weights) return;
    for (std::size_t i = 0; i < parameters.size(); ++i)
      for (const model::Parameter& p : impl.parameters)
        if (p.name == parameters[i].name)
          std::copy_n(p.view->as<float>(), values[i].size(), values[i].begin());
  }
  model::Network network;
  std::vector<model::Parameter> parameters;
  std::vector<std::vector<float>> values;
};

// Documents laid end to end, each from the empty state; the targets are the next tokens.
struct Documents {
  std::vector<std::int32_t> offsets = {0}, ids, targets;
  std::vector<std::byte*> slots;

  void add(std::span<const std::int32_t> document) {
    ids.insert(ids.end(), document.begin(), document.end());
    targets.insert(targets.end(), document.begin() + 1, document.end());
    targets.push_back(-1);
    offsets.push_back(static_cast<std::int32_t>(ids.size()));
    slots.push_back(nullptr);
  }
  double scored() const {
    return static_cast<double>(std::count_if(targets.begin(), targets.end(),
                                             [](std::int32_t target) { return target >= 0; }));
  }
  double run(const Model& model, Gradients& gradients, double scale) const {
    return run(model.impl().network, gradients, scale);
  }
  double run(const model::Network& network, Gradients& gradients, double scale) const {
    Context context({}, 2);
    model::TrainingPass pass(network, gradients.network, context);
    const ops::Batch batch{offsets, slots};
    return pass.run({batch, ids, targets}, static_cast<float>(scale));
  }
};

double norm(std::span<const double> x) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  return std::sqrt(squares);
}

struct GradientCase {
  std::string name;
  fs::path gradients, adamw, weights;  ///< files with `grad.`, `adamw10.` and `param.`
};

// What a file holds of a parameter under this prefix: by itself, or as rows of a fused one.
std::vector<double> of_parameter(const SafetensorsFile& file, const std::string& prefix,
                                 const model::Parameter& p) {
  for (const std::string& name : {p.nxai_name, p.name})
    if (file.tensors().contains(prefix + name)) return numbers(file, prefix + name);
  const std::vector<double> fused = numbers(file, prefix + p.fused_name);
  const auto begin = fused.begin() + p.fused_row * (p.count() / p.shape[0]);
  return {begin, begin + p.count()};
}

std::int64_t rows_of(const SafetensorsFile& file) { return file.tensors().at("input_ids").dim(0); }

std::vector<GradientCase> gradient_cases() {
  const fs::path source = XLSTM_SOURCE_DIR, golden = source / "tests/golden";
  std::vector<GradientCase> list = {
      {"large_fused_bias", golden / "large_fused_bias_gradients.safetensors",
       golden / "large_fused_bias_adamw.safetensors", golden / "large_fused_bias.safetensors"},
      {"v1_mixed", golden / "v1_mixed_gradients.safetensors", golden / "v1_mixed_adamw.safetensors",
       golden / "v1_mixed.safetensors"}};
  for (const char* name : {"large_base", "large_no_out_norm", "large_wide_v", "v1_mlstm",
                           "v1_slstm", "v1_mixed_tied_bias"}) {
    const fs::path file = source / "../shared/golden" / (std::string(name) + ".safetensors");
    if (fs::exists(file)) list.push_back({name, file, file, file});
  }
  return list;
}

class GradientTest : public ::testing::TestWithParam<GradientCase> {};

TEST_P(GradientTest, LossAndEveryGradient) {
  const SafetensorsFile file = SafetensorsFile::open(GetParam().gradients);
  const formats::TempDir dir;
  write_nxai_directory(SafetensorsFile::open(GetParam().weights), dir / "model");
  const Model model = Model::load(dir / "model");
  Documents documents;
  for (std::int64_t row = 0; row < rows_of(file); ++row)
    documents.add(ids_of(file, "input_ids", row));

  Gradients gradients(model);
  const double loss = documents.run(model, gradients, 1 / documents.scored());
  EXPECT_NEAR(loss / documents.scored(), numbers(file, "loss")[0], 1e-4);

  double all = 0;
  for (const auto& [name, tensor] : file.tensors())
    if (name.starts_with("grad.")) all = std::hypot(all, norm(numbers(file, name)));
  for (std::size_t i = 0; i < gradients.parameters.size(); ++i) {
    const model::Parameter& p = gradients.parameters[i];
    const std::vector<double> want = of_parameter(file, "grad.", p);
    ASSERT_EQ(want.size(), gradients.values[i].size()) << p.name;
    std::vector<double> difference = want;
    for (std::size_t k = 0; k < want.size(); ++k) difference[k] -= gradients.values[i][k];
    EXPECT_LE(norm(difference), 1e-4 * std::max(norm(want), 1e-3 * all)) << p.name;
  }
}

// Ten steps as the reference made them: decay on every parameter, the gradient's norm clipped to 1.
TEST_P(GradientTest, TenStepsOfAdamw) {
  const SafetensorsFile file = SafetensorsFile::open(GetParam().adamw);
  const formats::TempDir dir;
  write_nxai_directory(SafetensorsFile::open(GetParam().weights), dir / "model");
  const Model model = Model::load(dir / "model");
  Documents documents;
  for (std::int64_t row = 0; row < rows_of(file); ++row)
    documents.add(ids_of(file, "input_ids", row));
  const std::vector<double> losses = numbers(file, "adamw.losses");
  ASSERT_EQ(losses.size(), 10U);

  Gradients weights(model, true), m(model), v(model);
  const std::vector<std::vector<float>> before = weights.values;
  Context context({}, 2);
  const auto flat = [](std::vector<float>& values) {
    return Tensor::dense(values.data(), DType::f32, {static_cast<std::int64_t>(values.size())});
  };
  for (std::int64_t step = 1; step <= 10; ++step) {
    Gradients g(model);
    const double loss = documents.run(weights.network, g, 1 / documents.scored());
    EXPECT_NEAR(loss / documents.scored(), losses[static_cast<std::size_t>(step - 1)], 2e-4);
    double squares = 0;
    for (auto& values : g.values)
      ops::test::run<ops::SquaredNormArgs>(context, ops::squared_norm,
                                           {.x = flat(values), .sum = &squares});
    const double clip = std::min(1.0, 1 / (std::sqrt(squares) + 1e-6));
    for (std::size_t i = 0; i < g.values.size(); ++i)
      ops::adamw(context, {.w = flat(weights.values[i]),
                           .g = flat(g.values[i]),
                           .m = flat(m.values[i]),
                           .v = flat(v.values[i]),
                           .copy = {},
                           .step = step,
                           .weight_decay = 0.1,
                           .grad_scale = static_cast<float>(clip)});
  }
  for (std::size_t i = 0; i < weights.parameters.size(); ++i) {
    const model::Parameter& p = weights.parameters[i];
    std::vector<double> difference = of_parameter(file, "adamw10.", p);
    std::vector<double> moved = difference;
    // The sLSTM's input gate has no gradient through its bias: what is left is rounding, whose sign
    // AdamW follows.
    const std::size_t first = p.name.ends_with("_bias_") ? difference.size() / 4 : 0;
    std::fill_n(difference.begin(), first, 0.0);
    std::fill_n(moved.begin(), first, 0.0);
    for (std::size_t k = first; k < difference.size(); ++k) {
      difference[k] -= weights.values[i][k];
      moved[k] -= before[i][k];
    }
    EXPECT_LE(norm(difference), 1e-2 * norm(moved)) << p.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Family, GradientTest, ::testing::ValuesIn(gradient_cases()),
                         [](const auto& c) { return c.param.name; });

Model small_model(DType dtype = DType::f32, const char* kernel = "chunkwise--native_autograd") {
  Config config;
  config.vocab_size = 50;
  config.hidden_size = 48;
  config.num_blocks = 2;
  config.num_heads = 2;
  config.chunkwise_kernel = kernel;
  LoadOptions options;
  options.dtype = dtype;
  return Model::random(config, DType::f32, 4, options);
}

std::vector<std::int32_t> some_ids(std::size_t count, std::int32_t factor) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < count; ++i)
    ids.push_back((static_cast<std::int32_t>(i) * factor + 3) % 50);
  return ids;
}

// The loss along the gradient falls as its square says: d loss / d step = -|g|^2.
TEST(TrainingPassTest, GradientsAreThoseOfTheLoss) {
  for (const char* kernel : {"chunkwise--native_autograd", "chunkwise--triton_xl_chunk_siging"}) {
    SCOPED_TRACE(kernel);
    Model model = small_model(DType::f32, kernel);
    Documents documents;
    documents.add(some_ids(70, 7));
    documents.add(some_ids(9, 11));
    Gradients gradients(model);
    const double scale = 1 / documents.scored();
    documents.run(model, gradients, scale);
    double squares = 0;
    for (const auto& values : gradients.values)
      for (const float value : values) squares += static_cast<double>(value) * value;
    const auto loss_at = [&](double step) {
      for (std::size_t i = 0; i < gradients.parameters.size(); ++i) {
        const auto& parameters = model.impl().parameters;
        const auto p = std::find_if(parameters.begin(), parameters.end(), [&](const auto& q) {
          return q.name == gradients.parameters[i].name;
        });
        float* w = p->view->as<float>();
        for (std::size_t k = 0; k < gradients.values[i].size(); ++k)
          w[k] += static_cast<float>(step) * gradients.values[i][k];
      }
      Gradients ignored(model);
      return documents.run(model, ignored, scale) * scale;
    };
    const double step = 2e-3 / std::sqrt(squares);
    const double above = loss_at(step), below = loss_at(-2 * step);
    EXPECT_NEAR((above - below) / (2 * step), squares, 1e-2 * squares);
  }
}

TEST(TrainingPassTest, PackedDocumentsAreSeparateDocuments) {
  const Model model = small_model();
  Documents packed, first, second;
  packed.add(some_ids(40, 7));
  packed.add(some_ids(25, 11));
  first.add(some_ids(40, 7));
  second.add(some_ids(25, 11));
  Gradients together(model), apart(model);
  const double loss = packed.run(model, together, 0.1);
  const double sum = first.run(model, apart, 0.1) + second.run(model, apart, 0.1);
  EXPECT_NEAR(loss, sum, 1e-3);
  for (std::size_t i = 0; i < together.values.size(); ++i) {
    const std::vector<double> want(apart.values[i].begin(), apart.values[i].end());
    EXPECT_LT(relative_difference(together.values[i], want), 2e-5) << together.parameters[i].name;
  }
}

TEST(TrainingPassTest, RunsRepeatToTheBit) {
  const Model model = small_model();
  Documents documents;
  documents.add(some_ids(40, 7));
  documents.add(some_ids(3, 11));
  Gradients one(model), two(model);
  const double a = documents.run(model, one, 0.1), b = documents.run(model, two, 0.1);
  EXPECT_EQ(a, b);
  EXPECT_EQ(one.values, two.values);
}

TEST(TrainingPassTest, Bf16ArithmeticStaysNear) {
  const Model exact = small_model(), rounded = small_model(DType::bf16);
  Documents documents;
  documents.add(some_ids(60, 7));
  Gradients a(exact), b(rounded);
  const double scale = 1 / documents.scored();
  const double loss = documents.run(exact, a, scale);
  EXPECT_NEAR(documents.run(rounded, b, scale), loss, 0.02 * loss);
  double difference = 0, all = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i)
    for (std::size_t k = 0; k < a.values[i].size(); ++k) {
      difference = std::hypot(difference, a.values[i][k] - b.values[i][k]);
      all = std::hypot(all, a.values[i][k]);
    }
  EXPECT_LT(difference, 0.1 * all);
  EXPECT_GT(difference, 1e-5 * all) << "nothing was rounded to bf16";
}

TEST(TrainingPassTest, WhatItDoesNotTakeIsAnError) {
  const Model model = small_model();
  Gradients gradients(model);
  Documents documents;
  documents.add(some_ids(4, 7));
  documents.targets.pop_back();
  EXPECT_THROW(documents.run(model, gradients, 1), Error);
}

}  // namespace
}  // namespace xlstm::testing
