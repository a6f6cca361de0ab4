// How a batch is cut into passes on CUDA: prompts of several slices, and mode `exact`.

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "model/model_impl.hpp"
#include "model/small_model.hpp"
#include "model/state_numbers.hpp"

namespace xlstm::testing {
namespace {

constexpr std::int64_t kVocabulary = 101;

struct Kind {
  std::string name;
  Config config;
  DType arithmetic, weights;
};
std::vector<Kind> kinds() {
  std::vector<Kind> all;
  for (const DType arithmetic : {DType::f32, DType::bf16}) {
    all.push_back({"small", small_config(), arithmetic, arithmetic});
    all.push_back({"stack", small_stack_config(kVocabulary, 3), arithmetic, arithmetic});
#if defined(XLSTM_TEST_ON_CARD)
    // Heads of 64/128, for which cards of capability 9.0 have kernels of their own.
    Config wide = small_config();
    wide.hidden_size = 512;
    wide.num_heads = 4;
    all.push_back({"wide", wide, arithmetic, DType::bf16});
#endif
  }
  for (Kind& kind : all) kind.name += std::string("_") + to_string(kind.arithmetic);
  return all;
}

class CudaPasses : public ::testing::TestWithParam<Kind> {
 protected:
  Model model(bool exact, DType state = DType::f32) const {
    LoadOptions options;
    options.device = test_device();
    options.dtype = GetParam().arithmetic;
    options.state_dtype = state;
    options.exact = exact;
    options.threads = 2;
    return Model::random(GetParam().config, GetParam().weights, 7, options);
  }
};

/// Reads more of each sequence in one call.
std::vector<float> read(Model& model, std::vector<State>& states,
                        const std::vector<std::vector<std::int32_t>>& ids) {
  std::vector<SequenceInput> batch;
  for (std::size_t i = 0; i < states.size(); ++i) batch.push_back({ids[i], &states[i]});
  std::vector<float> logits(states.size() * kVocabulary);
  model.forward(batch, Logits::last, logits);
  return logits;
}

#if defined(XLSTM_TEST_ON_CARD)
constexpr std::size_t kTimes = 4;
constexpr int kRounds = 7;
#else  // enough for the emulator
constexpr std::size_t kTimes = 1;
constexpr int kRounds = 5;
#endif

// Slices of whole chunks, and of a number that is no multiple of anything, beside one of all.
TEST_P(CudaPasses, APromptOfSeveralSlicesGivesWhatOneSliceGives) {
  const bool is_f32 = GetParam().arithmetic == DType::f32;
  const double bound = is_f32 ? 2e-5 : 2e-2;
  for (const DType state : {DType::f32, DType::bf16}) {
    Model whole = model(false, state);
    ASSERT_GE(whole.impl().limits.slice, 2048);
    for (const std::int64_t slice : {128 * static_cast<int>(kTimes), 77}) {
      if (state == DType::bf16 && slice != 77) continue;
      SCOPED_TRACE(::testing::Message() << "state " << to_string(state) << ", slice " << slice);
      // C in bf16 is rounded after each pass.
      const double of_states = state == DType::f32 ? bound : std::max(bound, 1e-2);
      Model sliced = model(false, state);
      sliced.impl().limits.slice = sliced.impl().limits.shared_tokens = slice;
      std::vector<State> a, b;
      std::vector<std::vector<std::int32_t>> ids;
      std::uint32_t seed = 0;
      for (const std::size_t length : {300 * kTimes, std::size_t{1}, 150 * kTimes, std::size_t{5},
                                       std::size_t{1}, 128 * kTimes}) {
        a.push_back(whole.make_state());
        b.push_back(sliced.make_state());
        const std::vector<std::int32_t> before = some_ids(9, ++seed);
        whole.eval(a.back(), before);
        sliced.eval(b.back(), before);
        ids.push_back(some_ids(length, ++seed));
      }
      for (int step = 0; step < 3; ++step) {
        EXPECT_LE(distance(read(sliced, b, ids), read(whole, a, ids)), of_states) << step;
        for (std::size_t i = 0; i < a.size(); ++i) {
          EXPECT_EQ(b[i].token_count(), a[i].token_count());
          EXPECT_LE(distance(outcome(b[i]), outcome(a[i])), of_states) << "sequence " << i;
          ids[i] = some_ids(1, ++seed);
        }
      }
    }
  }
}

// All logits come 512 tokens at a time.
TEST_P(CudaPasses, AllLogitsOfSeveralSlicesAreThoseOfOne) {
  Model m = model(false);
  const std::vector<std::int32_t> ids = some_ids(700, 3);
  State a = m.make_state(), b = m.make_state(), c = m.make_state();
  const SequenceInput input{ids, &a};
  std::vector<float> all(ids.size() * kVocabulary);
  m.forward({&input, 1}, Logits::all, all);
  const double bound = GetParam().arithmetic == DType::f32 ? 2e-5 : 2e-2;
  const std::span<const float> rows(all);
  EXPECT_LE(distance(rows.last(kVocabulary), m.eval(b, ids)), bound);
  EXPECT_LE(distance(outcome(a), outcome(b)), bound);
  for (const std::size_t tokens : {300, 511, 512, 513, 600}) {
    c.reset();
    EXPECT_LE(distance(rows.subspan((tokens - 1) * kVocabulary, kVocabulary),
                       m.eval(c, std::span(ids).first(tokens))),
              bound)
        << tokens;
  }
}

// Prompts and steps of 40 sequences in one call, over and over: each has the bits that it has
// alone. Passes are kernels at first and graphs then.
TEST_P(CudaPasses, ExactSequencesHaveTheBitsThatTheyHaveAlone) {
  Model m = model(true);
  constexpr std::size_t kSequences = 40;
  constexpr std::size_t kLengths[] = {1, 1, 5, 1, 17, 1, 2, 16, 1, 33, 3, 1, 1, 70, 1, 9, 1};
  std::vector<State> together, alone;
  for (std::size_t i = 0; i < kSequences; ++i) {
    together.push_back(m.make_state());
    alone.push_back(m.make_state());
  }
  std::uint32_t seed = 0;
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(::testing::Message() << "round " << round);
    std::vector<std::vector<std::int32_t>> ids;
    for (std::size_t i = 0; i < kSequences; ++i) {
      const bool steps = round % 3 == 1 || round > 3;
      const std::size_t at = (i + static_cast<std::size_t>(round) * 5) % std::size(kLengths);
      ids.push_back(some_ids(steps ? 1 : kLengths[at], ++seed));
    }
#if defined(XLSTM_TEST_ON_CARD)
    if (round == 2) ids[11] = some_ids(1500, ++seed);  // in segments, where there are any
#endif
    const std::vector<float> logits = read(m, together, ids);
    for (std::size_t i = 0; i < kSequences; ++i) {
      const std::span<const float> one = m.eval(alone[i], ids[i]);
      EXPECT_EQ(std::vector<float>(logits.begin() + std::ptrdiff_t(i * kVocabulary),
                                   logits.begin() + std::ptrdiff_t((i + 1) * kVocabulary)),
                std::vector<float>(one.begin(), one.end()))
          << "sequence " << i << " of " << ids[i].size() << " tokens";
      EXPECT_EQ(outcome(together[i]), outcome(alone[i])) << "sequence " << i;
    }
    if (HasFailure()) break;
  }
}

INSTANTIATE_TEST_SUITE_P(Kind, CudaPasses, ::testing::ValuesIn(kinds()),
                         [](const auto& kind) { return kind.param.name; });

}  // namespace
}  // namespace xlstm::testing
