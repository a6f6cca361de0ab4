// Models on CUDA beside the same models on the CPU, and states that move between the two.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "core/convert.hpp"
#include "core/cuda_device.hpp"
#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"
#include "model/small_model.hpp"
#include "model/state_impl.hpp"
#include "model/state_numbers.hpp"
#include "ops/mlstm_ring.hpp"
#include "source_dir.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

struct Pair {
  Model cpu, cuda;
};
Pair models(const Config& config, DType weights = DType::f32, DType arithmetic = DType::f32) {
  LoadOptions options;
  options.dtype = arithmetic;
  options.threads = 2;
  Model cpu = Model::random(config, weights, 7, options);
  options.device = test_device();
  return {std::move(cpu), Model::random(config, weights, 7, options)};
}

void expect_near(const auto& a, const auto& b, double bound) { EXPECT_LE(distance(a, b), bound); }

std::string bytes_of(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

TEST(CudaModel, BothFamiliesGiveWhatTheCpuGives) {
  for (const Config& config : {small_config(), small_stack_config(101, 3)})
    for (const DType weights : {DType::f32, DType::bf16, DType::f16})
      for (const DType arithmetic : {DType::f32, DType::bf16}) {
        SCOPED_TRACE(::testing::Message() << to_string(weights) << " " << to_string(arithmetic));
        Pair m = models(config, weights, arithmetic);
        State a = m.cpu.make_state(), b = m.cuda.make_state();
        const double bound = arithmetic == DType::f32 ? 2e-5 : 3e-2;
        expect_near(m.cuda.eval(b, some_ids(70)), m.cpu.eval(a, some_ids(70)), bound);
        // Single tokens run as graphs from the third on.
        for (const std::int32_t id : some_ids(5, 3))
          expect_near(m.cuda.eval(b, std::span(&id, 1)), m.cpu.eval(a, std::span(&id, 1)), bound);
        expect_near(all_numbers(b), all_numbers(a), bound);
      }
}

// With bf16 arithmetic a card rounds matrices of other types, all but those of the gates.
TEST(CudaModel, MatricesOfOtherTypesAreRoundedForBf16) {
  Config tied = small_config();
  tied.tie_word_embeddings = true;
  LoadOptions options;
  options.device = test_device();
  options.dtype = DType::bf16;
  options.packing = Packing::off;
  for (const Config& config : {small_config(), tied})
    for (const DType stored : {DType::f32, DType::f16}) {
      const Model source = Model::random(config, stored, 7);
      const Model model = Model::random(config, stored, 7, options);
      ASSERT_EQ(source.parameters().size(), model.parameters().size());
      for (std::size_t i = 0; i < source.parameters().size(); ++i) {
        const model::Parameter& p = model.impl().parameters[i];
        const Tensor &want = *source.impl().parameters[i].view, &got = *p.view;
        const bool is_matrix = p.shape.size() == 2 && p.init != model::Init::gate;
        ASSERT_EQ(got.dtype, is_matrix ? DType::bf16 : stored) << p.name;
        std::vector<std::byte> expected(got.bytes()), found(got.bytes());
        convert(want, model::dense_view(expected.data(), got.dtype, p.shape), 1);
        copy_memory(found.data(), {}, got.data, test_device(), got.bytes());
        EXPECT_EQ(found, expected) << p.name;
      }
    }
}

// So a float32 file of bf16 numbers gives the bits that a bf16 file of them gives.
TEST(CudaModel, AFloat32FileOfBf16NumbersGivesTheirBits) {
  const Model source = Model::random(small_config(), DType::bf16, 7);
  const formats::TempDir wide, narrow;
  source.save(wide.path(), DType::f32);
  source.save(narrow.path(), DType::bf16);
  LoadOptions options;
  options.device = test_device();
  options.dtype = DType::bf16;
  Model a = Model::load(wide.path(), options), b = Model::load(narrow.path(), options);
  State s = a.make_state(), t = b.make_state();
  for (const std::size_t tokens : {40, 1})
    EXPECT_TRUE(std::ranges::equal(a.eval(s, some_ids(tokens)), b.eval(t, some_ids(tokens))));
}

Model fp8_model(const Config& config, Prefill prefill, DType weights = DType::bf16) {
  LoadOptions options;
  options.device = test_device();
  options.dtype = DType::bf16;
  options.prefill = prefill;
  return Model::random(config, weights, 7, options);
}

TEST(CudaModel, PromptsInFp8AreNearThoseInBf16) {
  Config biased = small_config();
  biased.use_bias = true;
  for (const Config& config : {small_config(), biased}) {
    for (const auto& [weights, prefill] :
         {std::pair(DType::bf16, Prefill::fp8), std::pair(DType::bf16, Prefill::fp8_blocks),
          std::pair(DType::f32, Prefill::fp8)}) {
      Model same = fp8_model(config, Prefill::same, weights),
            fp8 = fp8_model(config, prefill, weights);
      State a = same.make_state(), b = fp8.make_state();
      const std::vector<std::int32_t> ids = some_ids(300);
      expect_near(fp8.eval(b, ids), same.eval(a, ids), 0.12);
      expect_near(all_numbers(b), all_numbers(a), 0.12);
      EXPECT_NE(all_numbers(b), all_numbers(a));
      std::vector<float> logits(ids.size() * 101), of_fp8(logits.size());
      a.reset();
      b.reset();
      const SequenceInput one{.ids = ids, .state = &a}, other{.ids = ids, .state = &b};
      same.forward({&one, 1}, Logits::all, logits);
      fp8.forward({&other, 1}, Logits::all, of_fp8);
      expect_near(of_fp8, logits, 0.12);
    }
  }
}

// Products in e4m3 behind products in e4m3, and lengths whose norms are those of few rows.
TEST(CudaModel, PromptsInFp8ThroughSeveralBlocks) {
  Config config = small_config();
  config.num_blocks = 4;
  for (const Prefill prefill : {Prefill::fp8, Prefill::fp8_blocks}) {
    Model same = fp8_model(config, Prefill::same), fp8 = fp8_model(config, prefill);
    for (const std::int64_t length : {192, 230, 300}) {
      State a = same.make_state(), b = fp8.make_state(), again = fp8.make_state();
      const std::vector<std::int32_t> ids = some_ids(static_cast<std::size_t>(length));
      expect_near(fp8.eval(b, ids), same.eval(a, ids), 0.2);
      static_cast<void>(fp8.eval(again, ids));
      EXPECT_EQ(all_numbers(again), all_numbers(b));
    }
  }
}

TEST(CudaModel, Fp8IsForPromptsAlone) {
  Model same = fp8_model(small_config(), Prefill::same),
        fp8 = fp8_model(small_config(), Prefill::fp8);
  // A short prompt, and steps of one sequence and of many.
  State a = same.make_state(), b = fp8.make_state();
  const auto expect_same = [](std::span<const float> x, std::span<const float> y) {
    EXPECT_TRUE(std::ranges::equal(x, y));
  };
  expect_same(fp8.eval(b, some_ids(100)), same.eval(a, some_ids(100)));
  for (const std::int32_t id : some_ids(3, 5))
    expect_same(fp8.eval(b, std::span(&id, 1)), same.eval(a, std::span(&id, 1)));
  constexpr std::size_t kSequences = 200;
  std::vector<State> ones, others;
  std::vector<SequenceInput> of_ones, of_others;
  const std::vector<std::int32_t> ids = some_ids(kSequences);
  for (std::size_t i = 0; i < kSequences; ++i) {
    ones.push_back(same.make_state());
    others.push_back(fp8.make_state());
  }
  for (std::size_t i = 0; i < kSequences; ++i) {
    of_ones.push_back({std::span(&ids[i], 1), &ones[i]});
    of_others.push_back({std::span(&ids[i], 1), &others[i]});
  }
  std::vector<float> x(kSequences * 101), y(x.size());
  same.forward(of_ones, Logits::last, x);
  fp8.forward(of_others, Logits::last, y);
  expect_same(y, x);
}

TEST(CudaModel, PackedWeightsAreRefusedWhereThereCanBeNone) {
  LoadOptions options;
  options.packing = Packing::on;
  options.dtype = DType::bf16;
  expect_error(ErrorCode::unsupported, {"packed weights", "CUDA device", "CPU"},
               [&] { Model::random(small_config(), DType::bf16, 7, options); });
  options.device = test_device();
  expect_error(ErrorCode::unsupported, {"packed weights", "first xLSTM"},
               [&] { Model::random(small_stack_config(101, 3), DType::bf16, 7, options); });
  options.dtype = DType::f32;
  expect_error(ErrorCode::invalid_argument, {"packed weights", "bf16", "f32"},
               [&] { Model::random(small_config(), DType::bf16, 7, options); });
}

TEST(CudaModel, Fp8IsRefusedWhereNothingReadsIt) {
  LoadOptions options;
  options.prefill = Prefill::fp8;
  options.dtype = DType::bf16;
  expect_error(ErrorCode::unsupported, {"fp8", "CUDA device", "CPU"},
               [&] { Model::random(small_config(), DType::bf16, 7, options); });
  options.device = test_device();
  expect_error(ErrorCode::unsupported, {"fp8", "first xLSTM"},
               [&] { Model::random(small_stack_config(101, 3), DType::bf16, 7, options); });
  options.dtype = DType::f32;
  expect_error(ErrorCode::invalid_argument, {"fp8", "bf16", "f32"},
               [&] { Model::random(small_config(), DType::bf16, 7, options); });
}

Config config_to_pack() {
  Config config = small_config();
  config.hidden_size = 128;
  config.num_heads = 2;
  config.vocab_size = 104;
  config.use_bias = true;
  return config;
}
LoadOptions packing_options(Packing packing, Prefill prefill = Prefill::same) {
  LoadOptions options;
  options.device = test_device();
  options.dtype = DType::bf16;
  options.packing = packing;
  options.prefill = prefill;
  return options;
}

// Packed weights change no bit of more than 512 tokens, nor, where norms have no bias, of up to 16.
// Elsewhere sums may have another order.
TEST(CudaModel, PackedWeightsChangeLastBitsAtMost) {
  for (const bool use_bias : {false, true}) {
    SCOPED_TRACE(use_bias ? "with biases" : "without");
    Config config = config_to_pack();
    config.use_bias = use_bias;
    const auto model = [&](Packing packing) {
      return Model::random(config, DType::bf16, 7, packing_options(packing));
    };
    Model plain = model(Packing::off), packed = model(Packing::on), both = model(Packing::both);
    EXPECT_LT(packed.streamed_bytes(), plain.streamed_bytes());
    EXPECT_EQ(packed.streamed_bytes(), both.streamed_bytes());
    const auto same = [use_bias](std::size_t tokens) {
      return tokens > 512 || (tokens <= 16 && !use_bias);
    };
    for (const std::size_t length : {1, 7, 16, 20, 64, 100, 200, 300, 600}) {
      State a = plain.make_state(), b = packed.make_state(), c = both.make_state();
      const std::vector<std::int32_t> ids = some_ids(length);
      const std::span<const float> got = packed.eval(b, ids), want = plain.eval(a, ids);
      EXPECT_TRUE(std::ranges::equal(both.eval(c, ids), length > 128 ? want : got)) << length;
      expect_near(got, want, 0.03);
      expect_near(all_numbers(b), all_numbers(a), 0.03);
      if (!same(length)) continue;
      EXPECT_TRUE(std::ranges::equal(got, want)) << length;
      EXPECT_EQ(all_numbers(b), all_numbers(a)) << length;
    }
    for (const std::size_t sequences : {2, 9, 16, 17, 40, 64, 100, 128, 200}) {
      std::vector<State> a, b;
      std::vector<SequenceInput> of_a, of_b;
      const std::vector<std::int32_t> ids = some_ids(sequences);
      for (std::size_t i = 0; i < sequences; ++i) {
        a.push_back(plain.make_state());
        b.push_back(packed.make_state());
      }
      for (std::size_t i = 0; i < sequences; ++i) {
        of_a.push_back({std::span(&ids[i], 1), &a[i]});
        of_b.push_back({std::span(&ids[i], 1), &b[i]});
      }
      std::vector<float> x(sequences * 104), y(x.size());
      for (int step = 0; step < 3; ++step) {
        plain.forward(of_a, Logits::last, x);
        packed.forward(of_b, Logits::last, y);
        expect_near(y, x, 0.03);
        if (same(sequences)) {
          EXPECT_EQ(y, x) << sequences << " sequences, step " << step;
        }
      }
    }
  }
}

// Weights that are on the card in their packed form alone are written as they were read.
TEST(CudaModel, PackedWeightsAreSavedAsTheyWere) {
  for (const bool tied : {false, true}) {
    Config config = config_to_pack();
    config.tie_word_embeddings = tied;
    const formats::TempDir plain, packed;
    Model::random(config, DType::bf16, 7, packing_options(Packing::off))
        .save(plain.path(), DType::bf16);
    Model::load(plain.path(), packing_options(Packing::on)).save(packed.path(), DType::bf16);
    EXPECT_EQ(bytes_of(packed.path() / "model.safetensors"),
              bytes_of(plain.path() / "model.safetensors"));
  }
}

#if defined(XLSTM_TEST_ON_CARD)
// Loading takes no more of a card than is said beforehand: what stays, and a product on its way.
TEST(CudaModel, PackedWeightsTakeTheMemoryThatIsCounted) {
  const Device device = test_device();
  if (!ops::reads_packed(device)) GTEST_SKIP() << "nothing reads packed weights here";
  Config config = small_config();
  config.hidden_size = 1024;
  config.num_heads = 4;
  config.num_blocks = 6;
  config.vocab_size = 4096;
  Model::random(config, DType::bf16, 7, packing_options(Packing::on));  // what CUDA itself takes
  for (const Prefill prefill : {Prefill::same, Prefill::fp8}) {
    LoadOptions options = packing_options(Packing::on, prefill);
    const model::MemoryNeeds needs =
        model::MemoryMeter(config, model::uniform_parameters(config, DType::bf16), options)
            .needs(1);
    const std::uint64_t before = cuda::memory(device).free;
    std::uint64_t least = before;
    options.progress = [&](std::uint64_t, std::uint64_t) {
      least = std::min(least, cuda::memory(device).free);
    };
    const Model model = Model::random(config, DType::bf16, 7, options);
    constexpr std::uint64_t kPages = 16U << 20;  // each piece of memory takes whole ones
    EXPECT_LE(before - least, needs.weights + needs.loading + kPages);
    EXPECT_LE(before - cuda::memory(device).free, needs.weights + kPages);
    EXPECT_GE(before - cuda::memory(device).free + kPages, needs.weights);
  }
}
#endif

// A product whose weights do not fit their lists stays as it is, beside others that are packed.
TEST(CudaModel, SparseWeightsStayAsTheyAre) {
  const Config config = config_to_pack();
  const formats::TempDir dir, again;
  Model::random(config, DType::bf16, 7, packing_options(Packing::off))
      .save(dir.path(), DType::bf16);
  const std::filesystem::path file = dir.path() / "model.safetensors";
  std::string bytes = bytes_of(file);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const nlohmann::json tensors = nlohmann::json::parse(bytes.substr(8, header));
  for (const char* name : {"backbone.blocks.0.ffn.proj_down.weight",
                           "backbone.blocks.1.mlstm_layer.out_proj.weight"}) {
    const std::size_t begin = tensors[name]["data_offsets"][0],
                      end = tensors[name]["data_offsets"][1];
    for (std::size_t at = begin; at < end; at += 16)  // one number in eight is 0
      std::memset(bytes.data() + 8 + header + at, 0, 2);
  }
  std::ofstream(file, std::ios::binary) << bytes;
  for (const Prefill prefill : {Prefill::same, Prefill::fp8, Prefill::fp8_blocks}) {
    Model plain = Model::load(dir.path(), packing_options(Packing::off, prefill)),
          packed = Model::load(dir.path(), packing_options(Packing::on, prefill));
    EXPECT_LT(packed.streamed_bytes(), plain.streamed_bytes());
    EXPECT_GT(packed.streamed_bytes(), plain.streamed_bytes() * 3 / 4);
    for (const std::size_t length : {1, 16, 40, 150, 600}) {
      State a = plain.make_state(), b = packed.make_state();
      const std::vector<std::int32_t> ids = some_ids(length);
      const std::span<const float> got = packed.eval(b, ids), want = plain.eval(a, ids);
      expect_near(got, want, 0.03);
    }
    packed.save(again.path(), DType::bf16);
    EXPECT_EQ(bytes_of(again.path() / "model.safetensors"), bytes);
  }
}

TEST(CudaModel, StatesMoveBetweenDevices) {
  Pair m = models(small_stack_config(101, 3));
  const formats::TempDir dir;
  State state = m.cpu.make_state(), reference = m.cpu.make_state();
  m.cpu.eval(state, some_ids(20));
  m.cpu.eval(reference, some_ids(20));
  // Written on the CPU, continued on CUDA, forked there, and each fork goes another way.
  m.cuda.eval(state, some_ids(20, 2));
  State fork = state.clone();
  m.cpu.eval(reference, some_ids(20, 2));
  expect_near(m.cpu.eval(fork, some_ids(5, 3)), m.cuda.eval(state, some_ids(5, 3)), 2e-5);
  expect_near(state.last_logits(), m.cpu.eval(reference, some_ids(5, 3)), 2e-5);
  // Saved from CUDA, loaded for either.
  state.save(dir / "state");
  State on_cpu = m.cpu.make_state(), on_cuda = m.cuda.make_state();
  on_cpu.load(dir / "state");
  on_cuda.load(dir / "state");
  EXPECT_EQ(all_numbers(on_cpu), all_numbers(state));
  EXPECT_EQ(all_numbers(on_cuda), all_numbers(state));
  EXPECT_EQ(on_cuda.token_count(), 45);
  const std::vector<std::int32_t> next = some_ids(3, 9);
  expect_near(m.cuda.eval(on_cuda, next), m.cpu.eval(on_cpu, next), 2e-5);
  on_cuda.reset();
  State fresh = m.cuda.make_state();
  const std::span<const float> again = m.cuda.eval(on_cuda, next);
  const std::span<const float> first = m.cuda.eval(fresh, next);
  EXPECT_TRUE(std::ranges::equal(again, first));
}

TEST(CudaModel, GeneratesTheTextOfTheCpu) {
  LoadOptions options;
  const std::filesystem::path directory = source_dir() / "models/shakespeare-byte";
  Model cpu = Model::load(directory, options);
  options.device = test_device();
  Model cuda = Model::load(directory, options);
  GenerateOptions how;
  how.max_tokens = 12;
  how.sampler.temperature = 0;
  std::vector<std::vector<std::int32_t>> prompts;
  for (const char* text : {"ROMEO:", "First Citizen:\nBefore", "A"})
    prompts.push_back(cpu.encode_prompt(text));
  const auto on_cpu = generate(cpu, prompts, how), on_cuda = generate(cuda, prompts, how);
  for (std::size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(on_cuda[i].text, on_cpu[i].text);
}

// Many sequences share a pass unless they must be exact: then a batch changes roundings only.
TEST(CudaModel, ManySequencesShareAPass) {
  for (const DType arithmetic : {DType::f32, DType::bf16}) {
    LoadOptions options;
    options.device = test_device();
    options.dtype = arithmetic;
    Model fast = Model::random(small_config(), DType::bf16, 7, options);
    options.exact = true;
    Model exact = Model::random(small_config(), DType::bf16, 7, options);
    constexpr std::size_t kSequences = 40;
    std::vector<State> a, b, c;
    std::vector<std::vector<std::int32_t>> ids;
    for (std::size_t i = 0; i < kSequences; ++i) {
      a.push_back(fast.make_state());
      b.push_back(fast.make_state());
      c.push_back(exact.make_state());
      ids.push_back(some_ids(1 + i % 3, static_cast<std::uint32_t>(i)));
    }
    const auto step = [&](Model& model, std::vector<State>& states) {
      std::vector<SequenceInput> batch;
      for (std::size_t i = 0; i < kSequences; ++i) batch.push_back({ids[i], &states[i]});
      std::vector<float> logits(kSequences * 101);
      model.forward(batch, Logits::last, logits);
      return logits;
    };
    const double bound = arithmetic == DType::f32 ? 2e-5 : 3e-2;
    for (int i = 0; i < 4; ++i) {  // as kernels, then as a graph
      const std::vector<float> logits = step(fast, a);
      EXPECT_EQ(step(fast, b), logits) << "results repeat to the bit";
      expect_near(logits, step(exact, c), bound);
    }
    expect_near(all_numbers(a.back()), all_numbers(c.back()), bound);
  }
}

// Tokens that C of the first cell's first head lacks.
std::int32_t waiting(const State& s) {
  const State::Impl& state = s.impl();
  const model::BlockState& block = state.layout.blocks_on(test_device())[0];
  const ops::MlstmRing ring(block.heads, block.dqk, block.dv);
  std::int32_t count = 0;
  const std::int64_t at = ring.gates + ring.tokens + 1;
  copy_memory(&count, {},
              state.record.data() + block.mlstm.pending + static_cast<std::size_t>(at) * 4,
              state.record.device(), sizeof(count));
  return count;
}

// Steps of more than 16 sequences leave the last tokens in a ring beside C; whatever comes next
// finds a whole state.
TEST(CudaModel, PendingTokensOfManySequences) {
  const formats::TempDir dir;
  for (const auto& [config, from] :
       {std::pair(small_config(), ops::kExactPendsFrom), std::pair(small_config(), std::int64_t{2}),
        std::pair(small_stack_config(101, 3), std::int64_t{2})}) {
    LoadOptions options;
    options.device = test_device();
    Model fast = Model::random(config, DType::f32, 7, options);
    fast.impl().network.hp.pends_from = from;
    options.exact = true;
    Model exact = Model::random(config, DType::f32, 7, options);
    options.device = {};
    Model cpu = Model::random(config, DType::f32, 7, options);
    constexpr std::size_t kSequences = 18;
    std::vector<State> states, reference;
    for (std::size_t i = 0; i < kSequences; ++i) {
      states.push_back(fast.make_state());
      reference.push_back(exact.make_state());
    }
    std::uint32_t seed = 0;
    // The next tokens of the first sequences, as many as it says of each.
    const auto step = [&](std::size_t count, std::size_t tokens_of_first = 1) {
      std::vector<std::vector<std::int32_t>> ids;
      for (std::size_t i = 0; i < count; ++i)
        ids.push_back(some_ids(i == 0 ? tokens_of_first : 1, ++seed));
      const auto run = [&](Model& model, std::vector<State>& of) {
        std::vector<SequenceInput> batch;
        for (std::size_t i = 0; i < count; ++i) batch.push_back({ids[i], &of[i]});
        std::vector<float> logits(count * 101);
        model.forward(batch, Logits::last, logits);
        return logits;
      };
      expect_near(run(fast, states), run(exact, reference), 2e-5);
    };
    const auto pending = [&](std::size_t i) { return states[i].impl().pending; };
    for (int i = 0; i < 9; ++i) step(kSequences);
    EXPECT_EQ(waiting(states[0]), 9 % 4);
    EXPECT_TRUE(pending(0));
    EXPECT_TRUE(pending(kSequences - 1));
    EXPECT_FALSE(reference[0].impl().pending);

    // A fork keeps its ring, and with it the bits of what follows.
    State fork = states[2].clone();
    EXPECT_TRUE(fork.impl().pending);
    step(5);  // few sequences: C is read and written, or not
    EXPECT_EQ(pending(4), fast.impl().network.hp.pends_from == 2);
    EXPECT_TRUE(pending(5));
    step(kSequences, 30);  // a prompt beside steps
    EXPECT_FALSE(pending(0));
    EXPECT_TRUE(pending(1));
    for (int i = 0; i < 3; ++i) step(kSequences);
    EXPECT_TRUE(pending(0));
    step(1, 21);  // a prompt alone
    EXPECT_FALSE(pending(0));

    // To the CPU, and into a file.
    EXPECT_TRUE(pending(3));
    states[3].save(dir / "state");
    EXPECT_FALSE(pending(3));
    State loaded = fast.make_state(), on_cpu = cpu.make_state();
    loaded.load(dir / "state");
    EXPECT_EQ(all_numbers(loaded), all_numbers(states[3]));
    expect_near(all_numbers(states[3]), all_numbers(reference[3]), 2e-5);
    const std::vector<std::int32_t> next = some_ids(1, 77);
    EXPECT_TRUE(pending(7));
    expect_near(cpu.eval(states[7], next), exact.eval(reference[7], next), 2e-5);
    for (int i = 0; i < 6; ++i) step(kSequences);  // from the CPU back into the ring

    // What the fork reads is what its origin read.
    EXPECT_TRUE(fork.impl().pending);
    const std::vector<double> forked = all_numbers(fork);
    EXPECT_FALSE(fork.impl().pending);
    EXPECT_EQ(fork.token_count(), 9);
    State again = cpu.make_state();
    seed = 0;
    for (int i = 0; i < 9; ++i)
      for (std::size_t s = 0; s < kSequences; ++s) {
        const std::vector<std::int32_t> id = some_ids(1, ++seed);
        if (s == 2) cpu.eval(again, id);
      }
    expect_near(forked, all_numbers(again), 2e-5);
    fork.reset();
    EXPECT_FALSE(fork.impl().pending);
    states[9].reset();
    reference[9].reset();
    for (int i = 0; i < 6; ++i) step(kSequences);
    expect_near(all_numbers(states[9]), all_numbers(reference[9]), 2e-5);
  }
}

TEST(CudaModel, SavesItsWeights) {
  Pair m = models(small_config(), DType::bf16);
  const formats::TempDir dir;
  m.cuda.save(dir / "cuda", DType::bf16);
  m.cpu.save(dir / "cpu", DType::bf16);
  const Model a = Model::load(dir / "cuda"), b = Model::load(dir / "cpu");
  EXPECT_EQ(a.hash(), b.hash());
  EXPECT_EQ(a.hash(), m.cuda.hash());
}

TEST(CudaModel, ADeviceThatIsNotThereIsNamed) {
  LoadOptions options;
  options.device = {DeviceType::cuda, 63};
  expect_error(ErrorCode::not_found, {"cuda:63", "no such device"},
               [&] { Model::random(small_config(), DType::f32, 1, options); });
}

TEST(CudaModel, WhatDoesNotFitIsRefusedBeforeAnythingIsMade) {
  Config config = small_config();  // weights of 4 TB
  config.hidden_size = 96 * 1024;
  config.num_blocks = 12;
  LoadOptions options;
  options.device = test_device();
  bool begun = false;
  options.progress = [&](std::uint64_t, std::uint64_t) { begun = true; };
  expect_error(ErrorCode::out_of_memory, {"cuda:0", "needed", "free", "0 sequences fit"},
               [&] { Model::random(config, DType::f32, 1, options); });
  EXPECT_FALSE(begun);
}

}  // namespace
}  // namespace xlstm::testing
