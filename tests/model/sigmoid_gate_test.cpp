// xLSTM-large with sigmoid input gates: recognised from the configuration, as exact as the other.

#include <gtest/gtest.h>

#include "formats/config_files.hpp"
#include "formats/temp_dir.hpp"
#include "model/golden.hpp"
#include "oracle/xlstm_large.hpp"
#include "xlstm/model.hpp"

namespace xlstm::testing {
namespace {

Config sigmoid_config(bool normalise) {
  Config config;
  config.vocab_size = 40;
  config.hidden_size = 32;
  config.num_blocks = 2;
  config.num_heads = 2;
  config.chunkwise_kernel = "chunkwise--triton_xl_chunk_siging";
  config.normalize_siging = normalise;
  return config;
}

TEST(SigmoidGateTest, ModelsMatchTheOracle) {
  for (const bool normalise : {false, true}) {
    SCOPED_TRACE(normalise);
    const Config config = sigmoid_config(normalise);
    const formats::TempDir dir;
    Model::random(config, DType::f32, 3).save(dir / "model", DType::f32);
    oracle::Weights weights;
    const auto file = formats::SafetensorsFile::open(dir / "model" / "model.safetensors");
    for (const auto& [name, tensor] : file.tensors()) weights[name] = numbers(file, name);

    Model model = Model::load(dir / "model");
    EXPECT_TRUE(model.config().has_sigmoid_input_gate());
    EXPECT_EQ(model.config().normalize_siging, normalise);
    std::vector<std::int32_t> ids;
    for (std::int32_t t = 0; t < 50; ++t) ids.push_back(t * 7 % 40);
    std::vector<oracle::MlstmState> states = oracle::make_states(config);
    const oracle::Vector expected = oracle::forward(config, weights, ids, states);
    for (const std::size_t cut : {std::size_t{50}, std::size_t{33}, std::size_t{1}}) {
      State state = model.make_state();
      std::vector<float> logits(50 * 40);
      for (std::size_t begin = 0; begin < 50;) {
        const std::size_t n = std::min(cut, 50 - begin);
        const SequenceInput input{.ids = std::span(ids).subspan(begin, n), .state = &state};
        model.forward({&input, 1}, Logits::all, std::span(logits).subspan(begin * 40));
        begin += n;
      }
      EXPECT_LT(largest_difference(logits, expected), 1e-4) << cut;
      EXPECT_LT(relative_difference({state.c(1).as<float>(), states[1].c.size()}, states[1].c),
                1e-4);
    }
  }
}

TEST(SigmoidGateTest, ItIsAnotherModelThanWithTheExponentialGate) {
  Config config = sigmoid_config(true);
  const Model sigmoid = Model::random(config, DType::f32, 3);
  config.normalize_siging = false;
  const Model plain = Model::random(config, DType::f32, 3);
  config.chunkwise_kernel = "chunkwise--native_autograd";
  const Model exponential = Model::random(config, DType::f32, 3);
  EXPECT_NE(sigmoid.hash(), exponential.hash());
  EXPECT_NE(sigmoid.hash(), plain.hash());
}

TEST(SigmoidGateTest, OnlySuchConfigurationsAreWrittenWithTheSetting) {
  const Config config = sigmoid_config(false);
  const Config back = formats::parse_hf_config(formats::write_hf_config(config, "f32"), "written");
  EXPECT_TRUE(back.has_sigmoid_input_gate());
  EXPECT_FALSE(back.normalize_siging);
  EXPECT_EQ(formats::write_hf_config(Config(), "f32").find("siging"), std::string::npos);
}

}  // namespace
}  // namespace xlstm::testing
