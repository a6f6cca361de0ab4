#include "ops/loss.hpp"

#include <cmath>

#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

/// Loss and gradient straight from the definition.
double reference(std::vector<double>& x, const std::vector<std::int32_t>& targets, double cap,
                 double scale) {
  const std::size_t width = x.size() / targets.size();
  double loss = 0;
  for (std::size_t t = 0; t < targets.size(); ++t) {
    double* row = x.data() + t * width;
    double sum = 0, most = -INFINITY;
    std::vector<double> y, slope;
    for (std::size_t j = 0; j < width; ++j) {
      const double tanh = cap == 0 ? 0 : std::tanh(row[j] / cap);
      y.push_back(cap == 0 ? row[j] : cap * tanh);
      slope.push_back(1 - tanh * tanh);
      most = std::max(most, y.back());
    }
    for (double value : y) sum += std::exp(value - most);
    for (std::size_t j = 0; j < width; ++j) {
      const double hit = std::int32_t(j) == targets[t] ? 1 : 0;
      row[j] = targets[t] < 0 ? 0 : scale * slope[j] * (std::exp(y[j] - most) / sum - hit);
    }
    if (targets[t] >= 0) loss += std::log(sum) + most - y[std::size_t(targets[t])];
  }
  return loss;
}

TEST(CrossEntropy, MatchesItsDefinition) {
  for_each_isa([] {
    std::mt19937 random(1);
    for (float cap : {0.0F, 30.0F, 2.0F})
      for (int width : {1, 2, 17, 1500})
        for (double scale : {0.1, 3.0, 60.0}) {
          const std::vector<std::int32_t> targets{0, -1, width - 1, width / 2};
          Array logits = Array::random(random, DType::f32, {4, width}, scale, 0.0, 2);
          const Array before = logits;
          std::vector<double> want = logits.values();
          const double want_loss = reference(want, targets, cap, 0.25);
          double loss = 1, kept_loss = 1;
          Context context({}, 2);
          run<CrossEntropyArgs>(context, cross_entropy,
                                {.logits = logits.tensor(),
                                 .targets = targets,
                                 .cap = cap,
                                 .gradient = false,
                                 .loss_sum = &kept_loss});
          EXPECT_EQ(logits.bytes(), before.bytes());
          run<CrossEntropyArgs>(context, cross_entropy,
                                {.logits = logits.tensor(),
                                 .targets = targets,
                                 .cap = cap,
                                 .scale = 0.25F,
                                 .loss_sum = &loss});
          EXPECT_EQ(loss, kept_loss);
          EXPECT_NEAR(loss - 1, want_loss, 1e-6 * std::max(want_loss, 0.1 * scale));
          EXPECT_LE(max_error(logits.values(), want), 1e-5 * max_abs(want) + 2e-8);
          EXPECT_TRUE(logits.gaps_untouched());
        }
  });
}

// Rows do not see each other, so slices and threads change no bit of a gradient; and a NaN stays in
// its row.
TEST(CrossEntropy, RowsAreIndependent) {
  for_each_isa([] {
    std::mt19937 random(2);
    const std::vector<std::int32_t> targets{1, 5, 0};
    Array logits = Array::random(random, DType::f32, {3, 200}), sliced = logits, broken = logits;
    broken.set(1, 7, NAN);
    double loss = 0, slices = 0, nan = 0;
    Context context({}, 3);
    const auto call = [&](Tensor x, std::span<const std::int32_t> some, double* sum) {
      run<CrossEntropyArgs>(context, cross_entropy,
                            {.logits = x, .targets = some, .cap = 30, .loss_sum = sum});
    };
    call(logits.tensor(), targets, &loss);
    for (std::size_t t = 0; t < 3; ++t)
      call(sliced.tensor().rows(std::int64_t(t), 1), {&targets[t], 1}, &slices);
    EXPECT_EQ(logits.bytes(), sliced.bytes());
    EXPECT_DOUBLE_EQ(loss, slices);
    call(broken.tensor(), targets, &nan);
    EXPECT_TRUE(std::isnan(nan));
    const auto got = broken.values(), want = logits.values();
    for (std::size_t at = 0; at < got.size(); ++at) {
      if (at / 200 == 1) continue;
      EXPECT_EQ(got[at], want[at]) << at;
    }
  });
}

TEST(CrossEntropy, RefusesBadArguments) {
  Array logits(DType::f32, {1, 3});
  Context context({}, 1);
  double loss = 0;
  const std::vector<std::int32_t> targets{3};
  expect_refused(
      [&] {
        cross_entropy(context, {.logits = logits.tensor(), .targets = targets, .loss_sum = &loss});
      },
      "targets must be in [0, 3), or -1, found 3");
}

}  // namespace
}  // namespace xlstm::ops::test
