// The causal convolution and headwise products on CUDA: a thread takes several tokens where there
// are many, and the results are those of few.

#include <gtest/gtest.h>

#include "ops/conv.hpp"
#include "ops/headwise.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

/// Rows [from, to) of `all`, which has `width` columns.
std::vector<double> rows(const std::vector<double>& all, int width, int from, int to) {
  return {all.begin() + std::ptrdiff_t{from} * width, all.begin() + std::ptrdiff_t{to} * width};
}

TEST(MixingOnCuda, ConvolutionsOfManyTokensAreThoseOfFew) {
  constexpr int kWidth = 133;
  const std::vector<std::int32_t> ends = {0, 1, 3, 6, 10, 26, 43, 74, 206, 461, 600};
  const std::size_t sequences = ends.size() - 1;
  std::mt19937 random(1);
  for (const int kernel : {1, 4, 5}) {
    SCOPED_TRACE(kernel);
    const Array x = Array::random(random, DType::f32, {ends.back(), kWidth});
    Array w = Array::random(random, DType::bf16, {kWidth, kernel});
    Array b = Array::random(random, DType::f32, {kWidth});
    const auto window = static_cast<std::size_t>((kernel - 1) * kWidth);
    std::vector<std::vector<float>> before;
    for (std::size_t s = 0; s < sequences; ++s)
      before.push_back(
          Array::random(random, DType::f32, {1, static_cast<int>(window) + 1}).floats());

    // Of sequences [first, last).
    const auto convolve = [&](std::size_t first, std::size_t last,
                              std::vector<std::vector<float>>* records) {
      std::vector<std::int32_t> offsets;
      std::vector<std::byte*> slots;
      for (std::size_t s = first; s <= last; ++s) offsets.push_back(ends[s] - ends[first]);
      for (std::size_t s = first; s < last; ++s)
        slots.push_back(reinterpret_cast<std::byte*>((*records)[s].data()));
      const Batch batch{offsets, slots};
      Array in = Array::of(DType::f32, {offsets.back(), kWidth},
                           rows(x.values(), kWidth, ends[first], ends[last]));
      Array y(DType::f32, {offsets.back(), kWidth});
      const Tensor taps = w.tensor();
      Context context(test_device(), 1);
      run_alone(context, causal_conv,
                CausalConvArgs{.x = in.tensor(),
                               .w = Tensor::dense(taps.data, taps.dtype, {kWidth, 1, kernel}),
                               .b = b.tensor(),
                               .batch = batch,
                               .y = y.tensor()});
      context.synchronize();
      return y.values();
    };
    auto together = before, apart = before;
    const std::vector<double> all = convolve(0, sequences, &together);
    for (std::size_t s = 0; s < sequences; ++s)
      EXPECT_EQ(convolve(s, s + 1, &apart), rows(all, kWidth, ends[s], ends[s + 1])) << s;
    EXPECT_EQ(together, apart);
  }
}

TEST(MixingOnCuda, HeadwiseProductsOfManyTokensAreThoseOfFew) {
  struct Shape {
    int blocks, in, out;
  };
  constexpr int kTokens = 531;
  std::mt19937 random(2);
  for (DType type : {DType::bf16, DType::f16, DType::f32})
    for (const Shape s : {Shape{150, 4, 4}, {2, 64, 80}, {3, 21, 67}, {1, 330, 70}}) {
      SCOPED_TRACE(s.in);
      const int in = s.blocks * s.in, out = s.blocks * s.out;
      const Array x = Array::random(random, DType::f32, {kTokens, in});
      Array w = Array::random(random, type, {out, s.in});
      Array b = Array::random(random, type, {out});
      const auto multiply = [&](int from, int to) {
        Array rows_of_x = Array::of(DType::f32, {to - from, in}, rows(x.values(), in, from, to));
        Array y(DType::f32, {to - from, out});
        const Tensor weights = w.tensor();
        Context context(test_device(), 1);
        run_alone(context, headwise_linear,
                  HeadwiseLinearArgs{
                      .x = rows_of_x.tensor(),
                      .w = Tensor::dense(weights.data, weights.dtype, {s.blocks, s.out, s.in}),
                      .b = b.tensor(),
                      .y = y.tensor()});
        context.synchronize();
        return y.values();
      };
      const std::vector<double> all = multiply(0, kTokens);
      for (const int from : {0, 7, 250, 530})
        EXPECT_EQ(multiply(from, from + 1), rows(all, out, from, from + 1)) << from;
      EXPECT_EQ(multiply(100, 331), rows(all, out, 100, 331));
    }
}

}  // namespace
}  // namespace xlstm::ops::test
