// The sLSTM cell against the oracle, and what holds for it whatever the numbers.

#include "ops/slstm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "ops/support.hpp"
#include "oracle/stack_ops.hpp"

namespace xlstm::ops::test {
namespace {

/// One call over a ragged batch whose records hold h, c, n and m behind some bytes of others.
class SlstmProblem {
 public:
  SlstmProblem(int heads, int width, std::vector<int> lengths, unsigned seed,
               DType weights = DType::f32, bool fresh = false)
      : heads_(heads), width_(width), lengths_(std::move(lengths)), random_(seed) {
    const int d = heads * width;
    offsets_ = {0};
    for (int length : lengths_) offsets_.push_back(offsets_.back() + length);
    wx_ = Array::random(random_, DType::f32, {offsets_.back(), 4 * d}, 2.0, 0.0, 4);
    r_ = Array::random(random_, weights, {heads, 4 * width * width}, 1 / std::sqrt(width));
    b_ = Array::random(random_, weights, {4 * d});
    for (std::size_t s = 0; s < lengths_.size(); ++s) {
      std::vector<double> parts = Array::random(random_, DType::f32, {4 * d}).values();
      for (int j = 0; j < d; ++j) {
        double& n = parts[static_cast<std::size_t>(2 * d + j)];
        n = j % 5 == 0 ? 0.0 : std::fabs(n) + 0.25;  // n = 0: the first step's rule, per element
      }
      if (fresh) std::fill(parts.begin(), parts.end(), 0.0);
      states_.push_back(parts);
    }
  }
  int d() const { return heads_ * width_; }
  Array& wx() { return wx_; }

  struct Result {
    std::vector<float> h;                   ///< [T, D]
    std::vector<std::vector<float>> after;  ///< h, c, n, m [4 D] of each sequence
  };

  /// Runs tokens [from, to) of each sequence's own count, from `states`; all sequences or one.
  Result run_all(int threads) {
    std::vector<std::vector<float>> states;
    for (const auto& s : states_) states.emplace_back(s.begin(), s.end());
    return run_batch(threads, 0, lengths_.size(), states);
  }
  Result run_alone(std::size_t s, int threads) {
    return run_batch(threads, s, 1, {{states_[s].begin(), states_[s].end()}});
  }
  /// Sequence s in two calls.
  Result run_cut(std::size_t s, int cut) {
    Result first =
        run_tokens(1, {offsets_[s], offsets_[s] + cut}, {{states_[s].begin(), states_[s].end()}});
    Result second = run_tokens(1, {offsets_[s] + cut, offsets_[s + 1]}, first.after);
    first.h.insert(first.h.end(), second.h.begin(), second.h.end());
    return {first.h, second.after};
  }

  template <class Real>
  std::vector<Real> oracle_h(std::size_t s, std::vector<Real>& after) {
    const auto convert = [](const std::vector<double>& x) {
      return std::vector<Real>(x.begin(), x.end());
    };
    oracle::SlstmStateOf<Real> state;
    const std::vector<Real> parts = convert(states_[s]);
    const auto part = [&](int i) {
      return std::vector<Real>(parts.begin() + i * d(), parts.begin() + (i + 1) * d());
    };
    state.h = part(0);
    state.c = part(1);
    state.n = part(2);
    state.m = part(3);
    const std::vector<Real> wx = convert(wx_.values());
    const auto row = [&](int t) { return wx.begin() + static_cast<std::ptrdiff_t>(t) * 4 * d(); };
    const std::vector<Real> mine(row(offsets_[s]), row(offsets_[s + 1]));
    const auto h = oracle::slstm<Real>(mine, convert(r_.values()), convert(b_.values()), heads_,
                                       width_, state);
    for (const auto* x : {&state.h, &state.c, &state.n, &state.m})
      after.insert(after.end(), x->begin(), x->end());
    return h;
  }

 private:
  Result run_batch(int threads, std::size_t first, std::size_t count,
                   const std::vector<std::vector<float>>& states) {
    return run_tokens(threads,
                      {offsets_.begin() + static_cast<std::ptrdiff_t>(first),
                       offsets_.begin() + static_cast<std::ptrdiff_t>(first + count + 1)},
                      states);
  }
  // `ends`: token borders of the sequences within wx.
  Result run_tokens(int threads, std::vector<std::int32_t> ends,
                    const std::vector<std::vector<float>>& states) {
    constexpr std::size_t kBefore = 64;
    const std::int32_t begin = ends.front();
    std::vector<std::vector<float>> records;
    std::vector<std::byte*> slots;
    for (const auto& state : states) {
      records.emplace_back(kBefore / 4);
      records.back().insert(records.back().end(), state.begin(), state.end());
    }
    for (auto& record : records) slots.push_back(reinterpret_cast<std::byte*>(record.data()));
    for (std::int32_t& end : ends) end -= begin;
    const Batch batch{ends, slots};
    Array h(DType::f32, {ends.back(), d()}, 3);
    const auto bytes = static_cast<std::size_t>(d()) * sizeof(float);
    Context context(test_device(), threads);
    const Tensor r = r_.tensor();
    run<SlstmArgs>(context, slstm,
                   {.wx = wx_.tensor().rows(begin, ends.back()),
                    .r = Tensor::dense(r.data, r.dtype, {heads_, 4 * width_, width_}),
                    .b = b_.tensor(),
                    .batch = batch,
                    .state = {kBefore, kBefore + bytes, kBefore + 2 * bytes, kBefore + 3 * bytes},
                    .h = h.tensor()});
    EXPECT_TRUE(h.gaps_untouched());
    Result result{h.floats(), {}};
    for (const auto& record : records) {
      for (std::size_t i = 0; i < kBefore / 4; ++i) EXPECT_EQ(record[i], 0.0F);
      result.after.emplace_back(record.begin() + kBefore / 4, record.end());
    }
    return result;
  }

  int heads_, width_;
  std::vector<int> lengths_;
  std::mt19937 random_;
  std::vector<std::int32_t> offsets_;
  Array wx_{DType::f32, {1}}, r_{DType::f32, {1}}, b_{DType::f32, {1}};
  std::vector<std::vector<double>> states_;
};

TEST(Slstm, MatchesTheOracle) {
  struct Shape {
    int heads, width;
  };
  for_each_isa([] {
    unsigned seed = 0;
    Errors h_errors, state_errors;
    for (DType weights : {DType::f32, DType::bf16, DType::f16})
      for (const Shape s : {Shape{1, 1}, {3, 5}, {2, 16}, {4, 33}, {1, 64}})
        for (const auto& lengths : {std::vector<int>{1}, {12}, {7, 1, 20, 3}})
          for (bool fresh : {false, true}) {
            SlstmProblem p(s.heads, s.width, lengths, ++seed, weights, fresh);
            const auto got = p.run_all(2);
            std::vector<double> want, want_after, after;
            std::vector<float> naive, naive_after;
            for (std::size_t i = 0; i < lengths.size(); ++i) {
              const auto h = p.oracle_h<double>(i, want_after);
              const auto h_f = p.oracle_h<float>(i, naive_after);
              want.insert(want.end(), h.begin(), h.end());
              naive.insert(naive.end(), h_f.begin(), h_f.end());
              after.insert(after.end(), got.after[i].begin(), got.after[i].end());
            }
            h_errors.add({got.h.begin(), got.h.end()}, want, naive);
            state_errors.add(after, want_after, naive_after);
          }
    h_errors.expect_at_most_twice_naive("h");
    state_errors.expect_at_most_twice_naive("states");
  });
}

TEST(Slstm, BatchAndThreadsChangeNoBit) {
  for_each_isa([] {
    SlstmProblem p(2, 24, {5, 1, 9, 2, 9}, 77);
    const auto together = p.run_all(1);
    for (int threads : {2, 3, 8}) {
      const auto again = p.run_all(threads);
      EXPECT_EQ(again.h, together.h) << threads;
      EXPECT_EQ(again.after, together.after) << threads;
    }
    std::size_t at = 0;
    for (std::size_t s = 0; s < 5; ++s) {
      const auto alone = p.run_alone(s, 2);
      EXPECT_EQ(alone.after[0], together.after[s]) << s;
      for (float value : alone.h) ASSERT_EQ(value, together.h[at++]) << s;
    }
  });
}

TEST(Slstm, EverySplitIsTheSame) {
  for_each_isa([] {
    SlstmProblem p(2, 20, {11}, 5);
    const auto whole = p.run_alone(0, 1);
    for (int cut = 1; cut < 11; ++cut) {
      const auto parts = p.run_cut(0, cut);
      for (std::size_t i = 0; i < whole.h.size(); ++i)
        ASSERT_NEAR(parts.h[i], whole.h[i], 1e-5) << cut;
      for (std::size_t i = 0; i < whole.after[0].size(); ++i)
        ASSERT_NEAR(parts.after[0][i], whole.after[0][i],
                    2e-5 * (1 + std::fabs(whole.after[0][i])));
    }
  });
}

// A constant added to every raw input gate changes no h (specification B.4).
TEST(Slstm, AShiftOfTheInputGateChangesNothing) {
  SlstmProblem p(1, 16, {30}, 6, DType::f32, true);
  const auto before = p.run_all(1);
  for (int t = 0; t < 30; ++t)
    for (int j = 0; j < 16; ++j)
      p.wx().set(t, j,
                 static_cast<double>(p.wx().values()[static_cast<std::size_t>(t * 64 + j)]) + 3);
  const auto after = p.run_all(1);
  for (std::size_t i = 0; i < before.h.size(); ++i) EXPECT_NEAR(after.h[i], before.h[i], 2e-5);
}

TEST(Slstm, NanStaysInItsSequenceAndHead) {
  for_each_isa([] {
    SlstmProblem p(2, 8, {6, 6}, 9);
    p.wx().set(2, 3, NAN);  // sequence 0, gate i, head 0
    const auto got = p.run_all(1);
    for (int t = 0; t < 12; ++t)
      for (int j = 0; j < 16; ++j) {
        const bool is_nan = std::isnan(got.h[static_cast<std::size_t>(t * 16 + j)]);
        // The NaN enters at one element of head 0, and all of that head through R a step later.
        const bool must = (t == 2 && j == 3) || (t >= 3 && t < 6 && j < 8);
        EXPECT_EQ(is_nan, must) << t << " " << j;
      }
  });
}

TEST(Slstm, WrongArgumentsAreRefused) {
  std::vector<float> record(16);
  // Not on the stack, which a card that reads the host's memory may not see.
  const std::vector<std::byte*> slots = {reinterpret_cast<std::byte*>(record.data())};
  const std::vector<std::int32_t> offsets = {0, 2};
  const Batch batch{offsets, slots};
  std::vector<float> wx(32), r(64), b(16), h(8);
  Context context(test_device(), 1);
  const auto call = [&](std::int64_t gates, std::int64_t rows) {
    run<SlstmArgs>(context, slstm,
                   {.wx = Tensor::dense(wx.data(), DType::f32, {2, gates}),
                    .r = Tensor::dense(r.data(), DType::f32, {1, rows, 4}),
                    .b = Tensor::dense(b.data(), DType::f32, {16}),
                    .batch = batch,
                    .state = {0, 16, 32, 48},
                    .h = Tensor::dense(h.data(), DType::f32, {2, 4})});
  };
  EXPECT_NO_THROW(call(16, 16));
  expect_refused([&] { call(12, 16); }, "wx must be f32[2, 16]");
  expect_refused([&] { call(16, 12); }, "r must be");
}

}  // namespace
}  // namespace xlstm::ops::test
