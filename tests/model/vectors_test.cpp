// The block stack alone: vectors in, vectors out, as the token path has them inside; and models
// that have neither embedding nor head.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "allocation_counter.hpp"
#include "core/buffer.hpp"
#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "model/golden.hpp"
#include "model/model_impl.hpp"
#include "model/small_model.hpp"
#include "model/state_numbers.hpp"
#include "source_dir.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

using formats::SafetensorsFile;
using formats::TempDir;

Config first_config() {
  Config config;
  config.vocab_size = 101;
  config.hidden_size = 48;
  config.num_blocks = 3;
  config.num_heads = 1;  // what says nothing here is as files leave it: it is in the hash
  config.gate_soft_cap.reset();
  config.output_logit_soft_cap.reset();
  config.bos_token_id.reset();
  config.eos_token_id.clear();
  config.pad_token_id.reset();
  BlockStackConfig& stack = config.block_stack.emplace();
  stack.mlstm.emplace().num_heads = 2;
  stack.slstm.emplace().num_heads = 3;
  stack.slstm_at = {1};
  return config;
}

Config without_vocabulary(Config config) {
  config.vocab_size = 0;
  return config;
}

// A weight in float32, from wherever the model is.
std::vector<float> on_host(const Tensor& w) {
  std::vector<float> values(static_cast<std::size_t>(w.count()));
  copy_memory(values.data(), Device(), w.data, w.device, w.bytes());
  return values;
}

// Rows `ids` of the embedding.
std::vector<float> embed(const Model& model, std::span<const std::int32_t> ids) {
  std::vector<float> vectors;
  const Tensor& table = model.impl().network.embedding;
  const std::vector<float> values = on_host(table);
  for (const std::int32_t id : ids) {
    const auto row = values.begin() + id * table.dim(1);
    vectors.insert(vectors.end(), row, row + table.dim(1));
  }
  return vectors;
}

// The head on what the blocks gave, in double.
std::vector<double> head(const Model& model, std::span<const float> outputs) {
  const Tensor& w = model.impl().network.lm_head[0];
  const std::vector<float> values = on_host(w);
  const auto d = static_cast<std::size_t>(w.dim(1));
  const double cap = model.config().output_logit_soft_cap.value_or(0);
  std::vector<double> logits;
  for (std::size_t t = 0; t < outputs.size() / d; ++t)
    for (std::int64_t v = 0; v < w.dim(0); ++v) {
      double sum = 0;
      for (std::size_t k = 0; k < d; ++k)
        sum += static_cast<double>(values[static_cast<std::size_t>(v) * d + k]) *
               static_cast<double>(outputs[t * d + k]);
      logits.push_back(cap > 0 ? cap * std::tanh(sum / cap) : sum);
    }
  return logits;
}

std::vector<float> run(Model& model, State& state, std::span<const float> vectors) {
  std::vector<float> outputs(vectors.size());
  const VectorInput input{.vectors = vectors, .state = &state};
  model.forward_vectors(std::span(&input, 1), outputs);
  return outputs;
}

std::vector<float> all_logits(Model& model, State& state, std::span<const std::int32_t> ids) {
  std::vector<float> logits(ids.size() * static_cast<std::size_t>(model.config().vocab_size));
  const SequenceInput input{.ids = ids, .state = &state};
  model.forward(std::span(&input, 1), Logits::all, logits);
  return logits;
}

std::vector<float> some_vectors(std::size_t n, std::size_t seed) {
  std::vector<float> vectors(n * 48);
  for (std::size_t i = 0; i < vectors.size(); ++i)
    vectors[i] = static_cast<float>(std::sin(static_cast<double>((i + 1) * (2 * seed + 1)) * 0.37));
  return vectors;
}

struct Case {
  std::string name;
  Config config;
};

class VectorsTest : public ::testing::TestWithParam<Case> {
 protected:
  Model random(DType dtype = DType::f32) const {
    LoadOptions options;
    options.device = test_device();
    options.exact = true;
    options.dtype = dtype;
    options.threads = 2;
    return Model::random(GetParam().config, DType::f32, 7, options);
  }
};

TEST_P(VectorsTest, EmbeddedTokensGiveWhatTheTokensGive) {
  Model model = random();
  // A device reads vectors in longer slices than tokens of which all logits are wanted.
  const std::size_t longest = test_device().is_cpu() ? 600 : 500;
  for (const std::size_t length :
       {std::size_t{1}, std::size_t{7}, std::size_t{16}, std::size_t{17}, longest}) {
    const std::vector<std::int32_t> ids = some_ids(length);
    State a = model.make_state(), b = model.make_state();
    const std::vector<float> expected = all_logits(model, a, ids);
    const std::vector<double> logits = head(model, run(model, b, embed(model, ids)));
    EXPECT_LT(largest_difference(expected, logits), 1e-5) << length;
    EXPECT_EQ(all_numbers(a), all_numbers(b)) << length;
    EXPECT_EQ(b.token_count(), static_cast<std::int64_t>(length));
    EXPECT_TRUE(b.last_logits().empty());
    // A sequence goes on with tokens.
    const std::span<const float> next = model.eval(a, some_ids(3, 9));
    const std::vector<float> want(next.begin(), next.end());
    const std::span<const float> found = model.eval(b, some_ids(3, 9));
    EXPECT_TRUE(std::equal(found.begin(), found.end(), want.begin())) << length;
  }
}

TEST_P(VectorsTest, PiecesGiveWhatTheWholeGives) {
  Model model = random();
  const std::vector<float> vectors = some_vectors(90, 1);
  State whole = model.make_state();
  const std::vector<float> expected = run(model, whole, vectors);
  const std::vector<double> numbers(expected.begin(), expected.end());
  for (const std::size_t cut : {1, 16, 40, 64, 89}) {
    State state = model.make_state();
    std::vector<float> outputs = run(model, state, std::span(vectors).first(cut * 48));
    const std::vector<float> rest = run(model, state, std::span(vectors).subspan(cut * 48));
    outputs.insert(outputs.end(), rest.begin(), rest.end());
    EXPECT_LT(largest_difference(outputs, numbers), 1e-4) << cut;
  }
}

TEST_P(VectorsTest, ABatchGivesTheBitsOfEachAlone) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Model model = random(dtype);
    const std::vector<std::size_t> lengths = {1, 1, 5, 16, 17, 1, 3, 64, 2, 600, 1, 11};
    std::vector<State> states;
    std::vector<std::vector<float>> inputs;
    std::vector<std::vector<double>> memories;
    std::vector<float> expected;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      states.push_back(model.make_state());
      run(model, states[i], some_vectors(i + 1, 77));  // not from the empty state
      inputs.push_back(some_vectors(lengths[i], i));
      State copy = states[i].clone();
      const std::vector<float> alone = run(model, copy, inputs[i]);
      expected.insert(expected.end(), alone.begin(), alone.end());
      memories.push_back(all_numbers(copy));
    }
    std::vector<VectorInput> batch;
    for (std::size_t i = 0; i < lengths.size(); ++i)
      batch.push_back({.vectors = inputs[i], .state = &states[i]});
    std::vector<float> outputs(expected.size() + 1);  // from the second: no alignment is asked for
    model.forward_vectors(batch, std::span(outputs).subspan(1));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), outputs.begin() + 1));
    for (std::size_t i = 0; i < lengths.size(); ++i)
      EXPECT_EQ(all_numbers(states[i]), memories[i]) << i;
  }
}

TEST_P(VectorsTest, BadInputChangesNothing) {
  Model model = random();
  Model other = Model::random(GetParam().config, DType::f32, 8);
  State a = model.make_state(), b = model.make_state(), foreign = other.make_state();
  const std::vector<float> good = some_vectors(2, 1);
  std::vector<float> outputs(4 * 48);
  const auto refuse = [&](std::size_t numbers, State* second, std::string_view message) {
    const std::vector<VectorInput> batch = {
        {.vectors = good, .state = &a},
        {.vectors = std::span(good).first(numbers), .state = second}};
    expect_error(ErrorCode::invalid_argument, {"forward_vectors: ", message},
                 [&] { model.forward_vectors(batch, outputs); });
  };
  refuse(47, &b, "sequence 1: expected vectors of 48 numbers, at least one, found 47 numbers");
  refuse(0, &b, "sequence 1: expected vectors of 48 numbers, at least one, found 0 numbers");
  refuse(48, nullptr, "sequence 1 has no state");
  refuse(48, &a, "twice");
  refuse(48, &foreign, "belongs to model");
  const VectorInput input{.vectors = good, .state = &a};
  expect_error(ErrorCode::invalid_argument, {"room for 96 numbers, found 95"},
               [&] { model.forward_vectors(std::span(&input, 1), std::span(outputs).first(95)); });
  EXPECT_EQ(a.token_count(), 0);
  EXPECT_EQ(all_numbers(a), all_numbers(model.make_state()));
  model.forward_vectors({}, {});  // no sequences, nothing to do
}

TEST_P(VectorsTest, NotANumberStaysInItsSequence) {
  Model model = random();
  std::vector<float> bad = some_vectors(2, 1);
  const std::vector<float> good = some_vectors(2, 2);
  bad[5] = std::numeric_limits<float>::quiet_NaN();
  State a = model.make_state(), b = model.make_state(), alone = model.make_state();
  const std::vector<VectorInput> batch = {{.vectors = bad, .state = &a},
                                          {.vectors = good, .state = &b}};
  std::vector<float> outputs(4 * 48);
  model.forward_vectors(batch, outputs);
  EXPECT_TRUE(std::isnan(outputs[0]));
  const std::vector<float> expected = run(model, alone, good);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), outputs.begin() + 2 * 48));
}

TEST_P(VectorsTest, StepsAllocateNothing) {
  if (!test_device().is_cpu()) GTEST_SKIP() << "CUDA allocates memory of its own";
  Model model = random();
  State state = model.make_state();
  const std::vector<float> vectors = some_vectors(1, 1);
  std::vector<float> outputs(48);
  const VectorInput input{.vectors = vectors, .state = &state};
  model.forward_vectors(std::span(&input, 1), outputs);
  const AllocationCounter counter;
  for (int step = 0; step < 20; ++step) model.forward_vectors(std::span(&input, 1), outputs);
  EXPECT_EQ(counter.count(), 0);
}

TEST_P(VectorsTest, WithoutAVocabularyTheRestIsTheSame) {
  const Config config = without_vocabulary(GetParam().config);
  Model model = Model::random(config, DType::f32, 7);
  std::int64_t numbers = 0;
  for (const ParameterInfo& p : model.parameters()) {
    EXPECT_EQ(p.name.find("embedding"), p.name.npos) << p.name;
    EXPECT_EQ(p.name.find("lm_head"), p.name.npos) << p.name;
    std::int64_t n = 1;
    for (const std::int64_t s : p.shape) n *= s;
    numbers += n;
  }
  EXPECT_EQ(numbers, config.parameter_count());
  EXPECT_EQ(model.streamed_bytes(), model.weight_bytes());
  EXPECT_EQ(model.sampleable_ids(), 0);
  EXPECT_EQ(model.bos_id(), -1);

  const TempDir dir;
  model.save(dir / "copy", DType::f32);
  Model copy = Model::load(dir / "copy");
  EXPECT_EQ(copy.hash(), model.hash());
  EXPECT_EQ(copy.config().vocab_size, 0);
  EXPECT_TRUE(copy.unexpected_tensors().empty());
  State a = model.make_state(), b = copy.make_state();
  const std::vector<float> vectors = some_vectors(20, 1);
  EXPECT_EQ(run(model, a, vectors), run(copy, b, vectors));

  a.save(dir / "state");
  State c = copy.make_state();
  c.load(dir / "state");
  EXPECT_EQ(c.token_count(), 20);
  EXPECT_EQ(run(copy, b, vectors), run(copy, c, vectors));
}

TEST_P(VectorsTest, WithoutAVocabularyTokensAreUnsupported) {
  Model model = Model::random(without_vocabulary(GetParam().config), DType::f32, 7);
  State state = model.make_state();
  const std::vector<std::int32_t> ids = {0, 1};
  const auto refuse = [&](std::string_view what, auto&& call) {
    expect_error(ErrorCode::unsupported, {what, "a block stack alone (vocab_size 0)"}, call);
  };
  refuse("forward: ", [&] {
    const SequenceInput input{.ids = ids, .state = &state};
    model.forward(std::span(&input, 1), Logits::none, {});
  });
  refuse("eval: ", [&] { model.eval(state, ids); });
  refuse("encode_prompt: ", [&] { model.encode_prompt("text"); });
  refuse("generate: ", [&] { generate(model, state, ids, {}); });
  refuse("eval: ", [&] { evaluate(model, ids, {}); });
}

INSTANTIATE_TEST_SUITE_P(Families, VectorsTest,
                         ::testing::Values(Case{"large", small_config()},
                                           Case{"first", first_config()}),
                         [](const auto& param) { return param.param.name; });

TEST(VectorsGoldenTest, TheReferencesLogitsThroughBothForms) {
  const std::filesystem::path golden = source_dir() / "tests/golden/v1_mixed.safetensors";
  const SafetensorsFile file = SafetensorsFile::open(golden);
  const TempDir dir;
  write_nxai_directory(file, dir / "model");
  Model model = Model::load(dir / "model");

  // The state dict of an xLSTMBlockStack with its settings, which name no vocabulary.
  std::vector<formats::NamedTensor> tensors;
  const std::string prefix = "param.xlstm_block_stack.";
  for (const auto& [name, tensor] : file.tensors())
    if (name.starts_with(prefix)) tensors.push_back({name.substr(prefix.size()), tensor});
  const auto write_stack = [&](const std::string& name) {
    std::filesystem::create_directories(dir / name);
    Config config = without_vocabulary(model.config());
    const std::string text = formats::write_hf_config(config, "f32");
    EXPECT_EQ(text.find("vocab_size"), text.npos);
    dir.write(name + "/config.json", text);
  };
  write_stack("stack");
  formats::write_safetensors(dir / "stack/model.safetensors", tensors);
  Model stack = Model::load(dir / "stack");
  EXPECT_TRUE(stack.unexpected_tensors().empty());
  EXPECT_EQ(stack.config().vocab_size, 0);

  // And the stack of a whole language model's state dict.
  write_stack("whole");
  std::filesystem::copy_file(dir / "model/model_0.safetensors", dir / "whole/model.safetensors");
  Model whole = Model::load(dir / "whole");
  EXPECT_FALSE(whole.unexpected_tensors().empty());

  const std::vector<double> logits = numbers(file, "logits");
  const std::size_t n = logits.size() / 3;
  for (std::int64_t row = 0; row < 3; ++row) {
    const std::vector<float> vectors = embed(model, ids_of(file, "input_ids", row));
    State a = model.make_state(), b = stack.make_state(), c = whole.make_state();
    const std::vector<float> outputs = run(model, a, vectors);
    EXPECT_EQ(run(stack, b, vectors), outputs);
    EXPECT_EQ(run(whole, c, vectors), outputs);
    const std::vector<double> found = head(model, outputs);
    const std::vector<float> expected(
        logits.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(row) * n),
        logits.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(row + 1) * n));
    EXPECT_LT(largest_difference(expected, found), 1e-4);
  }
}

}  // namespace
}  // namespace xlstm::testing
