#include "ops/optim.hpp"

#include <cmath>

#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

TEST(Adamw, TenStepsMatchDouble) {
  for_each_isa([] {
    for (double decay : {0.0, 0.1}) {
      std::mt19937 random(1);
      const std::size_t count = 1003;
      const auto size = std::int64_t(count);
      Array w = Array::random(random, DType::f32, {size});
      Array m = Array::of(DType::f32, {size}, std::vector<double>(count, 0.0)), v = m;
      Array copy(DType::bf16, {size});
      std::vector<double> ws = w.values(), ms(count), vs(count);
      Context context({}, 2);
      for (int step = 1; step <= 10; ++step) {
        Array g = Array::random(random, DType::f32, {size}, 0.1);
        const std::vector<double> gs = g.values();
        run<AdamwArgs>(context, adamw,
                       {.w = w.tensor(),
                        .g = g.tensor(),
                        .m = m.tensor(),
                        .v = v.tensor(),
                        .copy = copy.tensor(),
                        .step = step,
                        .lr = 3e-3,
                        .beta1 = 0.9,
                        .beta2 = 0.95,
                        .eps = 1e-8,
                        .weight_decay = decay,
                        .grad_scale = 0.5F});
        for (std::size_t i = 0; i < count; ++i) {
          const double gradient = 0.5 * gs[i];
          ms[i] = 0.9 * ms[i] + 0.1 * gradient;
          vs[i] = 0.95 * vs[i] + 0.05 * gradient * gradient;
          ws[i] *= 1 - 3e-3 * decay;
          ws[i] -= 3e-3 * (ms[i] / (1 - std::pow(0.9, step))) /
                   (std::sqrt(vs[i] / (1 - std::pow(0.95, step))) + 1e-8);
        }
      }
      EXPECT_LE(max_error(w.values(), ws), 2e-6);
      EXPECT_LE(max_error(m.values(), ms), 1e-6 * max_abs(ms));
      EXPECT_LE(max_error(v.values(), vs), 1e-6 * max_abs(vs));
      EXPECT_EQ(copy.values(), rounded(DType::bf16, w.values()));
    }
  });
}

TEST(SquaredNorm, IsInDoubleAndOfOneOrder) {
  for_each_isa([] {
    std::mt19937 random(2);
    for (std::int64_t count : {1, 5, 4096, 4097, 70001}) {
      Array x = Array::random(random, DType::f32, {count}, 1.0, 1.0);
      double want = 3;
      for (double value : x.values()) want += value * value;
      double first = 0;
      for (int threads : {1, 2, 5}) {
        double sum = 3;
        Context context({}, threads);
        run<SquaredNormArgs>(context, squared_norm, {.x = x.tensor(), .sum = &sum});
        EXPECT_NEAR(sum, want, 1e-12 * want);
        if (threads == 1) first = sum;
        EXPECT_EQ(sum, first);
      }
    }
  });
}

TEST(Scale, MultipliesEveryElement) {
  for_each_isa([] {
    std::mt19937 random(3);
    Array x = Array::random(random, DType::f32, {101});
    std::vector<double> want = x.values();
    for (double& value : want) value *= 0.25;
    Context context({}, 2);
    scale(context, {.x = x.tensor(), .factor = 0.25F});
    EXPECT_EQ(x.values(), want);
  });
}

TEST(Adamw, RefusesBadArguments) {
  Array w(DType::f32, {4}), other(DType::f32, {5}), gaps(DType::f32, {2, 2}, 1);
  Context context({}, 1);
  const auto call = [&](Tensor x, Tensor g, std::int64_t step) {
    adamw(context, {.w = x, .g = g, .m = x, .v = x, .copy = {}, .step = step});
  };
  expect_refused([&] { call(w.tensor(), other.tensor(), 1); }, "expected the shape of w");
  expect_refused([&] { call(gaps.tensor(), gaps.tensor(), 1); }, "w must be dense in f32");
  expect_refused([&] { call(w.tensor(), w.tensor(), 0); }, "step must be at least 1, found 0");
}

}  // namespace
}  // namespace xlstm::ops::test
