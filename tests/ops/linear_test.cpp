#include "ops/linear.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "ops/cpu/matmul.hpp"

namespace xlstm::ops {
namespace {

TEST(Linear, SumsProducts) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Context context({}, 2);
  for (std::int64_t t : {1, 3, 20}) {
    const std::int64_t k = 37;
    const std::int64_t n = 11;
    std::vector<float> x(t * k), w(n * k), y(t * n, NAN);
    for (float& v : x) v = normal(random);
    for (float& v : w) v = normal(random);
    const Tensor wt = Tensor::dense(w.data(), DType::f32, {n, k});
    const LinearArgs args{.x = Tensor::dense(x.data(), DType::f32, {t, k}),
                          .w = {&wt, 1},
                          .b = {},
                          .y = Tensor::dense(y.data(), DType::f32, {t, n})};
    context.start_measuring();
    linear(context, args);
    context.finish_measuring();
    linear(context, args);
    for (std::int64_t i = 0; i < t; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (std::int64_t p = 0; p < k; ++p) sum += double(x[i * k + p]) * w[j * k + p];
        EXPECT_NEAR(y[i * n + j], sum, 1e-5);
      }
  }
}

}  // namespace
}  // namespace xlstm::ops
