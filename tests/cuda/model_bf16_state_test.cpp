// Models whose states have C in bf16 beside the same models with float32.

#include <gtest/gtest.h>

#include <cmath>

#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"
#include "model/small_model.hpp"
#include "model/state_impl.hpp"
#include "model/state_numbers.hpp"
#include "ops/mlstm_ring.hpp"

namespace xlstm::testing {
namespace {

LoadOptions options_for(DType state, bool exact = false) {
  LoadOptions options;
  options.device = test_device();
  options.state_dtype = state;
  options.exact = exact;
  options.threads = 2;
  return options;
}
Model model_of(const Config& config, DType state, bool exact = false) {
  return Model::random(config, DType::f32, 7, options_for(state, exact));
}

/// One token for each of these states; logits of all.
std::vector<float> step(Model& model, std::vector<State*> states, std::uint32_t seed) {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<SequenceInput> batch;
  for (std::size_t i = 0; i < states.size(); ++i)
    ids.push_back(some_ids(1, seed + static_cast<std::uint32_t>(i)));
  for (std::size_t i = 0; i < states.size(); ++i) batch.push_back({ids[i], states[i]});
  std::vector<float> logits(states.size() * 101);
  model.forward(batch, Logits::last, logits);
  return logits;
}

/// Of the first mLSTM cell's first head: how many tokens C holds.
std::uint32_t position(const State& s) {
  const State::Impl& state = s.impl();
  for (const model::BlockState& block : state.layout.blocks_on(test_device())) {
    if (block.heads == 0) continue;
    const ops::MlstmRing ring(block.heads, block.dqk, block.dv);
    std::uint32_t count = 0;
    copy_memory(
        &count, {},
        state.record.data() + block.mlstm.pending + static_cast<std::size_t>(ring.positions) * 4,
        state.record.device(), sizeof(count));
    return count;
  }
  return 0;
}

TEST(CudaBf16State, IsNearThatInFloat32) {
  for (const Config& config : {small_config(), small_stack_config(101, 3)})
    for (const DType arithmetic : {DType::f32, DType::bf16})
      for (const std::size_t count : {3U, 18U}) {
        LoadOptions options = options_for(DType::f32);
        options.dtype = arithmetic;
        Model whole = Model::random(config, DType::bf16, 7, options);
        options.state_dtype = DType::bf16;
        Model half = Model::random(config, DType::bf16, 7, options);
        std::vector<State> a, b;
        std::vector<State*> in_whole, in_half;
        for (std::size_t i = 0; i < count; ++i) {
          a.push_back(whole.make_state());
          b.push_back(half.make_state());
        }
        for (std::size_t i = 0; i < count; ++i) {
          in_whole.push_back(&a[i]);
          in_half.push_back(&b[i]);
        }
        // A prompt, steps, and a prompt between them.
        for (int t = 0; t < 8; ++t) {
          if (t % 4 == 0) {
            const auto prompt = some_ids(30, static_cast<std::uint32_t>(t));
            EXPECT_LE(distance(half.eval(b[0], prompt), whole.eval(a[0], prompt)), 2e-2);
          }
          const auto seed = static_cast<std::uint32_t>(100 + 50 * t);
          EXPECT_LE(distance(step(half, in_half, seed), step(whole, in_whole, seed)), 2e-2);
        }
        EXPECT_EQ(b[0].token_count(), 68);
        EXPECT_GT(distance(all_numbers(b[0]), all_numbers(a[0])), 0);
        EXPECT_LE(distance(all_numbers(b[0]), all_numbers(a[0])), 2e-2);
      }
}

// Prompts in fp8 and packed weights on such states: what comes of them is what the same model makes
// of states in float32, but for their rounding.
TEST(CudaBf16State, StandsBesidePromptsInFp8AndPackedWeights) {
  for (const Prefill prefill : {Prefill::fp8, Prefill::fp8_blocks}) {
    const auto model = [&](DType state) {
      LoadOptions options = options_for(state);
      options.dtype = DType::bf16;
      options.prefill = prefill;
      options.packing = Packing::on;
      return Model::random(small_config(), DType::bf16, 7, options);
    };
    Model rounded = model(DType::bf16), plain = model(DType::f32);
    State a = rounded.make_state(), b = plain.make_state();
    const std::vector<std::int32_t> prompt = some_ids(230, 3);
    EXPECT_LE(distance(rounded.eval(a, prompt), plain.eval(b, prompt)), 1e-3)
        << "one pass: C is rounded after it";
    for (std::uint32_t i = 0; i < 24; ++i)
      EXPECT_LE(distance(step(rounded, {&a}, 10 + i), step(plain, {&b}, 10 + i)), 2e-2) << i;
    EXPECT_LE(distance(all_numbers(a), all_numbers(b)), 2e-2);
  }
}

TEST(CudaBf16State, TheSameBitsAloneAndAmongOthers) {
  for (const auto& [config, arithmetic] :
       {std::pair(small_config(), DType::f32), std::pair(small_config(), DType::bf16),
        std::pair(small_stack_config(101, 3), DType::f32)}) {
    LoadOptions options = options_for(DType::bf16, true);
    options.dtype = arithmetic;
    Model model = Model::random(config, DType::bf16, 7, options);
    std::vector<State> states;
    for (int i = 0; i < 20; ++i) states.push_back(model.make_state());
    State alone = model.make_state();
    const auto prompt = some_ids(20, 5);
    EXPECT_EQ(numbers(Tensor::dense(const_cast<float*>(model.eval(states[3], prompt).data()),
                                    DType::f32, {101})),
              numbers(Tensor::dense(const_cast<float*>(model.eval(alone, prompt).data()),
                                    DType::f32, {101})));
    for (int t = 0; t < 9; ++t) {
      std::vector<State*> batch;  // the one that counts is last, among ever others
      for (int i = 0; i < 20; ++i)
        if (i != 3 && (i + t) % 4 != 0) batch.push_back(&states[static_cast<std::size_t>(i)]);
      batch.push_back(&states[3]);
      const auto seed = static_cast<std::uint32_t>(40 * t);
      const std::vector<float> all = step(model, batch, seed);
      const std::vector<float> one =
          step(model, {&alone}, seed + static_cast<std::uint32_t>(batch.size() - 1));
      EXPECT_EQ(std::vector<float>(all.end() - 101, all.end()), one) << t;
    }
    EXPECT_EQ(all_numbers(states[3]), all_numbers(alone));
  }
}

// A state that is looked at, saved or moved is bf16 already, so it comes back as it was.
TEST(CudaBf16State, FilesAndTheCpuHaveItInFloat32) {
  const formats::TempDir dir;
  for (const Config& config : {small_config(), small_stack_config(101, 3)}) {
    Model half = model_of(config, DType::bf16), whole = model_of(config, DType::f32);
    LoadOptions on_cpu;
    on_cpu.threads = 2;
    Model cpu = Model::random(config, DType::f32, 7, on_cpu);
    State s = half.make_state();
    half.eval(s, some_ids(21, 1));
    for (std::uint32_t t = 0; t < 6; ++t) step(half, {&s}, t);
    EXPECT_EQ(s.impl().record.size(), half.impl().network.state.bytes_on(test_device()));
    EXPECT_EQ(s.bytes(), whole.state_bytes());

    State fork = s.clone();
    EXPECT_TRUE(fork.impl().pending);
    EXPECT_EQ(step(half, {&fork}, 70), [&] {
      State again = s.clone();
      return step(half, {&again}, 70);
    }()) << "a fork keeps its bits";

    s.save(dir / "state");
    EXPECT_EQ(s.impl().record.size(), s.bytes());
    for (const double x : numbers(s.c(1))) {
      if (s.impl().layout.blocks()[1].heads == 0) break;
      EXPECT_EQ(std::bit_cast<std::uint32_t>(static_cast<float>(x)) & 0xffffU, 0U);
    }
    State loaded = half.make_state();
    loaded.load(dir / "state");
    EXPECT_EQ(all_numbers(loaded), all_numbers(s));
    for (std::uint32_t t = 0; t < 6; ++t) EXPECT_EQ(step(half, {&loaded}, t), step(half, {&s}, t));
    EXPECT_EQ(s.token_count(), 33);
    EXPECT_GE(position(s), 27U);
    EXPECT_LE(position(s), 33U);
    EXPECT_EQ(all_numbers(loaded), all_numbers(s));

    // On with another model of the same weights: on the CPU, and on the card in float32.
    State t = s.clone();
    const std::vector<float> here = step(half, {&s}, 9), there = step(cpu, {&t}, 9);
    EXPECT_LE(distance(here, there), 1e-4);
    EXPECT_LE(distance(step(whole, {&t}, 10), step(half, {&s}, 10)), 1e-2);
    EXPECT_EQ(t.impl().record.size(), whole.impl().network.state.bytes_on(test_device()));
    EXPECT_LE(distance(step(half, {&t}, 11), step(half, {&s}, 11)), 1e-2);
    EXPECT_EQ(t.impl().record.size(), half.impl().network.state.bytes_on(test_device()));
    t.reset();
    EXPECT_EQ(position(t), 0U);
  }
}

TEST(CudaBf16State, AStateOfFloat32IsRoundedAtRandomOnItsWayIn) {
  Model half = model_of(small_config(), DType::bf16);
  LoadOptions on_cpu;
  Model cpu = Model::random(small_config(), DType::f32, 7, on_cpu);
  State s = cpu.make_state();
  cpu.eval(s, some_ids(50, 3));
  State again = s.clone();
  const std::vector<double> before = numbers(s.c(0));
  s.impl().on(test_device(), half.impl().network.state);
  again.impl().on(test_device(), half.impl().network.state);
  EXPECT_EQ(position(s), 50U);
  const std::vector<double> after = numbers(s.c(0));
  EXPECT_EQ(after, numbers(again.c(0)));
  double up = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_LE(std::abs(after[i] - before[i]), std::abs(before[i]) * 0x1p-7);
    up += std::abs(after[i]) > std::abs(before[i]);
  }
  EXPECT_NEAR(up / double(before.size()), 0.5, 3 / std::sqrt(double(before.size())));
}

TEST(CudaBf16State, TakesHalfOfC) {
  for (const Config& config : {small_config(), small_stack_config(101, 3)}) {
    const model::StateLayout whole(config), half(config, DType::bf16);
    EXPECT_EQ(whole, half) << "records on the CPU are the same";
    EXPECT_EQ(half.bytes(), whole.bytes());
    EXPECT_EQ(half.count(), whole.count());
    std::size_t saved = 0;
    for (const model::BlockState& block : half.blocks_on(test_device())) {
      EXPECT_EQ(block.mlstm.c % 256, 0U);
      saved += static_cast<std::size_t>(block.heads * block.dqk * block.dv) * 2;
    }
    EXPECT_GT(saved, 0U);
    EXPECT_NEAR(double(whole.bytes_on(test_device()) - half.bytes_on(test_device())), double(saved),
                256 * 4);
    const auto weights = model::uniform_parameters(config, DType::bf16);
    model::MemoryMeter meter(config, weights, options_for(DType::bf16));
    EXPECT_EQ(meter.needs(3).states(), 3 * half.bytes_on(test_device()));

    // Prompts that share a pass have a copy each.
    Model model = Model::random(config, DType::bf16, 7, options_for(DType::bf16));
    std::vector<State> states;
    std::vector<SequenceInput> batch;
    const auto ids = some_ids(40);
    for (int i = 0; i < 40; ++i) states.push_back(model.make_state());
    for (State& s : states) batch.push_back({ids, &s});
    std::vector<float> logits(40 * 101);
    model.forward(batch, Logits::last, logits);
    EXPECT_LE(model.impl().context.arena().capacity(), meter.needs(40).scratch());
  }
}

TEST(CudaBf16State, NotOnTheCpu) {
  LoadOptions options;
  options.state_dtype = DType::bf16;
  expect_error(ErrorCode::unsupported, {"states in bf16", "expected a CUDA device, found the CPU"},
               [&] { Model::random(small_config(), DType::f32, 1, options); });
  options.device = test_device();
  options.state_dtype = DType::f16;
  expect_error(ErrorCode::invalid_argument, {"state_dtype: expected f32 or bf16, found f16"},
               [&] { Model::random(small_config(), DType::f32, 1, options); });
}

}  // namespace
}  // namespace xlstm::testing
