#include "ops/activation.hpp"

#include <cmath>

#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {
namespace {

constexpr DType kResultTypes[] = {DType::f32, DType::bf16};

TEST(Swiglu, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(1);
    for (DType dtype : kResultTypes) {
      Errors errors;
      for (int rows : {1, 3})
        for (int width : {1, 7, 16, 33, 5504}) {
          Array gate = Array::random(random, DType::f32, {rows, width}, 4.0, 0.0, 2);
          Array up = Array::random(random, DType::f32, {rows, width}, 1.0, 0.0, 1);
          Array y(dtype, {rows, width}, 3);
          Context context(test_device(), 2);
          run<SwigluArgs>(context, swiglu,
                          {.gate = gate.tensor(), .up = up.tensor(), .y = y.tensor()});
          errors.add(y.values(), oracle::swiglu(gate.values(), up.values()),
                     oracle::swiglu(gate.floats(), up.floats()), dtype);
          EXPECT_TRUE(y.gaps_untouched());
        }
      errors.expect_at_most_twice_naive(to_string(dtype));
    }
  });
}

TEST(Swiglu, ExtremeInputsStayWhereTheyAre) {
  for_each_isa([] {
    Array gate = Array::of(DType::f32, {1, 21},
                           {-200, -104, -90, -87,  -50, -1e-3, -0.0, 1e-30, 1e-3, 1,       50,
                            87,   90,   200, 1e30, NAN, 1,     2,    3,     4,    INFINITY});
    Array up = Array::of(DType::f32, {1, 21}, std::vector<double>(21, 1.0));
    Array y(DType::f32, {1, 21});
    Context context(test_device(), 1);
    run<SwigluArgs>(context, swiglu, {.gate = gate.tensor(), .up = up.tensor(), .y = y.tensor()});
    const std::vector<double> got = y.values(), want = oracle::swiglu(gate.values(), up.values());
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (std::isnan(want[i])) {
        EXPECT_TRUE(std::isnan(got[i])) << i;
      } else if (std::isinf(want[i])) {
        EXPECT_EQ(got[i], want[i]);
      } else {  // e^-x overflows where the result is about 1e-37
        EXPECT_NEAR(got[i], want[i], 4e-7 * std::abs(want[i]) + 1e-37) << gate.values()[i];
      }
    }
  });
}

TEST(Swiglu, RoundsToNearestEven) {
  for_each_isa([] {
    // silu(100) = 100 in float: y = 100 up, chosen to end on ties of bf16 and around them.
    std::vector<double> ups, want;
    for (int i = 0; i < 40; ++i) ups.push_back((1.0 + i / 512.0) / 64);
    Array gate = Array::of(DType::f32, {1, 40}, std::vector<double>(40, 64.0));
    Array up = Array::of(DType::f32, {1, 40}, ups);
    Array y(DType::bf16, {1, 40});
    Context context(test_device(), 1);
    run<SwigluArgs>(context, swiglu, {.gate = gate.tensor(), .up = up.tensor(), .y = y.tensor()});
    for (double u : ups) want.push_back(rounded(DType::bf16, 64 * u));
    EXPECT_EQ(y.values(), want);
  });
}

TEST(Swiglu, RowsDoNotDependOnRowsOrThreads) {
  for_each_isa([] {
    std::mt19937 random(2);
    const int rows = 9, width = 1003;
    Array gate = Array::random(random, DType::f32, {rows, width});
    Array up = Array::random(random, DType::f32, {rows, width});
    Array all(DType::f32, {rows, width});
    Context four(test_device(), 4), one(test_device(), 1);
    run<SwigluArgs>(four, swiglu, {.gate = gate.tensor(), .up = up.tensor(), .y = all.tensor()});
    const std::vector<std::byte> together = all.bytes();
    all.poison();
    for (int t = 0; t < rows; ++t)
      run<SwigluArgs>(one, swiglu,
                      {.gate = gate.tensor().rows(t, 1),
                       .up = up.tensor().rows(t, 1),
                       .y = all.tensor().rows(t, 1)});
    EXPECT_EQ(all.bytes(), together);
  });
}

TEST(SoftCap, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(3);
    Errors errors;
    for (double cap : {30.0, 5.0})
      for (double scale : {1e-4, 1.0, 20.0, 300.0})
        for (int width : {1, 31, 50304}) {
          Array x = Array::random(random, DType::f32, {2, width}, scale, 0.0, 4);
          const std::vector<double> want = oracle::soft_cap(x.values(), cap);
          const std::vector<float> naive = oracle::soft_cap(x.floats(), static_cast<float>(cap));
          Context context(test_device(), 3);
          // In place: a second run would cap twice, so measure by hand.
          context.start_measuring();
          soft_cap(context, {.x = x.tensor(), .cap = static_cast<float>(cap)});
          context.finish_measuring();
          soft_cap(context, {.x = x.tensor(), .cap = static_cast<float>(cap)});
          errors.add(x.values(), want, naive);
          EXPECT_TRUE(x.gaps_untouched());
        }
    errors.expect_at_most_twice_naive("soft_cap");
  });
}

// tanh to the last bits: relative, over its whole range, on both sides of its two formulas.
TEST(SoftCap, IsAccurateEverywhere) {
  for_each_isa([] {
    std::vector<double> inputs;
    for (double x = 1e-7; x < 12; x *= 1.0007)
      for (double sign : {-1.0, 1.0}) inputs.push_back(static_cast<float>(sign * x));
    const auto count = static_cast<std::int64_t>(inputs.size());
    Array x = Array::of(DType::f32, {1, count}, inputs);
    Context context(test_device(), 1);
    soft_cap(context, {.x = x.tensor(), .cap = 1.0F});
    const std::vector<double> got = x.values();
    double worst = 0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const double want = std::tanh(inputs[i]);
      worst = std::max(worst, std::abs(got[i] - want) / std::abs(want));
    }
    EXPECT_LT(worst, 2 * 0x1p-23);
  });
}

TEST(SoftCap, KeepsSpecialValues) {
  for_each_isa([] {
    Array x = Array::of(DType::f32, {1, 6}, {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e38});
    Context context(test_device(), 1);
    soft_cap(context, {.x = x.tensor(), .cap = 30.0F});
    const std::vector<double> got = x.values();
    EXPECT_TRUE(std::isnan(got[0]));
    EXPECT_EQ(got[1], 30.0);
    EXPECT_EQ(got[2], -30.0);
    EXPECT_EQ(got[3], 0.0);
    EXPECT_TRUE(std::signbit(got[4]));
    EXPECT_EQ(got[5], 30.0);
  });
}

TEST(Activation, RefusesBadArguments) {
  Array a(DType::f32, {2, 3}), b(DType::f32, {2, 4}), half(DType::f16, {2, 3});
  Context context(test_device(), 1);
  expect_refused([&] { swiglu(context, {.gate = a.tensor(), .up = b.tensor(), .y = a.tensor()}); },
                 "swiglu: up must be f32[2, 3], found f32[2, 4]");
  expect_refused(
      [&] { swiglu(context, {.gate = a.tensor(), .up = a.tensor(), .y = half.tensor()}); },
      "y must be f32 or bf16[2, 3], found f16[2, 3]");
  expect_refused([&] { soft_cap(context, {.x = half.tensor()}); }, "x must be f32");
  expect_refused([&] { soft_cap(context, {.x = a.tensor(), .cap = 0.0F}); },
                 "cap must be positive");
}

}  // namespace
}  // namespace xlstm::ops::test
