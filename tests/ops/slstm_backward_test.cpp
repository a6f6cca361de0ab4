#include "ops/slstm.hpp"

#include <cmath>
#include <limits>

#include "formats/safetensors.hpp"
#include "ops/slstm_training_problem.hpp"
#include "oracle/golden.hpp"
#include "oracle/stack_ops.hpp"

namespace xlstm::ops::test {
namespace {

/// Every result of a problem beside the same equations in double and in plain float. All sequences
/// of a problem share a scale: single numbers of h are differences that may cancel.
class Comparison {
 public:
  void add(const SlstmTrainingProblem& problem) {
    Result h, last, d_wx, d_state, d_r, d_b;
    for (std::size_t s = 0; s < problem.lengths().size(); ++s) {
      auto exact = problem.reference<double>(s);
      auto naive = problem.reference<float>(s);
      exact.forward();
      naive.forward();
      exact.backward();
      naive.backward();
      h.append(problem.h(s), exact.h, naive.h);
      d_wx.append(problem.d_wx(s), exact.d_wx, naive.d_wx);
      if (problem.has_records()) {
        last.append(problem.last(s), exact.last, naive.last);
        d_state.append(problem.d_state(s), exact.d_state, naive.d_state);
      }
      d_r.accumulate(problem.d_r(), exact.d_r, naive.d_r);
      d_b.accumulate(problem.d_b(), exact.d_b, naive.d_b);
    }
    h.add_to(h_);
    d_wx.add_to(d_wx_);
    if (problem.has_records()) {
      states_ = true;
      last.add_to(last_);
      d_state.add_to(d_state_);
    }
    d_r.add_to(d_r_);
    d_b.add_to(d_b_);
  }
  void expect_at_most_twice_naive() const {
    h_.expect_at_most_twice_naive("h");
    d_wx_.expect_at_most_twice_naive("d_wx");
    if (states_) {
      last_.expect_at_most_twice_naive("states");
      d_state_.expect_at_most_twice_naive("d_state");
    }
    d_r_.expect_at_most_twice_naive("d_r");
    d_b_.expect_at_most_twice_naive("d_b");
  }

 private:
  struct Result {
    std::vector<double> got, want;
    std::vector<float> naive;

    void append(const std::vector<double>& g, const std::vector<double>& w,
                const std::vector<float>& n) {
      got.insert(got.end(), g.begin(), g.end());
      want.insert(want.end(), w.begin(), w.end());
      naive.insert(naive.end(), n.begin(), n.end());
    }
    /// For gradients of weights: `g` is the sum over all sequences already.
    void accumulate(const std::vector<double>& g, const std::vector<double>& w,
                    const std::vector<float>& n) {
      got = g;
      want.resize(w.size());
      naive.resize(n.size());
      for (std::size_t i = 0; i < w.size(); ++i) {
        want[i] += w[i];
        naive[i] += n[i];
      }
    }
    void add_to(Errors& errors) const { errors.add(got, want, naive); }
  };
  Errors h_, last_, d_wx_, d_state_, d_r_, d_b_;
  bool states_ = false;
};

TEST(SlstmBackward, MatchesTheEquationsAtEveryShape) {
  for_each_isa([] {
    unsigned seed = 0;
    Comparison comparison;
    for (SlstmShape shape : {SlstmShape{3, 5}, SlstmShape{2, 16}, SlstmShape{1, 33},
                             SlstmShape{4, 24}, SlstmShape{2, 70}})
      for (int threads : {1, 3}) {
        SCOPED_TRACE(std::to_string(shape.heads) + " x " + std::to_string(shape.dh));
        SlstmTrainingProblem problem(shape, {3, 17, 1, 9}, ++seed);
        problem.run(threads);
        comparison.add(problem);
        EXPECT_TRUE(problem.gaps_untouched());
      }
    comparison.expect_at_most_twice_naive();
  });
}

// One number per gate: the sums of a gradient cancel by chance, so it takes many runs.
TEST(SlstmBackward, MatchesTheEquationsForOneFeature) {
  for_each_isa([] {
    Comparison comparison;
    for (unsigned seed = 1; seed <= 60; ++seed) {
      SlstmTrainingProblem problem({1, 1}, {3, 17, 1, 9}, seed);
      problem.run(2);
      comparison.add(problem);
    }
    comparison.expect_at_most_twice_naive();
  });
}

TEST(SlstmBackward, MatchesTheEquationsForAnyNumberOfSequences) {
  for_each_isa([] {
    for (DType weights : {DType::f32, DType::bf16, DType::f16}) {
      Comparison comparison;
      for (int sequences : {1, 2, 4, 5, 7, 12, 13, 25, 50, 101}) {
        std::vector<int> lengths;
        for (int s = 0; s < sequences; ++s) lengths.push_back(1 + s * 7 % 5);
        SlstmTrainingProblem problem({2, 20}, lengths, 7, SlstmStart::carried, weights);
        problem.run(2);
        comparison.add(problem);
      }
      comparison.expect_at_most_twice_naive();
    }
  });
}

TEST(SlstmBackward, MatchesTheEquationsFromEveryStart) {
  for_each_isa([] {
    Comparison comparison;
    for (SlstmStart start : {SlstmStart::null, SlstmStart::zero, SlstmStart::carried})
      // Not larger: there the cell is chaotic, and single runs say nothing about an arithmetic.
      for (double scale : {0.1, 1.0, 2.0})
        for (unsigned seed = 1; seed <= 8; ++seed) {
          SlstmTrainingProblem problem({2, 12}, {30, 2, 1}, seed, start, DType::f32, scale);
          problem.run(1);
          comparison.add(problem);
        }
    comparison.expect_at_most_twice_naive();
  });
}

TEST(SlstmBackward, ClipAndCut) {
  for_each_isa([] {
    for (bool cut : {false, true}) {
      Comparison comparison;
      SlstmTrainingProblem problem({2, 12}, {30, 2, 1}, 3, SlstmStart::carried, DType::f32, 2.0);
      problem.clip = cut ? 0.0F : 0.05F;
      problem.cut = cut;
      problem.run(2);
      comparison.add(problem);
      comparison.expect_at_most_twice_naive();
    }
  });
}

// To the bit: not the other sequences of a batch, not the number of threads, not the cuts.
TEST(SlstmBackward, BatchThreadsAndPiecesChangeNoBit) {
  for_each_isa([] {
    for (SlstmShape shape : {SlstmShape{1, 150}, SlstmShape{3, 40}, SlstmShape{4, 64}}) {
      SlstmTrainingProblem problem(shape, {20, 1, 33, 2, 1, 14, 5}, 4);
      problem.run(1);
      std::vector<std::vector<double>> bits, h, last;
      for (std::size_t s = 0; s < problem.lengths().size(); ++s) {
        bits.push_back(problem.all(s));
        h.push_back(problem.h(s));
        last.push_back(problem.last(s));
      }
      const std::vector<double> d_r = problem.d_r(), d_b = problem.d_b();
      for (int threads : {2, 3, 8}) {
        problem.run(threads);
        for (std::size_t s = 0; s < bits.size(); ++s) EXPECT_EQ(problem.all(s), bits[s]) << threads;
        EXPECT_EQ(problem.d_r(), d_r);
        EXPECT_EQ(problem.d_b(), d_b);
      }
      for (std::size_t s = 0; s < bits.size(); ++s) {
        problem.run_alone(s, 2);
        EXPECT_EQ(problem.all(s), bits[s]) << s;
      }
      for (int piece : {1, 3, 16}) {
        problem.run_in_pieces(2, piece);
        for (std::size_t s = 0; s < bits.size(); ++s) {
          EXPECT_EQ(problem.h(s), h[s]) << piece;
          EXPECT_EQ(problem.last(s), last[s]) << piece;
        }
      }
    }
  });
}

// A sequence without a record among others that have one: as from the zero state, written nowhere.
TEST(SlstmBackward, NullSlotsBesideRecords) {
  SlstmTrainingProblem problem({2, 20}, {7, 12, 4}, 14);
  problem.run(2);
  const auto before = problem.all(0), after = problem.all(2);
  problem.without_record = 1;
  problem.run(2);
  EXPECT_EQ(problem.all(0), before);
  EXPECT_EQ(problem.all(2), after);
  EXPECT_EQ(problem.last(1),
            std::vector<double>(problem.states[1].begin(), problem.states[1].end()));
  const auto h = problem.h(1), d_wx = problem.d_wx(1);
  problem.without_record = -1;
  problem.states[1].assign(problem.states[1].size(), 0.0F);
  problem.d_last[1].assign(problem.d_last[1].size(), 0.0F);
  problem.run(2);
  EXPECT_EQ(problem.h(1), h);
  EXPECT_EQ(problem.d_wx(1), d_wx);
}

TEST(SlstmBackward, NanDoesNotTravelBackOrAside) {
  for_each_isa([] {
    for (int gate = 0; gate < 4; ++gate) {
      SlstmTrainingProblem problem({2, 20}, {9, 9, 4}, 5);
      problem.run(2);
      const auto before = problem.all(0), after = problem.all(2);
      const auto clean = problem.h(1);
      const int token = 4;
      problem.wx.set(9 + token, gate * 40 + 3, std::numeric_limits<double>::quiet_NaN());
      problem.run(2);
      EXPECT_EQ(problem.all(0), before);
      EXPECT_EQ(problem.all(2), after);
      const auto h = problem.h(1);
      for (int t = 0; t < 9; ++t)
        for (int j = 0; j < 40; ++j) {
          const auto at = static_cast<std::size_t>(t * 40 + j);
          const bool reached = (t == token && j == 3) || (t > token && j < 20);
          EXPECT_EQ(std::isnan(h[at]), reached) << gate << " " << t << " " << j;
          if (!reached) {
            EXPECT_EQ(h[at], clean[at]);
          }
        }
    }
  });
}

// Adding a constant to i~ of all tokens changes m alone (specification B.4).
TEST(SlstmBackward, TheInputGateIsRelative) {
  SlstmTrainingProblem problem({2, 16}, {25}, 6, SlstmStart::zero);
  problem.d_last[0].assign(problem.d_last[0].size(), 0.0F);
  problem.run(1);
  const auto h = problem.h(0), d_b = problem.d_b();
  for (std::size_t j = 0; j < 32; ++j) EXPECT_NEAR(d_b[j], 0, 2e-6) << j;
  const auto b = problem.b.values();
  for (int j = 0; j < 32; ++j) problem.b.set(0, j, b[static_cast<std::size_t>(j)] + 8);
  problem.run(1);
  EXPECT_LT(max_error(problem.h(0), h), 1e-5);
}

// Gates far out: weights of 0, forgetting nothing, forgetting everything.
TEST(SlstmBackward, ExtremeGatesStayFinite) {
  for_each_isa([] {
    SlstmTrainingProblem problem({1, 8}, {12}, 8, SlstmStart::zero);
    for (int t = 0; t < 12; ++t)
      for (int j = 0; j < 16; ++j) problem.wx.set(t, j, ((t * 5 + j) % 7 - 3) * 100.0);
    problem.run(1);
    for (double value : problem.all(0)) EXPECT_TRUE(std::isfinite(value));
    auto exact = problem.reference<double>(0);
    exact.forward();
    EXPECT_LT(max_error(problem.h(0), exact.h), 1e-4);
  });
}

// Specification G.
TEST(SlstmBackward, GoldenVectorsOfTheSpecification) {
  SlstmTrainingProblem engine({1, 2}, {3}, 1, SlstmStart::zero);
  for (int t = 0; t < 3; ++t)
    for (int i = 0; i < 8; ++i) engine.wx.set(t, i, 0.5 * std::sin(1 + t + i / 2 * 2 + i % 2 * 3));
  for (int i = 0; i < 8; ++i) {
    engine.b.set(0, i, i == 2 ? 1 : i == 3 ? 2 : 0);
    for (int k = 0; k < 2; ++k) engine.r.set(i, k, 0.3 * std::cos(1 + i / 2 + 2 * (i % 2) + 3 * k));
  }
  const double d_h[] = {1, -0.5, 0.25, 0.75, -1, 0.5};
  for (int i = 0; i < 6; ++i) engine.d_h.set(i / 2, i % 2, d_h[i]);
  engine.d_last[0].assign(8, 0.0F);
  engine.run(1);
  const std::vector<double> h = {-0.259192291, 0.198011814, -0.119626784,
                                 0.106905645,  0.021199480, 0.023414295};
  const std::vector<double> last = {0.021199480, 0.023414295, 0.094543386, 0.130812975,
                                    2.511196523, 2.333989446, 0.030206158, -0.073384577};
  const std::vector<double> d_b = {0,           0,           0.043309733,  0.005420612,
                                   0.174459414, 0.213005887, -0.137733652, -0.006985289};
  const std::vector<double> d_r = {0.001299667,  -0.002168337, 0.006108697,  -0.005132362,
                                   -0.007343882, 0.006041948,  -0.001099498, 0.000873931,
                                   0.044302700,  -0.036833928, -0.057976252, 0.045571700,
                                   0.004543511,  -0.003614761, -0.013394271, 0.010338411};
  EXPECT_LT(max_error(engine.h(0), h), 3e-7);
  EXPECT_LT(max_error(engine.last(0), last), 1e-6);
  EXPECT_LT(max_error(engine.d_b(), d_b), 3e-7);
  EXPECT_LT(max_error(engine.d_r(), d_r), 3e-7);
  auto g = engine.reference<double>(0);
  g.forward();
  g.backward();
  EXPECT_LT(max_error(g.h, h), 1e-7);
  EXPECT_LT(max_error(g.d_r, d_r), 1e-7);
}

// NX-AI's cell in float32: two sequences of 50 tokens, 4 heads of 8, from the zero state.
TEST(SlstmBackward, GoldenCell) {
  const auto file =
      formats::SafetensorsFile::open(oracle::golden_folder() / "cell_slstm.safetensors");
  const auto values = [&file](const std::string& name) {
    const Tensor& t = file.tensors().at(name);
    return std::vector<double>(t.as<float>(), t.as<float>() + t.count());
  };
  constexpr int kBatch = 2, kHeads = 4, kTokens = 50, kDh = 8, kWidth = 32;
  const auto token_major = [](const std::vector<double>& v) {  // from [B, H, T, DH]
    std::vector<double> result;
    for (int b = 0; b < kBatch; ++b)
      for (int t = 0; t < kTokens; ++t)
        for (int j = 0; j < kWidth; ++j)
          result.push_back(
              v[static_cast<std::size_t>(((b * kHeads + j / kDh) * kTokens + t) * kDh + j % kDh)]);
    return result;
  };
  SlstmTrainingProblem problem({kHeads, kDh}, {kTokens, kTokens}, 1, SlstmStart::zero);
  problem.wx = Array::of(DType::f32, {kBatch * kTokens, 4 * kWidth}, values("in.x"));
  problem.r = Array::of(DType::f32, {4 * kWidth, kDh}, values("param._recurrent_kernel_"));
  problem.b = Array::of(DType::f32, {4 * kWidth}, values("param._bias_"));
  problem.d_h = Array::of(DType::f32, {kBatch * kTokens, kWidth}, token_major(values("dh")));
  for (auto& d_last : problem.d_last) d_last.assign(4 * kWidth, 0.0F);
  const auto per_sequence = [](const std::vector<double>& v, std::size_t b) {
    const auto size = static_cast<std::ptrdiff_t>(v.size() / kBatch);
    const auto begin = v.begin() + size * static_cast<std::ptrdiff_t>(b);
    return std::vector<double>(begin, begin + size);
  };
  const auto h = token_major(values("h")), last = values("last"), d_x = values("grad.x");
  for_each_isa([&] {
    problem.run(2);
    for (std::size_t b = 0; b < kBatch; ++b) {
      EXPECT_LT(max_error(problem.h(b), per_sequence(h, b)), 1e-6);
      std::vector<double> state;
      for (std::size_t k = 0; k < 4; ++k)
        for (std::size_t j = 0; j < kWidth; ++j)
          state.push_back(last[(k * kBatch + b) * kWidth + j]);
      EXPECT_LT(max_error(problem.last(b), state), 1e-6 * max_abs(state));
      EXPECT_LT(max_error(problem.d_wx(b), per_sequence(d_x, b)), 2e-6 * max_abs(d_x));
    }
    const auto d_r = values("grad._recurrent_kernel_"), d_b = values("grad._bias_");
    EXPECT_LT(max_error(problem.d_r(), d_r), 2e-6 * max_abs(d_r));
    EXPECT_LT(max_error(problem.d_b(), d_b), 2e-6 * max_abs(d_b));
  });
}

// The reference's backward pass against central differences, states' gradients included.
TEST(SlstmBackward, ReferenceMatchesCentralDifferences) {
  for (SlstmShape shape : {SlstmShape{1, 3}, SlstmShape{2, 4}}) {
    SlstmTrainingProblem problem(shape, {6}, 11);
    auto exact = problem.reference<double>(0);
    exact.forward();
    exact.backward();
    const auto loss = [](SlstmReference<double> p) {
      p.forward();
      double sum = 0;
      for (std::size_t i = 0; i < p.h.size(); ++i) sum += p.h[i] * p.d_h[i];
      for (std::size_t i = 0; i < p.last.size(); ++i) sum += p.last[i] * p.d_last[i];
      return sum;
    };
    using Member = std::vector<double> SlstmReference<double>::*;
    const std::pair<Member, Member> pairs[] = {
        {&SlstmReference<double>::wx, &SlstmReference<double>::d_wx},
        {&SlstmReference<double>::r, &SlstmReference<double>::d_r},
        {&SlstmReference<double>::b, &SlstmReference<double>::d_b},
        {&SlstmReference<double>::state, &SlstmReference<double>::d_state}};
    for (const auto& [value, gradient] : pairs)
      for (std::size_t i = 0; i < (exact.*value).size(); ++i) {
        constexpr double kStep = 1e-5;
        auto low = exact, high = exact;
        (low.*value)[i] -= kStep;
        (high.*value)[i] += kStep;
        EXPECT_NEAR((loss(high) - loss(low)) / (2 * kStep), (exact.*gradient)[i], 1e-7) << i;
      }
  }
}

TEST(SlstmBackward, ReferenceIsTheOracleForward) {
  SlstmTrainingProblem problem({3, 4}, {20}, 13);
  auto reference = problem.reference<double>(0);
  const auto part = [&reference](std::ptrdiff_t i) {
    const auto begin = reference.state.begin() + 12 * i;
    return std::vector<double>(begin, begin + 12);
  };
  oracle::SlstmStateOf<double> state;
  state.h = part(0);
  state.c = part(1);
  state.n = part(2);
  state.m = part(3);
  const auto h = oracle::slstm<double>(reference.wx, reference.r, reference.b, 3, 4, state);
  reference.forward();
  EXPECT_LT(max_error(reference.h, h), 1e-13);
}

// Gradients cut at any token and carried through the states are those of the whole.
TEST(SlstmBackward, GradientsContinueAcrossCalls) {
  SlstmTrainingProblem whole({2, 20}, {24}, 12, SlstmStart::zero);
  whole.run(1);
  SlstmTrainingProblem first({2, 20}, {10}, 12, SlstmStart::zero);
  SlstmTrainingProblem second({2, 20}, {14}, 12, SlstmStart::zero);
  const auto wx = whole.wx.values(), d_h = whole.d_h.values();
  first.r = second.r = whole.r;
  first.b = second.b = whole.b;
  for (int t = 0; t < 24; ++t) {
    SlstmTrainingProblem& part = t < 10 ? first : second;
    const int row = t < 10 ? t : t - 10;
    for (int j = 0; j < 160; ++j) part.wx.set(row, j, wx[static_cast<std::size_t>(160 * t + j)]);
    for (int j = 0; j < 40; ++j) part.d_h.set(row, j, d_h[static_cast<std::size_t>(40 * t + j)]);
  }
  const auto floats = [](const std::vector<double>& v) {
    return std::vector<float>(v.begin(), v.end());
  };
  first.run(1);
  second.states[0] = floats(first.last(0));
  second.d_last = whole.d_last;
  second.run(1);
  first.d_last[0] = floats(second.d_state(0));
  first.run(1);
  auto d_wx = first.d_wx(0);
  const auto more = second.d_wx(0);
  d_wx.insert(d_wx.end(), more.begin(), more.end());
  EXPECT_LT(max_error(d_wx, whole.d_wx(0)), 2e-6 * max_abs(whole.d_wx(0)));
  EXPECT_LT(max_error(first.d_state(0), whole.d_state(0)), 2e-6 * max_abs(whole.d_state(0)));
  auto d_r = first.d_r();
  for (std::size_t i = 0; i < d_r.size(); ++i) d_r[i] += second.d_r()[i];
  EXPECT_LT(max_error(d_r, whole.d_r()), 4e-6 * max_abs(whole.d_r()));
}

TEST(SlstmBackward, RefusesWrongArguments) {
  SlstmTrainingProblem problem({2, 8}, {3}, 1);
  Context context({}, 1);
  std::vector<float> memory(4096);
  std::vector<std::int32_t> offsets{0, 3};
  std::vector<std::byte*> slots{nullptr};
  const Batch batch{offsets, slots};
  const auto t = [&](std::initializer_list<std::int64_t> sizes) {
    return Tensor::dense(memory.data(), DType::f32, sizes);
  };
  const auto call = [&](Tensor wx, Tensor r, Tensor b, Tensor h, SlstmSaved saved = {}) {
    slstm(context, {.wx = wx, .r = r, .b = b, .batch = batch, .state = {}, .h = h, .saved = saved});
  };
  const Tensor wx = t({3, 64}), r = t({2, 32, 8}), b = t({64}), h = t({3, 16});
  expect_refused([&] { call(t({3, 60}), r, b, h); }, "wx must be f32[3, 64]");
  expect_refused([&] { call(wx, t({64, 8}), b, h); }, "r must be [H, 4 DH, DH]");
  expect_refused([&] { call(wx, t({2, 30, 8}), b, h); }, "r must be f32, bf16 or f16[2, 32, 8]");
  expect_refused([&] { call(wx, r, t({16}), h); }, "b must be");
  expect_refused([&] { call(wx, r, b, t({3, 15})); }, "h must be f32[3, 16]");
  expect_refused([&] { call(wx, r, b, h, {.gates = wx, .closed = {}, .c = h, .n = h}); },
                 "saved.closed must be");
  offsets = {0, 0};
  expect_refused([&] { call(wx, r, b, h); }, "offsets must rise");
}

}  // namespace
}  // namespace xlstm::ops::test
