// Steps of the mLSTM cell that leave C to a later step, against the oracle and against steps that
// write C every time.

#include "ops/mlstm_ring.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "cuda/mlstm_decoding.hpp"

namespace xlstm::ops::test {
namespace {

TEST(MlstmRingPlan, TokensAreWhatMovesLeast) {
  static_assert(MlstmRing::tokens_for(256, 512) == 16);
  static_assert(MlstmRing::tokens_for(128, 256) == 16);
  static_assert(MlstmRing::tokens_for(64, 64) == 8);
  static_assert(MlstmRing::tokens_for(32, 32) == 4);
  static_assert(MlstmRing::tokens_for(8, 16) == 4);
  static_assert(MlstmRing::tokens_for(4, 4) == 2);
  for (const MlstmRing& ring : {MlstmRing(8, 256, 512), MlstmRing(3, 9, 7), MlstmRing(1, 1, 1)}) {
    EXPECT_EQ(ring.k, 0);
    EXPECT_GE(ring.v, ring.heads * ring.tokens * ring.dqk);
    EXPECT_GE(ring.gates, ring.v + ring.heads * ring.tokens * ring.dv);
    EXPECT_GE(static_cast<std::int64_t>(ring.bytes()),
              4 * (ring.gates + ring.heads * (ring.tokens + 2)));
    EXPECT_EQ(ring.bytes() % 256, 0U);
    EXPECT_EQ(ring.v % 4, 0);
  }
}

TEST(MlstmRing, MatchesTheOracleOverSeveralRounds) {
  for (const MlstmShape shape :
       {MlstmShape{2, 20, 37}, MlstmShape{1, 130, 132}, MlstmShape{2, 20, 40}})
    for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
      for (const DType type : {DType::f32, DType::bf16})
        for (const Regime regime : kRegimes) {
          SCOPED_TRACE(testing::Message() << shape.dqk << " x " << shape.dv << ", "
                                          << to_string(type) << ", " << to_string(regime));
          const int steps = 3 * static_cast<int>(MlstmRing::tokens_for(shape.dqk, shape.dv)) + 6;
          Decoding d(shape, gate, type, regime, 4, steps);
          d.sequences[3].has_record = false;
          for (int t = 0; t < steps; ++t) {
            if (t % 2 == 0) d.sequences[3].h.clear();  // its state is dropped every time
            d.ragged_step(t);
          }
          d.fold_all();
          Errors h, c, rest;
          for (std::size_t s = 0; s < 3; ++s) {
            const Decoding::Sequence& one = d.sequences[s];
            auto exact = d.first_state<double>(one);
            auto naive = d.first_state<float>(one);
            const auto want = oracle::mlstm_recurrent(d.tokens_read<double>(one), exact);
            h.add(one.h, want, oracle::mlstm_recurrent(d.tokens_read<float>(one), naive), type);
            c.add(d.c(s), exact.c, naive.c);
            exact.n.insert(exact.n.end(), exact.m.begin(), exact.m.end());
            naive.n.insert(naive.n.end(), naive.m.begin(), naive.m.end());
            rest.add(d.n_and_m(s), exact.n, naive.n);
            EXPECT_EQ(d.waiting(s), 0);
          }
          h.expect_at_most_twice_naive("h");
          c.expect_at_most_twice_naive("C");
          rest.expect_at_most_twice_naive("n, m");
        }
}

// n and m to the bit, as nothing of them waits; C to roundings, at every position in the ring.
TEST(MlstmRing, IsTheStepThatWritesCEveryTime) {
  for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
    for (const Regime regime : {Regime::typical, Regime::resets, Regime::one_huge}) {
      SCOPED_TRACE(to_string(regime));
      const int steps = 20;
      Decoding d({2, 40, 36}, gate, DType::f32, regime, 2, steps);
      Decoding direct = d;
      direct.pends = false;
      const int most = static_cast<int>(d.ring.tokens);
      for (int t = 0; t < steps; ++t) {
        d.step({0, 1});
        direct.step({0, 1});
        EXPECT_EQ(d.waiting(0, 1), (t + 1) % most);
        EXPECT_EQ(d.n_and_m(0), direct.n_and_m(0));
        const MlstmRecord before = d.sequences[0].record;
        d.fold({0});
        EXPECT_EQ(d.waiting(0), 0);
        EXPECT_LE(max_error(d.c(0), direct.c(0)), 3e-6 * max_abs(direct.c(0))) << t;
        const MlstmRecord folded = d.sequences[0].record;
        d.fold({0});
        EXPECT_EQ(d.sequences[0].record, folded) << "nothing waits";
        d.sequences[0].record = before;
        d.fold({0}, Device{});
        EXPECT_EQ(d.c(0), folded.state<double>().c) << "the CPU folds to the same bits";
        d.sequences[0].record = before;
      }
      EXPECT_LE(max_error(d.sequences[1].h, direct.sequences[1].h),
                1e-4 * max_abs(direct.sequences[1].h));
    }
}

TEST(MlstmRing, ASequenceHasTheSameBitsInAnyBatch) {
  for (const DType type : {DType::f32, DType::bf16}) {
    const int steps = 22;
    Decoding d({2, 32, 48}, MlstmGate::exponential, type, Regime::typical, 5, steps);
    Decoding alone = d;
    for (int t = 0; t < steps; ++t) d.ragged_step(t);
    for (std::size_t s = 0; s < 5; ++s)
      while (alone.sequences[s].read < d.sequences[s].read) alone.step({s});
    for (std::size_t s = 0; s < 5; ++s) {
      EXPECT_EQ(d.sequences[s].h, alone.sequences[s].h);
      EXPECT_EQ(d.sequences[s].record, alone.sequences[s].record);
    }
  }
}

// More than blocks run at once, so that each has several in turn.
TEST(MlstmRing, ManySequencesHaveTheBitsOfOne) {
  for (const Decoding::Norm how : {Decoding::Norm::none, Decoding::Norm::fused}) {
    const int steps = 11, count = 90;
    Decoding d({4, 24, 32}, MlstmGate::exponential, DType::bf16, Regime::typical, count, steps);
    d.how = how;
    d.sequences[41].has_record = false;
    Decoding alone = d;
    std::vector<std::size_t> all, some;
    for (std::size_t s = 0; s < count; ++s) {
      all.push_back(s);
      if (s % 3 != 0) some.push_back(s);
    }
    for (int t = 0; t < steps; ++t) d.step(t % 4 == 1 ? some : all);
    for (const std::size_t s : {0, 16, 41, 62, 88, 89}) {
      while (alone.sequences[s].read < d.sequences[s].read) alone.step({s});
      EXPECT_EQ(d.sequences[s].h, alone.sequences[s].h);
      EXPECT_EQ(d.sequences[s].record, alone.sequences[s].record);
    }
  }
}

// Longer sequences share a call with steps once what they left pending is folded.
TEST(MlstmRing, LongerSequencesBesideSteps) {
  Decoding d({2, 24, 32}, MlstmGate::exponential, DType::f32, Regime::typical, 3, 90);
  for (int t = 0; t < 3; ++t) d.step({0, 1, 2});
  Decoding alone = d;
  EXPECT_NE(d.waiting(1), 0);
  d.fold({0, 1, 2}, test_device(), {0, 1, 71, 72}, true);
  EXPECT_EQ(d.waiting(1), 0);
  EXPECT_NE(d.waiting(0), 0);
  d.step({0, 1, 2}, {1, 70, 1});
  for (int t = 0; t < 5; ++t) d.step({0, 1, 2});
  d.fold_all();
  for (int t = 0; t < 6; ++t) alone.step({0, 2});
  alone.fold_all();
  for (std::size_t s : {0, 2}) {
    EXPECT_EQ(d.sequences[s].h, alone.sequences[s].h);
    EXPECT_EQ(d.c(s), alone.c(s));
  }
  const Decoding::Sequence& one = d.sequences[1];
  auto exact = d.first_state<double>(one);
  auto naive = d.first_state<float>(one);
  Errors h, c;
  const auto want = oracle::mlstm_recurrent(d.tokens_read<double>(one), exact);
  h.add(one.h, want, oracle::mlstm_recurrent(d.tokens_read<float>(one), naive));
  c.add(d.c(1), exact.c, naive.c);
  h.expect_at_most_twice_naive("h");
  c.expect_at_most_twice_naive("C");
}

// As many as a card takes in one kernel, of shapes that it serves and that it does not.
TEST(MlstmRing, WithTheNormOfItsHeads) {
  for (const MlstmShape shape :
       {MlstmShape{2, 40, 36}, MlstmShape{1, 256, 512}, MlstmShape{2, 60, 88}, MlstmShape{2, 9, 7}})
    for (const DType type : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(testing::Message() << shape.dqk << " x " << shape.dv << ", " << to_string(type));
      const int steps = static_cast<int>(MlstmRing::tokens_for(shape.dqk, shape.dv)) + 3;
      Decoding fused(shape, MlstmGate::exponential, type, Regime::typical, 2, steps);
      fused.sequences[1].has_record = false;
      Decoding apart = fused;
      fused.how = Decoding::Norm::fused;
      apart.how = Decoding::Norm::apart;
      for (int t = 0; t < steps; ++t) {
        fused.step({0, 1});
        apart.step({0, 1});
      }
      for (std::size_t s : {0, 1})
        EXPECT_LE(max_error(fused.sequences[s].h, apart.sequences[s].h),
                  (type == DType::f32 ? 2e-5 : 1e-2) * max_abs(apart.sequences[s].h));
      EXPECT_EQ(fused.n_and_m(0), apart.n_and_m(0));
      EXPECT_EQ(fused.waiting(0), steps % static_cast<int>(fused.ring.tokens));
      fused.fold({0});
      apart.fold({0});
      EXPECT_LE(max_error(fused.c(0), apart.c(0)), 3e-6 * max_abs(apart.c(0)));
    }
}

TEST(MlstmRing, WithoutARecordAStepIsOneFromZero) {
  Decoding d({2, 24, 36}, MlstmGate::exponential, DType::f32, Regime::typical, 1, 3);
  d.sequences[0].has_record = false;
  Decoding direct = d;
  direct.pends = false;
  for (int t = 0; t < 3; ++t) {
    d.step({0});
    direct.step({0});
  }
  EXPECT_LE(max_error(d.sequences[0].h, direct.sequences[0].h),
            2e-6 * max_abs(direct.sequences[0].h));
  EXPECT_EQ(d.sequences[0].record, d.sequences[0].initial);
}

// While it waits in the ring and after it went into C.
TEST(MlstmRing, NanStaysInItsHeadAndColumn) {
  const int steps = 12, bad = 2;
  for (const bool in_v : {true, false})
    for (const int dv : {36, 40}) {
      Decoding d({2, 20, dv}, MlstmGate::exponential, DType::f32, Regime::typical, 1, steps);
      Decoding clean = d;
      if (in_v)
        d.sequences[0].in.v[bad * 2 * dv + dv + 3] = NAN;
      else
        d.sequences[0].in.k[bad * 40 + 20 + 3] = NAN;
      for (int t = 0; t < steps; ++t) {
        d.step({0});
        clean.step({0});
      }
      for (int t = 0; t < steps; ++t)
        for (int x = 0; x < 2 * dv; ++x) {
          const auto at = static_cast<std::size_t>(t * 2 * dv + x);
          const bool poisoned = t >= bad && (in_v ? x == dv + 3 : x >= dv);
          if (poisoned)
            EXPECT_TRUE(std::isnan(d.sequences[0].h[at])) << t << " " << x;
          else
            EXPECT_EQ(d.sequences[0].h[at], clean.sequences[0].h[at]) << t << " " << x;
        }
    }
}

}  // namespace
}  // namespace xlstm::ops::test
