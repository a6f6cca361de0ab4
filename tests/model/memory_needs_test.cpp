// What running takes is computed without weights and without a device, and is what running takes.

#include "model/memory_needs.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "formats/expect_error.hpp"
#include "model/model_impl.hpp"
#include "model/packed_weights.hpp"
#include "model/small_model.hpp"
#include "ops/mlstm_ring.hpp"

namespace xlstm::testing {
namespace {

using model::MemoryMeter;
using model::MemoryNeeds;

LoadOptions options_for(Device device, DType arithmetic = DType::f32) {
  LoadOptions options;
  options.device = device;
  options.dtype = arithmetic;
  options.threads = 2;
  return options;
}

constexpr Device kCuda{DeviceType::cuda, 0};  // whether there is one or not

// Rings lie behind what files and the CPU know of a record, one for each mLSTM cell.
TEST(MemoryNeeds, RecordsOnACardHaveRings) {
  for (const Config& config : {small_config(), small_stack_config(101, 3)}) {
    const model::StateLayout layout(config);
    EXPECT_EQ(layout.bytes_on({}), layout.bytes());
    std::size_t end = layout.bytes();
    for (const model::BlockState& block : layout.blocks_on(kCuda)) {
      if (block.heads == 0) continue;
      EXPECT_EQ(block.mlstm.pending, end);
      EXPECT_EQ(block.mlstm.pending % 256, 0U);
      end += ops::MlstmRing(block.heads, block.dqk, block.dv).bytes();
    }
    EXPECT_EQ(layout.bytes_on(kCuda), end);
    for (const model::StateLayout::Part& part : layout.parts())
      EXPECT_LE(part.offset + part.bytes(), layout.bytes());
    MemoryMeter meter(config, model::uniform_parameters(config, DType::bf16), options_for(kCuda));
    EXPECT_EQ(meter.needs(2).states(), 2 * end);
  }
}

// Cells of the first xLSTM are float32 up to 16 tokens, and bf16 with more.
TEST(MemoryNeeds, NoPromptTakesLessThanAShorterOne) {
  for (const Config& config : {small_config(), small_stack_config(101, 3)}) {
    MemoryMeter meter(config, model::uniform_parameters(config, DType::bf16),
                      options_for(kCuda, DType::bf16));
    for (std::int64_t tokens = 2; tokens < 40; ++tokens)
      EXPECT_GE(meter.needs(1, tokens).prompt_scratch, meter.needs(1, tokens - 1).prompt_scratch)
          << tokens;
  }
}

TEST(MemoryNeeds, ScratchIsWhatPassesTake) {
  for (const Config& config :
       {small_config(), small_stack_config(101, 3), small_stack_config(0, 2)}) {
    for (const DType arithmetic : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(::testing::Message() << config.vocab_size << " " << to_string(arithmetic));
      const LoadOptions options = options_for(test_device(), arithmetic);
      Model model = Model::random(config, DType::bf16, 7, options);
      MemoryMeter meter(config, model.parameters(), options);
      const MemoryNeeds needs = meter.needs(5);
      EXPECT_EQ(needs.state, model.impl().network.state.bytes_on(test_device()));
      EXPECT_GE(needs.weights, model.weight_bytes());
      EXPECT_LE(needs.weights, model.weight_bytes() + 256 * model.parameters().size());

      std::vector<State> states;
      for (int i = 0; i < 5; ++i) states.push_back(model.make_state());
      const Arena& arena = model.impl().context.arena();
      const auto run = [&](std::size_t sequences, std::size_t tokens) {
        const std::vector<std::int32_t> ids = some_ids(tokens);
        const std::vector<float> vectors(tokens * 48, 0.5F);
        std::vector<SequenceInput> inputs;
        std::vector<VectorInput> vector_inputs;
        for (std::size_t i = 0; i < sequences; ++i) {
          inputs.push_back({ids, &states[i]});
          vector_inputs.push_back({vectors, &states[i]});
        }
        std::vector<float> out(sequences * std::max<std::size_t>(tokens * 48, 101));
        if (config.vocab_size > 0)
          model.forward(inputs, Logits::last, out);
        else
          model.forward_vectors(vector_inputs, out);
      };
      run(5, 1);
      EXPECT_EQ(arena.capacity(), needs.decode_scratch);
      // A slice of a device is long, and the emulated one is slow.
      if (!test_device().is_cpu() && (config.vocab_size > 0 || arithmetic == DType::f32)) continue;
      run(1, static_cast<std::size_t>(model.impl().limits.slice));
      EXPECT_EQ(arena.capacity(), needs.scratch());
    }
  }
}

TEST(MemoryNeeds, CudaNeedsNoDeviceToBeMeasured) {
  const Config config = small_config();
  LoadOptions exact = options_for(kCuda);
  exact.exact = true;
  MemoryMeter meter(config, model::uniform_parameters(config, DType::f32), exact);
  const MemoryNeeds one = meter.needs(1), sixteen = meter.needs(16), many = meter.needs(100);
  EXPECT_GT(one.step_inputs, 0U);
  EXPECT_EQ(one.results, 3 * 101 * sizeof(float)) << "of any pass, and of steps in turn";
  EXPECT_EQ(sixteen.results, 16 * one.results);
  EXPECT_LT(one.decode_scratch, sixteen.decode_scratch);
  EXPECT_LT(sixteen.decode_scratch, one.prompt_scratch);
  EXPECT_EQ(one.scratch(), one.prompt_scratch);
  EXPECT_EQ(many.decode_scratch, sixteen.decode_scratch);
  EXPECT_EQ(many.results, sixteen.results);
  EXPECT_EQ(many.states(), 100 * one.state);
  // Without exactness all of them share a pass.
  MemoryMeter fast(config, model::uniform_parameters(config, DType::f32), options_for(kCuda));
  EXPECT_EQ(fast.needs(16).total(), sixteen.total());
  EXPECT_EQ(fast.needs(100).results, 100 * one.results);
  EXPECT_GT(fast.needs(100).decode_scratch, sixteen.decode_scratch);
  for (const std::int64_t n : {1, 16, 100, 300})
    EXPECT_EQ(fast.sequences_within(fast.needs(n).total()), n);
  EXPECT_EQ(one.total(),
            one.weights + one.state + one.prompt_scratch + one.step_inputs + one.results);

  MemoryMeter half(config, model::uniform_parameters(config, DType::bf16),
                   options_for(kCuda, DType::bf16));
  EXPECT_LT(half.needs(1).weights, one.weights);
  EXPECT_GE(half.needs(1).weights, one.weights / 2);
  EXPECT_THROW(meter.needs(0), Error);
}

TEST(MemoryNeeds, ATiedHeadCountsOnce) {
  Config config = small_config();
  const auto weights = [&] {
    return MemoryMeter(config, model::uniform_parameters(config, DType::f32), options_for(kCuda))
        .needs(1)
        .weights;
  };
  const std::uint64_t apart = weights();
  config.tie_word_embeddings = true;
  EXPECT_EQ(apart - weights(), (101 * 48 * sizeof(float) + 255) / 256 * 256);
}

TEST(MemoryNeeds, AsManySequencesFitAsThereIsMemoryFor) {
  for (const Device device : {Device{}, kCuda}) {
    const Config config = small_config();
    MemoryMeter meter(config, model::uniform_parameters(config, DType::f32), options_for(device));
    for (const std::int64_t n : {1, 2, 15, 16, 17, 100}) {
      EXPECT_EQ(meter.sequences_within(meter.needs(n).total()), n);
      EXPECT_EQ(meter.sequences_within(meter.needs(n).total() - 1), n - 1);
    }
    EXPECT_EQ(meter.sequences_within(0), 0);
  }
}

// A prompt of a slice or more takes what any prompt takes, and a shorter one less.
TEST(MemoryNeeds, ShortPromptsTakeLess) {
  const Config config = small_config();
  MemoryMeter meter(config, model::uniform_parameters(config, DType::bf16), options_for(kCuda));
  const std::int64_t slice = meter.limits().slice;
  const std::uint64_t any = meter.needs(3).prompt_scratch;
  EXPECT_EQ(meter.needs(3, slice).prompt_scratch, any);
  EXPECT_EQ(meter.needs(3, 10 * slice).prompt_scratch, any);
  const MemoryNeeds few = meter.needs(3, 100);
  EXPECT_LT(few.prompt_scratch, any / 10);
  EXPECT_GT(meter.sequences_within(meter.needs(3).total(), 100), 3);
  EXPECT_EQ(meter.sequences_within(few.total(), 100), 3);
}

TEST(MemoryNeeds, WhatDoesNotFitIsRefused) {
  Config config = small_config();
  config.hidden_size = 4080;
  MemoryMeter meter(config, model::uniform_parameters(config, DType::f32), options_for(kCuda));
  const MemoryNeeds three = meter.needs(3);
  meter.expect_fit(3, three.total());
  const auto refuse = [&](std::int64_t n, std::uint64_t free,
                          std::initializer_list<std::string_view> parts) {
    expect_error(ErrorCode::out_of_memory, parts, [&] { meter.expect_fit(n, free); });
  };
  const std::string needed = fmt::format("{:.2f} GB needed", three.total() / 1e9);
  refuse(3, three.total() - 1, {"cuda:0", needed, "3 sequences", "2 sequences fit beside"});
  refuse(3, meter.needs(1).total(), {"1 sequence fits beside the weights"});
  refuse(1, three.weights, {"1 sequence,", "0 sequences fit beside"});
  refuse(1, 1000, {"0.00 GB free", "0 sequences fit, because the weights do not"});
}

TEST(MemoryNeeds, MeasuringMakesNoStream) {
  Context context({DeviceType::cuda, 63}, 1);
  context.start_measuring();
  context.arena().take(1000);
  EXPECT_EQ(context.stop_measuring(), 1024U);
  EXPECT_THROW(context.stream(), Error);
}

TEST(MemoryNeeds, WeightsInFp8TakeHalfAsMuchMoreInAllBlocksButTheFirst) {
  LoadOptions options = options_for(kCuda, DType::bf16);
  const Config config = small_config();
  const auto weights = model::uniform_parameters(config, DType::bf16);
  const std::uint64_t same = MemoryMeter(config, weights, options).needs(1).weights;
  options.prefill = Prefill::fp8;
  const std::uint64_t fp8 = MemoryMeter(config, weights, options).needs(1).weights;
  std::uint64_t codes = 0, matrices = 0;
  for (const ParameterInfo& p : weights) {
    if (p.shape.size() != 2 || p.shape[0] <= 3 || p.shape[0] == config.vocab_size ||
        p.name.find("blocks.0.") != std::string::npos)
      continue;
    codes += static_cast<std::uint64_t>(p.shape[0] * p.shape[1] + 4 * p.shape[0]);
    ++matrices;
  }
  EXPECT_EQ(matrices, 8);
  EXPECT_GE(fp8, same + codes);
  EXPECT_LE(fp8, same + codes + matrices * 2 * 256);
  expect_error(ErrorCode::out_of_memory, {"weights", "free"},
               [&] { MemoryMeter(config, weights, options).expect_fit(1, same); });
}

/// Whether packed weights take the place of the others there; a card that is not here counts as one
/// of those that read them.
bool are_replaced() {
  try {
    return ops::reads_packed(kCuda);
  } catch (const Error&) {
    return true;
  }
}

TEST(MemoryNeeds, PackedWeightsTakeThreeQuarters) {
  LoadOptions options = options_for(kCuda, DType::bf16);
  Config config = small_config();
  config.hidden_size = 256;
  config.num_heads = 2;
  const auto needs = [&](Packing packing, DType dtype = DType::bf16) {
    options.packing = packing;
    return MemoryMeter(config, model::uniform_parameters(config, dtype), options).needs(1);
  };
  const std::uint64_t off = needs(Packing::off).weights, on = needs(Packing::on).weights;
  EXPECT_EQ(needs(Packing::automatic).weights, off) << "until the device was looked at";
  const std::uint64_t beside = are_replaced() ? 0 : off;
  EXPECT_GT(on, beside + off * 6 / 10);
  EXPECT_LT(on, beside + off * 9 / 10);
  const std::uint64_t both = needs(Packing::both).weights;
  EXPECT_GT(both, off + off * 6 / 10);
  EXPECT_LT(both, off + off * 9 / 10);
  EXPECT_EQ(needs(Packing::both).loading, 0U);
  EXPECT_EQ(needs(Packing::off).loading, 0U);
  EXPECT_EQ(needs(Packing::on).loading > 0, are_replaced());
  EXPECT_EQ(needs(Packing::on).decode_scratch, needs(Packing::off).decode_scratch);
  for (const Packing packing : {Packing::on, Packing::off}) {  // matrices are rounded first
    const std::uint64_t narrow = needs(packing).weights, wide = needs(packing, DType::f32).weights;
    EXPECT_GT(wide, narrow) << "gates and norms are not";
    EXPECT_LT(wide, narrow + narrow / 20);
  }
  options = options_for(kCuda, DType::f32);
  options.packing = Packing::on;
  expect_error(ErrorCode::invalid_argument, {"packed weights", "bf16", "f32"},
               [&] { MemoryMeter(config, {}, options); });
}

TEST(MemoryNeeds, StepsReadPackedWeightsOfHeadsThatTheirKernelsServe) {
  Config config = small_config();
  config.hidden_size = 256;
  config.num_heads = 2;
  EXPECT_TRUE(model::steps_read_packed(config));
  config.use_bias = true;
  EXPECT_FALSE(model::steps_read_packed(config));
  config.use_bias = false;
  config.num_heads = 8;
  EXPECT_FALSE(model::steps_read_packed(config)) << "heads of 32";
}

TEST(MemoryNeeds, PackingIsChosenWhereSomethingReadsIt) {
  const Config config = small_config();
  const auto weights = model::uniform_parameters(config, DType::bf16);
  LoadOptions options = options_for(kCuda, DType::bf16);
  for (const Packing packing : {Packing::on, Packing::off}) {
    options.packing = packing;
    EXPECT_EQ(model::choose_packing(config, weights, options), packing);
  }
  options = options_for(Device{}, DType::bf16);
  EXPECT_EQ(model::choose_packing(config, weights, options), Packing::off) << "on the CPU";
}

}  // namespace
}  // namespace xlstm::testing
