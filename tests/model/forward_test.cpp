// Forward passes over ragged batches: nobody changes another's bits, nothing is allocated, bad
// input is refused before anything changes.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "allocation_counter.hpp"
#include "formats/expect_error.hpp"
#include "model/model_impl.hpp"
#include "model/small_model.hpp"
#include "model/state_numbers.hpp"

namespace xlstm::testing {
namespace {

TEST(ForwardTest, TheBestLogitsAreThoseOfAll) {
  Model model = small_model(DType::bf16);
  constexpr std::int64_t kCount = 7;
  std::vector<State> a, b;
  std::vector<std::vector<std::int32_t>> ids;
  for (const std::size_t length : {1, 20, 3}) {
    a.push_back(model.make_state());
    b.push_back(model.make_state());
    ids.push_back(some_ids(length));
  }
  for (int step = 0; step < 3; ++step) {
    std::vector<SequenceInput> batch_a, batch_b;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      batch_a.push_back({ids[i], &a[i]});
      batch_b.push_back({ids[i], &b[i]});
    }
    std::vector<float> logits(3 * 101);
    std::vector<Candidate> best(3 * kCount);
    model.forward(batch_a, Logits::last, logits);
    model.forward_best(batch_b, kCount, best);
    for (std::size_t s = 0; s < 3; ++s) {
      const std::vector<float> row(logits.begin() + static_cast<std::ptrdiff_t>(101 * s),
                                   logits.begin() + static_cast<std::ptrdiff_t>(101 * (s + 1)));
      std::vector<std::int32_t> order(101);
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, [&](auto x, auto y) {
        return row[static_cast<std::size_t>(x)] > row[static_cast<std::size_t>(y)];
      });
      for (std::size_t i = 0; i < kCount; ++i) {
        EXPECT_EQ(best[s * kCount + i].id, order[i]);
        EXPECT_EQ(best[s * kCount + i].logit, row[static_cast<std::size_t>(order[i])]);
      }
      EXPECT_TRUE(b[s].last_logits().empty());
      EXPECT_EQ(b[s].token_count(), a[s].token_count());
    }
  }
  model.impl().fetch_logits(b[2]);
  EXPECT_TRUE(std::ranges::equal(b[2].last_logits(), a[2].last_logits()));
  // Another pass has taken their place.
  model.eval(a[0], ids[0]);
  std::vector<Candidate> one(1);
  const SequenceInput other{ids[1], &a[1]};
  model.forward_best({&other, 1}, 1, one);
  model.impl().fetch_logits(b[1]);
  EXPECT_TRUE(b[1].last_logits().empty());
  EXPECT_THROW(model.forward_best({}, 0, {}), Error);
  EXPECT_THROW(model.forward_best({}, 65, {}), Error);
}

class BatchTest : public ::testing::TestWithParam<DType> {};

TEST_P(BatchTest, EverySequenceGivesWhatItGivesAlone) {
  LoadOptions options;
  options.dtype = GetParam();
  options.threads = 2;
  Model model = small_model(DType::bf16, options);
  // Lengths below, at and above what shares a pass, and more than one slice.
  const std::vector<std::size_t> lengths = {1, 1, 1, 5, 16, 17, 1, 3, 64, 2, 600, 1, 1, 11, 1, 1};
  std::vector<State> states;
  std::vector<std::vector<std::int32_t>> ids;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    states.push_back(model.make_state());
    model.eval(states[i], some_ids(i + 1, 77));  // not from the empty state
    ids.push_back(some_ids(lengths[i], static_cast<std::uint32_t>(i)));
  }
  std::vector<std::vector<double>> alone;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    State copy = states[i].clone();
    model.eval(copy, ids[i]);
    alone.push_back(outcome(copy));
  }
  std::vector<SequenceInput> batch;
  for (std::size_t i = 0; i < lengths.size(); ++i)
    batch.push_back({.ids = ids[i], .state = &states[i]});
  std::vector<float> logits(batch.size() * 101);
  model.forward(batch, Logits::last, logits);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    EXPECT_EQ(outcome(states[i]), alone[i]) << "sequence " << i;
    EXPECT_TRUE(std::equal(alone[i].begin(), alone[i].begin() + 101,
                           logits.begin() + static_cast<std::ptrdiff_t>(i) * 101))
        << "row " << i;
  }
}

TEST_P(BatchTest, DecodeBatchesOfOneToSixteen) {
  LoadOptions options;
  options.dtype = GetParam();
  options.threads = 2;
  Model model = small_model(DType::bf16, options);
  std::vector<std::vector<double>> alone;
  for (std::size_t size = 1; size <= 17; ++size) {
    std::vector<State> states;
    std::vector<std::int32_t> ids = some_ids(size, 5);
    std::vector<SequenceInput> batch;
    states.reserve(size);
    for (std::size_t i = 0; i < size; ++i) {
      states.push_back(model.make_state());
      batch.push_back({.ids = std::span(ids).subspan(i, 1), .state = &states[i]});
    }
    std::vector<float> logits(size * 101);
    for (int step = 0; step < 3; ++step) model.forward(batch, Logits::last, logits);
    State state = model.make_state();
    for (int step = 0; step < 3; ++step) model.eval(state, std::span(ids).last(1));
    alone.push_back(outcome(state));
    for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(outcome(states[i]), alone[i]) << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Arithmetic, BatchTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& param) { return to_string(param.param); });

TEST(ForwardTest, AllLogitsAreTheLastLogitsOfEveryPrefix) {
  Model model = small_model();
  const std::vector<std::int32_t> ids = some_ids(20), more = some_ids(3, 9);
  State a = model.make_state(), b = model.make_state();
  const std::vector<SequenceInput> batch = {{.ids = ids, .state = &a}, {.ids = more, .state = &b}};
  std::vector<float> logits(23 * 101);
  model.forward(batch, Logits::all, logits);
  EXPECT_TRUE(std::equal(a.last_logits().begin(), a.last_logits().end(),
                         logits.begin() + std::ptrdiff_t{19} * 101));
  EXPECT_TRUE(std::equal(b.last_logits().begin(), b.last_logits().end(),
                         logits.begin() + std::ptrdiff_t{22} * 101));
  State c = model.make_state();
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const std::span<const float> row = model.eval(c, std::span(ids).subspan(t, 1));
    for (std::size_t j = 0; j < row.size(); ++j)
      ASSERT_NEAR(row[j], logits[t * 101 + j], 1e-4F) << t;
  }
}

// Behind its cell the last block, of any kind, is worked out for wanted tokens alone.
TEST(ForwardTest, WantedTokensGiveWhatTheyGiveAmongAll) {
  const std::vector<Config> configs = {small_config(), small_stack_config(101, 2),
                                       small_stack_config(101, 3)};
  for (const Config& config : configs)
    for (const DType arithmetic : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(::testing::Message() << config.num_blocks << " " << to_string(arithmetic));
      LoadOptions options;
      options.dtype = arithmetic;
      options.threads = 2;
      Model model = Model::random(config, arithmetic, 7, options);
      constexpr std::size_t kLengths[] = {40, 1, 7, 100};
      std::vector<State> last, all, none;
      std::vector<std::vector<std::int32_t>> ids;
      std::size_t tokens = 0;
      for (const std::size_t length : kLengths) {
        for (std::vector<State>* states : {&last, &all, &none})
          states->push_back(model.make_state());
        ids.push_back(some_ids(length, static_cast<std::uint32_t>(length)));
        tokens += length;
      }
      const auto read = [&](std::vector<State>& states, Logits which, std::span<float> logits) {
        std::vector<SequenceInput> batch;
        for (std::size_t i = 0; i < states.size(); ++i) batch.push_back({ids[i], &states[i]});
        model.forward(batch, which, logits);
      };
      std::vector<float> logits(4 * 101);
      read(last, Logits::last, logits);
      std::vector<float> of_all(tokens * 101);
      read(all, Logits::all, of_all);
      read(none, Logits::none, {});
      std::size_t end = 0;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        end += ids[i].size();
        const auto few = std::span<const float>(logits).subspan(i * 101, 101);
        const auto many = std::span<const float>(of_all).subspan((end - 1) * 101, 101);
        // Products of few rows may have another order.
        EXPECT_LE(distance(few, many), arithmetic == DType::f32 ? 1e-6 : 5e-3) << "sequence " << i;
        if (ids[i].size() < 16) {
          EXPECT_TRUE(std::ranges::equal(few, many)) << "sequence " << i;
        }
      }
      // The states are the same: so is what follows.
      for (std::size_t i = 0; i < ids.size(); ++i) {
        const std::vector<std::int32_t> more = some_ids(3, 9);
        const std::span<const float> expected = model.eval(all[i], more);
        EXPECT_TRUE(std::ranges::equal(model.eval(last[i], more), expected)) << "sequence " << i;
        EXPECT_TRUE(std::ranges::equal(model.eval(none[i], more), expected)) << "sequence " << i;
      }
    }
}

TEST(ForwardTest, WithoutLogitsTheStateHasNone) {
  Model model = small_model();
  const std::vector<std::int32_t> ids = some_ids(20);
  State a = model.make_state(), b = model.make_state();
  model.eval(a, std::span(ids).first(4));
  const SequenceInput input{.ids = std::span(ids).subspan(4), .state = &a};
  model.forward(std::span(&input, 1), Logits::none, {});
  EXPECT_TRUE(a.last_logits().empty());
  EXPECT_EQ(a.token_count(), 20);
  model.eval(b, std::span(ids).first(4));
  model.eval(b, std::span(ids).subspan(4));
  EXPECT_TRUE(
      std::equal(a.c(1).as<float>(), a.c(1).as<float>() + a.c(1).count(), b.c(1).as<float>()));
}

TEST(ForwardTest, BadInputChangesNothing) {
  Model model = small_model();
  Model other = Model::random(small_config(), DType::f32, 8);
  State a = model.make_state(), b = model.make_state(), foreign = other.make_state();
  const std::vector<std::int32_t> good = {1, 2}, high = {1, 101}, low = {-1}, empty;
  const auto refuse = [&](const std::vector<std::int32_t>& ids, State* second,
                          std::string_view message) {
    const std::vector<SequenceInput> batch = {{.ids = good, .state = &a},
                                              {.ids = ids, .state = second}};
    std::vector<float> logits(2 * 101);
    expect_error(ErrorCode::invalid_argument, {message},
                 [&] { model.forward(batch, Logits::last, logits); });
  };
  refuse(high, &b, "sequence 1, token 1: expected an id in [0, 101), found 101");
  refuse(low, &b, "sequence 1, token 0: expected an id in [0, 101), found -1");
  refuse(empty, &b, "sequence 1: expected at least one token");
  refuse(good, &a, "twice");
  refuse(good, &foreign, "belongs to model");
  refuse(good, nullptr, "no state");
  const SequenceInput input{.ids = good, .state = &a};
  std::vector<float> small(100);
  expect_error(ErrorCode::invalid_argument, {"room for 101 logits, found 100"},
               [&] { model.forward(std::span(&input, 1), Logits::last, small); });
  EXPECT_EQ(a.token_count(), 0);
  model.forward({}, Logits::last, {});  // no sequences, nothing to do
}

TEST(ForwardTest, DecodingAllocatesNothing) {
  if (!test_device().is_cpu()) GTEST_SKIP() << "CUDA allocates memory of its own";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    LoadOptions options;
    options.dtype = dtype;
    options.threads = 2;
    Model model = small_model(DType::bf16, options);
    State a = model.make_state(), b = model.make_state();
    std::vector<std::int32_t> ids = {1, 2};
    std::vector<float> logits(2 * 101);
    const std::vector<SequenceInput> batch = {{.ids = std::span(ids).first(1), .state = &a},
                                              {.ids = std::span(ids).last(1), .state = &b}};
    model.eval(a, some_ids(40));
    model.eval(a, batch[0].ids);
    model.forward(batch, Logits::last, logits);
    const AllocationCounter counter;
    for (int step = 0; step < 50; ++step) {
      model.eval(a, batch[0].ids);
      model.forward(batch, Logits::last, logits);
    }
    EXPECT_EQ(counter.count(), 0) << to_string(dtype);
  }
}

TEST(ForwardTest, CallsFromSeveralThreadsWait) {
  Model model = small_model();
  State expected = model.make_state();
  for (const std::int32_t id : some_ids(50)) model.eval(expected, std::span(&id, 1));
  std::vector<State> states;
  for (int i = 0; i < 3; ++i) states.push_back(model.make_state());
  std::vector<std::thread> threads;
  for (State& state : states)
    threads.emplace_back([&] {
      for (const std::int32_t id : some_ids(50)) model.eval(state, std::span(&id, 1));
    });
  for (std::thread& thread : threads) thread.join();
  for (const State& state : states) EXPECT_EQ(outcome(state), outcome(expected));
}

}  // namespace
}  // namespace xlstm::testing
