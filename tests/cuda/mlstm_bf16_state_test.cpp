// The mLSTM cell on states whose C is bf16, rounded at random.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "cuda/mlstm_decoding.hpp"
#include "ops/random_rounding.hpp"

namespace xlstm::ops::test {
namespace {

/// Whether each number is one of the two that bf16 has around the exact one, give or take what
/// kernels are wrong by.
void expect_rounded(const std::vector<double>& got, const std::vector<double>& exact) {
  ASSERT_EQ(got.size(), exact.size());
  const double slack = 4e-5 * max_abs(exact);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double ulp = std::ldexp(1.0, std::ilogb(std::max(std::abs(exact[i]), 1e-30)) - 7);
    ASSERT_LE(std::abs(got[i] - exact[i]), ulp + slack) << i << ": " << exact[i];
  }
}

/// Numbers that are not small are rounded as the key of their position says, but for those few
/// that what kernels are wrong by takes to the other side.
void expect_bits_of_the_key(const Decoding& d, std::size_t s, const std::vector<double>& exact) {
  const std::vector<double> got = d.c(s);
  const auto count = std::size_t(d.shape.dqk * d.shape.dv);
  const double least = 0.05 * max_abs(exact);
  int same = 0, all = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(exact[i]) > least)) continue;
    const auto head = static_cast<std::int64_t>(i / count);
    const RoundingKey key =
        rounding_key(d.state().rounding, head, d.position(s, static_cast<int>(head)));
    same += got[i] == bf16_to_f32(random_bf16(static_cast<float>(exact[i]), key,
                                              static_cast<std::uint32_t>(i % count)));
    ++all;
  }
  EXPECT_GE(same, 0.9 * all);
}

// Between two writes of C, results are those of float32 from the state as it stands there.
TEST(MlstmBf16State, IsTheExactStateRoundedOnceForEachRing) {
  for (const MlstmShape shape :
       {MlstmShape{2, 20, 37}, MlstmShape{2, 20, 40}, MlstmShape{1, 132, 136}, MlstmShape{3, 9, 7},
        MlstmShape{1, 64, 320}, MlstmShape{1, 256, 512}})
    for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
      for (const DType type : {DType::f32, DType::bf16})
        for (const Regime regime : kRegimes) {
          if (shape.dv > 300 && regime != Regime::typical) continue;  // it takes time
          SCOPED_TRACE(testing::Message() << shape.dqk << " x " << shape.dv << ", "
                                          << to_string(type) << ", " << to_string(regime));
          const auto most = static_cast<int>(MlstmRing::tokens_for(shape.dqk, shape.dv));
          const int steps = 3 * most + 1;
          Decoding d(shape, gate, type, regime, 3, steps, DType::bf16);
          d.sequences[2].has_record = false;
          auto exact = d.state_now<double>(1);
          auto naive = d.state_now<float>(1);
          int begin = 0;
          for (int t = 0; t < steps; ++t) {
            d.step({0, 1, 2});
            EXPECT_EQ(d.waiting(1), (t + 1) % most);
            EXPECT_EQ(d.position(1), static_cast<std::uint32_t>((t + 1) / most * most));
            if (d.waiting(1) != 0) continue;
            const oracle::MlstmInputs in = d.tokens_read<double>(d.sequences[1], begin);
            const auto want = oracle::mlstm_recurrent(in, exact);
            const auto plain =
                oracle::mlstm_recurrent(d.tokens_read<float>(d.sequences[1], begin), naive);
            const std::vector<double>& all = d.sequences[1].h;
            const std::vector<double> got(all.begin() + begin * shape.heads * shape.dv, all.end());
            // Where a denominator is small, float32 itself is far off.
            const double error = max_error({plain.begin(), plain.end()}, want);
            EXPECT_LE(max_error(got, want),
                      4 * error + (type == DType::f32 ? 5e-6 : 5e-3) * max_abs(want));
            expect_rounded(d.c(1), exact.c);
            expect_bits_of_the_key(d, 1, exact.c);
            begin = t + 1;
            exact = d.state_now<double>(1);
            naive = d.state_now<float>(1);
          }
        }
}

TEST(MlstmBf16State, FoldsToTheSameBitsEverywhere) {
  for (const int dv : {36, 7}) {
    const int steps = 9;
    Decoding d({2, 40, dv}, MlstmGate::exponential, DType::f32, Regime::typical, 2, steps,
               DType::bf16);
    for (int t = 0; t < steps; ++t) {
      d.step({0, 1});
      const MlstmRecord before = d.sequences[0].record;
      auto exact = d.state_now<double>(0);
      d.fold({0});
      EXPECT_EQ(d.waiting(0), 0);
      EXPECT_EQ(d.position(0, 1), static_cast<std::uint32_t>(t + 1));
      const std::vector<double> folded = d.c(0);
      d.fold({0});
      EXPECT_EQ(d.c(0), folded) << "nothing waits";
      EXPECT_EQ(d.position(0), static_cast<std::uint32_t>(t + 1));
      d.sequences[0].record = before;
      d.fold({0}, Device{});
      EXPECT_EQ(d.c(0), folded);
      EXPECT_EQ(d.position(0), static_cast<std::uint32_t>(t + 1));
      d.sequences[0].record = before;
    }
  }
}

TEST(MlstmBf16State, ASequenceHasTheSameBitsInAnyBatch) {
  for (const Decoding::Norm how : {Decoding::Norm::none, Decoding::Norm::fused}) {
    const int steps = 22, count = 90;
    Decoding d({4, 24, 32}, MlstmGate::exponential, DType::bf16, Regime::typical, count, steps,
               DType::bf16);
    d.how = how;
    d.sequences[41].has_record = false;
    Decoding alone = d, again = d;
    std::vector<std::size_t> all, some;
    for (std::size_t s = count; s-- > 0;) {
      all.push_back(s);
      if (s % 3 != 0) some.push_back(s);
    }
    for (int t = 0; t < steps; ++t) {
      d.step(t % 4 == 1 ? some : all);
      again.step(t % 4 == 1 ? some : all);
    }
    for (const std::size_t s : {0, 16, 41, 62, 88, 89}) {
      while (alone.sequences[s].read < d.sequences[s].read) alone.step({s});
      for (const Decoding* other : {&alone, &again}) {
        EXPECT_EQ(d.sequences[s].h, other->sequences[s].h);
        EXPECT_EQ(d.sequences[s].record, other->sequences[s].record);
      }
    }
  }
}

// Beside steps and alone, of types that different kernels serve.
TEST(MlstmBf16State, LongerSequencesWorkOnACopy) {
  for (const DType type : {DType::f32, DType::bf16})
    for (const MlstmShape shape :
         {MlstmShape{2, 24, 32}, MlstmShape{1, 64, 128}, MlstmShape{3, 9, 7}}) {
      SCOPED_TRACE(testing::Message() << shape.dqk << " x " << shape.dv << ", " << to_string(type));
      Decoding d(shape, MlstmGate::exponential, type, Regime::typical, 4, 200, DType::bf16);
      d.sequences[3].has_record = false;
      for (int t = 0; t < 3; ++t) d.step({0, 1, 2});
      Decoding alone = d;
      d.fold({0, 1, 2}, test_device(), {0, 1, 71, 72}, true);
      EXPECT_EQ(d.position(1), 3U);
      const auto waiting = d.waiting(0);
      auto exact = d.state_now<double>(1);
      d.step({0, 1, 2, 3}, {1, 70, 1, 40});
      const std::size_t before = std::size_t(3 * shape.heads * shape.dv);
      const std::vector<double> got(d.sequences[1].h.begin() + std::ptrdiff_t(before),
                                    d.sequences[1].h.end());
      const auto want = oracle::mlstm_recurrent(d.tokens_read<double>(d.sequences[1], 3), exact);
      EXPECT_LE(max_error(got, want), (type == DType::f32 ? 1e-4 : 2e-2) * max_abs(want));
      EXPECT_EQ(d.position(1), 73U);
      EXPECT_EQ(d.position(1, shape.heads - 1), 73U);
      EXPECT_EQ(d.waiting(1), 0);
      EXPECT_EQ(d.waiting(0), (waiting + 1) % d.ring.tokens);
      if (type == DType::f32) expect_rounded(d.c(1), exact.c);
      EXPECT_LE(max_error(d.c(1), exact.c), 2e-2 * max_abs(exact.c));
      for (int t = 0; t < 5; ++t) d.step({0, 1, 2});
      for (int t = 0; t < 6; ++t) alone.step({0, 2});
      for (std::size_t s : {0, 2}) {
        EXPECT_EQ(d.sequences[s].h, alone.sequences[s].h);
        EXPECT_EQ(d.c(s), alone.c(s));
      }
    }
}

// A constant input under slow decay, through the cell itself: C in bf16 beside C in float32.
TEST(MlstmBf16State, KeepsAConstantSignalUnderSlowDecay) {
  const int steps = 1200, dqk = 8, dv = 16, elements = 2 * dqk * dv;
  const double memory = 300;  // tokens
  const auto signal = [&](DType c_type) {
    Decoding d({2, dqk, dv}, MlstmGate::exponential, DType::f32, Regime::typical, 1, steps, c_type);
    oracle::MlstmInputs& in = d.sequences[0].in;
    std::fill(in.k.begin(), in.k.end(), 1.0);
    std::fill(in.v.begin(), in.v.end(), 1.0);
    std::fill(in.i.begin(), in.i.end(), 0.0);
    std::fill(in.log_f.begin(), in.log_f.end(), std::log1p(-1 / memory));
    std::memset(d.sequences[0].record.data(), 0, d.sequences[0].record.size());
    for (int t = 0; t < steps; ++t) d.step({0});
    return d.c(0);
  };
  const std::vector<double> exact = signal(DType::f32), ours = signal(DType::bf16);
  EXPECT_NEAR(exact[0], memory, 0.05 * memory);
  double mean = 0, square = 0;
  for (int i = 0; i < elements; ++i) {
    const double relative = ours[std::size_t(i)] / exact[std::size_t(i)] - 1;
    mean += relative / elements;
    square += relative * relative / elements;
  }
  EXPECT_LE(std::abs(mean), 4 * std::sqrt((square - mean * mean) / elements));
  EXPECT_GT(square, 0);

  const auto ring = static_cast<int>(MlstmRing::tokens_for(dqk, dv));
  const double keep = std::pow(1 - 1 / memory, ring);
  float nearest = 0;
  for (int t = 0; t < steps; t += ring)
    nearest = bf16_to_f32(f32_to_bf16(static_cast<float>(keep * nearest + (1 - keep) * memory)));
  EXPECT_LE(nearest, (1 - 0.12) * exact[0]);
  EXPECT_GE(nearest, (1 - 0.82) * exact[0]);
}

TEST(MlstmBf16State, NanStaysInItsHeadAndColumn) {
  const int steps = 12, bad = 2, dv = 40;
  Decoding d({2, 20, dv}, MlstmGate::exponential, DType::f32, Regime::typical, 1, steps,
             DType::bf16);
  Decoding clean = d;
  d.sequences[0].in.v[bad * 2 * dv + dv + 3] = NAN;
  for (int t = 0; t < steps; ++t) {
    d.step({0});
    clean.step({0});
  }
  for (int t = 0; t < steps; ++t)
    for (int x = 0; x < 2 * dv; ++x) {
      const auto at = static_cast<std::size_t>(t * 2 * dv + x);
      if (t >= bad && x == dv + 3)
        EXPECT_TRUE(std::isnan(d.sequences[0].h[at])) << t << " " << x;
      else
        EXPECT_EQ(d.sequences[0].h[at], clean.sequences[0].h[at]) << t << " " << x;
    }
}

TEST(MlstmBf16State, NeedsARingAndACard) {
  Decoding d({2, 8, 8}, MlstmGate::exponential, DType::f32, Regime::typical, 1, 4, DType::bf16);
  d.pends = false;
  expect_refused([&] { d.step({0}); }, "bf16 with room for pending tokens");
}

}  // namespace
}  // namespace xlstm::ops::test
