// What tests/ops/linear_test.cpp does not reach: more than one tile both ways, high tiles, and rows
// that are and are not aligned to the 16 bytes of a vector load.

#include "ops/linear.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "ops/support.hpp"

namespace xlstm::ops {
namespace {

constexpr DType kXTypes[] = {DType::f32, DType::bf16};
constexpr DType kWTypes[] = {DType::f32, DType::bf16, DType::f16};

// Whole numbers up to 8 either way: every sum in these tests is exact in float32, in any order.
std::vector<double> whole_numbers(std::mt19937& random, std::int64_t count) {
  std::uniform_int_distribution<int> number(-8, 8);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = number(random);
  return values;
}

struct Problem {
  std::int64_t rows, outputs, depth;
};

// y += x W^T + b, exactly, with gaps of so many numbers after the rows, and W in so many matrices.
void expect_exact(std::mt19937& random, const Problem& p, DType x_type, DType w_type,
                  std::int64_t x_gap, std::int64_t w_gap, std::int64_t matrices = 1) {
  SCOPED_TRACE(std::string(to_string(x_type)) + " x " + to_string(w_type) + ", " +
               std::to_string(p.rows) + " rows, " + std::to_string(p.outputs) + " outputs, depth " +
               std::to_string(p.depth) + ", gaps " + std::to_string(x_gap) + " and " +
               std::to_string(w_gap));
  const std::vector<double> x = whole_numbers(random, p.rows * p.depth),
                            w = whole_numbers(random, p.outputs * p.depth),
                            b = whole_numbers(random, p.outputs),
                            before = whole_numbers(random, p.rows * p.outputs);
  test::Array x_array = test::Array::of(x_type, {p.rows, p.depth}, x, x_gap),
              w_array = test::Array::of(w_type, {p.outputs, p.depth}, w, w_gap),
              b_array = test::Array::of(w_type, {p.outputs}, b),
              y_array = test::Array::of(DType::f32, {p.rows, p.outputs}, before, 3);
  std::vector<Tensor> weights, biases;
  for (std::int64_t i = 0; i < matrices; ++i) {  // the first are empty if there are many
    const std::int64_t begin = p.outputs * i * i / (matrices * matrices);
    const std::int64_t count = p.outputs * (i + 1) * (i + 1) / (matrices * matrices) - begin;
    weights.push_back(w_array.tensor().rows(begin, count));
    biases.push_back(b_array.tensor().rows(begin, count));
  }
  Context context(test_device());
  run_alone(context, linear,
            {.x = x_array.tensor(),
             .w = weights,
             .b = biases,
             .y = y_array.tensor(),
             .accumulate = true});
  context.synchronize();
  std::vector<float> want(before.size());
  for (std::int64_t t = 0; t < p.rows; ++t) {
    for (std::int64_t n = 0; n < p.outputs; ++n) {
      const double *xs = &x[static_cast<std::size_t>(t * p.depth)],
                   *ws = &w[static_cast<std::size_t>(n * p.depth)];
      double sum = 0;
      for (std::int64_t k = 0; k < p.depth; ++k) sum += xs[k] * ws[k];
      const auto i = static_cast<std::size_t>(t * p.outputs + n);
      want[i] = static_cast<float>(before[i] + b[static_cast<std::size_t>(n)] + sum);
    }
  }
  EXPECT_TRUE(y_array.floats() == want);
  EXPECT_TRUE(y_array.gaps_untouched());
}

TEST(LinearOnCuda, SeveralTilesBothWays) {
  std::mt19937 random(11);
  for (const DType x : kXTypes)
    for (const DType w : kWTypes)
      for (const Problem& p : {Problem{70, 200, 96}, Problem{64, 128, 32}, Problem{131, 67, 104}})
        expect_exact(random, p, x, w, 0, 0);
}

TEST(LinearOnCuda, HighTiles) {
  std::mt19937 random(12);
  expect_exact(random, {129, 4099, 5}, DType::f32, DType::bf16, 0, 0);
  expect_exact(random, {130, 4090, 16}, DType::bf16, DType::f16, 0, 0);
  expect_exact(random, {129, 8190, 8}, DType::bf16, DType::bf16, 0, 0);
  expect_exact(random, {131, 8065, 35}, DType::bf16, DType::bf16, 5, 1);
}

// More than share a launch, and some without outputs.
TEST(LinearOnCuda, GroupsOfMatrices) {
  std::mt19937 random(14);
  for (const DType x : kXTypes)
    for (const DType w : kWTypes)
      for (const std::int64_t matrices : {2, 4, 5, 9, 40}) {
        expect_exact(random, {70, 300, 40}, x, w, 0, 0, matrices);
        expect_exact(random, {3, 90, 40}, x, w, 0, 0, matrices);
      }
  expect_exact(random, {129, 4099, 5}, DType::f32, DType::bf16, 0, 0, 6);
}

TEST(LinearOnCuda, AlignedRowsAndOthers) {
  std::mt19937 random(13);
  for (const DType x : kXTypes)
    for (const DType w : kWTypes)
      for (const std::int64_t rows : {1, 3, 16, 40})
        for (const std::int64_t depth : {768, 777})
          for (const std::int64_t x_gap : {0, 1, 7})
            for (const std::int64_t w_gap : {0, 1, 7})
              expect_exact(random, {rows, 21, depth}, x, w, x_gap, w_gap);
}

// One row of x and of W, which may begin anywhere, against the same rows where vector loads do.
TEST(LinearOnCuda, AlignmentDoesNotChangeTheBitsOfFewRows) {
  std::mt19937 random(14);
  constexpr std::int64_t kDepth = 1100, kOutputs = 9, kRows = 5;
  for (const DType x_type : kXTypes) {
    for (const DType w_type : kWTypes) {
      std::normal_distribution<double> normal;
      std::vector<double> x(kRows * kDepth), w(kOutputs * kDepth);
      for (double& value : x) value = normal(random);
      for (double& value : w) value = normal(random);
      std::vector<std::vector<std::byte>> results;
      for (const std::int64_t gap : {4, 0, 3}) {  // 1104 numbers are a multiple of 16 bytes
        test::Array x_array = test::Array::of(x_type, {kRows, kDepth}, x, gap),
                    w_array = test::Array::of(w_type, {kOutputs, kDepth}, w, gap),
                    y(DType::f32, {kRows, kOutputs});
        const Tensor weight = w_array.tensor();
        Context context(test_device());
        run_alone(context, linear,
                  {.x = x_array.tensor(), .w = {&weight, 1}, .b = {}, .y = y.tensor()});
        context.synchronize();
        results.push_back(y.bytes());
      }
      EXPECT_TRUE(results[0] == results[1] && results[0] == results[2])
          << to_string(x_type) << " x " << to_string(w_type);
    }
  }
}

TEST(LinearOnCuda, NothingToDo) {
  Context context(test_device());
  test::Array x(DType::f32, {2, 8}), w(DType::bf16, {3, 8}), y(DType::f32, {2, 3});
  const Tensor none = w.tensor().rows(0, 0), all = w.tensor();
  run_alone(context, linear,
            {.x = x.tensor(), .w = {&none, 1}, .b = {}, .y = y.tensor().cols(0, 0)});
  run_alone(context, linear,
            {.x = x.tensor().rows(0, 0), .w = {&all, 1}, .b = {}, .y = y.tensor().rows(0, 0)});
  EXPECT_TRUE(y.gaps_untouched());
  for (const float value : y.floats()) EXPECT_TRUE(std::isnan(value));
}

}  // namespace
}  // namespace xlstm::ops
