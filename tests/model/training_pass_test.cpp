// Loss and gradients of whole models against NX-AI's, and what holds for them whatever the numbers.

#include "model/training_pass.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/temp_dir.hpp"
#include "model/golden.hpp"
#include "model/model_impl.hpp"
#include "model/small_model.hpp"
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

Model stack_model() { return Model::random(small_stack_config(50, 3), DType::f32, 4); }

std::vector<std::int32_t> some_ids(std::size_t count, std::int32_t factor) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < count; ++i)
    ids.push_back((static_cast<std::int32_t>(i) * factor + 3) % 50);
  return ids;
}

// The loss along the gradient falls as its square says: d loss / d step = -|g|^2.
void expect_gradients_of_the_loss(Model model, float dropout) {
  model::Hyperparameters& hp = model.impl().network.hp;
  hp.dropout = hp.embedding_dropout = hp.ffn_dropout = dropout;
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

TEST(TrainingPassTest, GradientsAreThoseOfTheLoss) {
  expect_gradients_of_the_loss(small_model(), 0);
  expect_gradients_of_the_loss(small_model(DType::f32, "chunkwise--triton_xl_chunk_siging"), 0);
  expect_gradients_of_the_loss(stack_model(), 0);
}

TEST(TrainingPassTest, GradientsAreThoseOfTheLossWithDropout) {
  expect_gradients_of_the_loss(small_model(), 0.3F);
  expect_gradients_of_the_loss(stack_model(), 0.3F);
}

// One token sequence with records of the state and its gradient.
struct Stream {
  explicit Stream(const Model& model)
      : state(model.impl().network.state.bytes(), {}, true), gradient(state.size(), {}, true) {}

  double run(const Model& model, Gradients& gradients, std::span<const std::int32_t> ids,
             std::span<const std::int32_t> targets, bool with_gradient,
             model::Recompute recompute = model::Recompute::none) {
    const std::vector<std::int32_t> offsets = {0, static_cast<std::int32_t>(ids.size())};
    const std::vector<std::byte*> slots = {state.data()}, d_slots = {gradient.data()};
    const ops::Batch batch{offsets, slots};
    Context context({}, 2);
    model::TrainingPass pass(model.impl().network, gradients.network, context, recompute);
    return pass.run({batch, ids, targets}, 0.1F, 3,
                    with_gradient ? std::span(d_slots) : std::span<std::byte* const>());
  }
  std::vector<std::byte> bytes() const { return {state.data(), state.data() + state.size()}; }

  Buffer state, gradient;
};

// A text cut in two, whose gradients meet in the state between the halves, has those of the whole.
TEST(TrainingPassTest, StatesCarryValuesAndGradients) {
  for (const bool first_xlstm : {false, true}) {
    SCOPED_TRACE(first_xlstm);
    const Model model = first_xlstm ? stack_model() : small_model();
    const std::vector<std::int32_t> ids = some_ids(61, 7);
    const std::span<const std::int32_t> all(ids), targets = all.subspan(1);
    Gradients whole(model), halves(model), unused(model);
    Stream one(model), two(model), start(model);
    const double loss = one.run(model, whole, all.first(60), targets, false);

    start.run(model, unused, all.first(37), targets.first(37), false);
    const double second = [&] {
      std::memcpy(two.state.data(), start.state.data(), two.state.size());
      return two.run(model, halves, all.subspan(37, 23), targets.subspan(37), true);
    }();
    EXPECT_LT(
        relative_difference({reinterpret_cast<float*>(two.state.data()), 64},
                            std::vector<double>(reinterpret_cast<float*>(one.state.data()),
                                                reinterpret_cast<float*>(one.state.data()) + 64)),
        1e-4);
    std::memset(two.state.data(), 0, two.state.size());
    const double first = two.run(model, halves, all.first(37), targets.first(37), true);
    EXPECT_NEAR(first + second, loss, 1e-3);
    for (std::size_t i = 0; i < whole.values.size(); ++i) {
      const std::vector<double> want(whole.values[i].begin(), whole.values[i].end());
      if (whole.parameters[i].name.ends_with("_bias_")) continue;  // slot i: rounding alone
      EXPECT_LT(relative_difference(halves.values[i], want), 1e-3) << whole.parameters[i].name;
    }
  }
}

TEST(TrainingPassTest, ComputingAgainChangesNoBit) {
  for (const bool first_xlstm : {false, true}) {
    Model model = first_xlstm ? stack_model() : small_model();
    model.impl().network.hp.dropout = 0.2F;
    const std::vector<std::int32_t> ids = some_ids(61, 7);
    const std::span<const std::int32_t> all(ids);
    Gradients expected(model);
    Stream stream(model);
    // Twice, so that the second begins with a state.
    stream.run(model, expected, all.first(60), all.subspan(1), false);
    const double loss = stream.run(model, expected, all.first(60), all.subspan(1), false);
    for (const auto level : {model::Recompute::norms, model::Recompute::blocks}) {
      Gradients again(model);
      Stream other(model);
      other.run(model, again, all.first(60), all.subspan(1), false, level);
      EXPECT_EQ(other.run(model, again, all.first(60), all.subspan(1), false, level), loss);
      EXPECT_EQ(again.values, expected.values);
      EXPECT_EQ(other.bytes(), stream.bytes());
    }
  }
}

TEST(TrainingPassTest, RowsWithoutTargetsNeedNoLogits) {
  const Model model = stack_model();
  Documents documents;
  documents.add(some_ids(40, 7));
  Gradients all(model), few(model), none(model);
  documents.run(model, all, 0.1);
  for (std::size_t t = 0; t < documents.targets.size(); ++t)
    if (t % 7 != 3) documents.targets[t] = -1;
  const double loss = documents.run(model, few, 0.1);
  // One target at a time, each against all others unscored, adds up to the same.
  Gradients sum(model);
  double losses = 0;
  for (std::size_t t = 3; t < documents.targets.size(); t += 7) {
    Documents one = documents;
    for (std::size_t u = 0; u < one.targets.size(); ++u)
      if (u != t) one.targets[u] = -1;
    losses += one.run(model, sum, 0.1);
  }
  EXPECT_NEAR(loss, losses, 1e-4);
  const std::vector<double> want(sum.values[1].begin(), sum.values[1].end());
  EXPECT_LT(relative_difference(few.values[1], want), 1e-4);
  std::fill(documents.targets.begin(), documents.targets.end(), -1);
  EXPECT_EQ(documents.run(model, none, 0.1), 0);
  for (const auto& values : none.values)
    for (const float value : values) ASSERT_EQ(value, 0);
}

TEST(TrainingPassTest, EvaluationCountsRightAnswersAndFindsWhereNumbersEnd) {
  Model model = stack_model();
  Gradients unused(model);
  Documents documents;
  documents.add(some_ids(40, 7));
  const ops::Batch batch{documents.offsets, documents.slots};
  Context context({}, 2);
  model::TrainingPass pass(model.impl().network, unused.network, context);
  const model::TrainingPass::Input input{batch, documents.ids, documents.targets};
  const auto score = pass.evaluate(input);
  EXPECT_NEAR(score.loss, documents.run(model, unused, 1), 1e-3);
  // The same, with the model's own logits.
  State state = model.make_state();
  std::int64_t correct = 0;
  for (std::size_t t = 0; t + 1 < documents.ids.size(); ++t) {
    const auto logits = model.eval(state, std::span(documents.ids).subspan(t, 1));
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    if (best == documents.targets[t]) ++correct;
  }
  EXPECT_EQ(score.correct, correct);
  EXPECT_EQ(pass.find_nonfinite(input), "");
  std::get<model::SlstmBlock>(model.impl().network.blocks[1]).r.as<float>()[3] = NAN;
  EXPECT_EQ(pass.find_nonfinite(input), "block 1 (sLSTM)");
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
