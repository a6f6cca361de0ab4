// Products of packed weights on cards of capability 9.0: all plans, sizes that fill no tile, listed
// weights, SwiGLU, and that results are those of the weights themselves.

#if defined(XLSTM_TEST_ON_CARD)

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda_device.hpp"
#include "core/float_bits.hpp"
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/matmul.hpp"
#include "ops/cuda/sm90/matmul_packed_plan.hpp"
#include "ops/linear.hpp"
#include "ops/packed_support.hpp"
#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops {
namespace {

using cuda::MatmulKernel;
using cuda::MatmulPlan;
using cuda::PackedPlan;

/// Row blocks of W, packed, and x.
struct Operands {
  std::int64_t rows, depth, columns = 0;
  std::vector<test::Array> x, w, b;
  std::vector<test::Packed> packed;
  std::vector<Tensor> w_tensors, b_tensors;
  std::vector<PackedWeights> packed_tensors;

  /// @param number  of row n of W, column k
  template <class Number>
  Operands(std::mt19937& random, std::int64_t rows_, const std::vector<std::int64_t>& outputs,
           std::int64_t depth_, const std::vector<double>& xs, const Number& number)
      : rows(rows_), depth(depth_) {
    x.push_back(test::Array::of(DType::bf16, {rows, depth}, xs, 8 + (8 - depth % 8) % 8));
    std::uniform_int_distribution<int> whole(-4, 4);
    for (const std::int64_t n : outputs) {
      std::vector<double> values(static_cast<std::size_t>(n * depth));
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t k = 0; k < depth; ++k)
          values[static_cast<std::size_t>(i * depth + k)] = number(i, k);
      std::vector<std::uint16_t> bits;
      for (const double value : values) bits.push_back(f32_to_bf16(static_cast<float>(value)));
      packed.emplace_back(std::move(bits), n, depth);
      EXPECT_EQ(packed.back().left_out(), 0);
      w.push_back(test::Array::of(DType::bf16, {n, depth}, values, 8 + (8 - depth % 8) % 8));
      std::vector<double> biases(static_cast<std::size_t>(n));
      for (double& bias : biases) bias = whole(random);
      b.push_back(test::Array::of(DType::f32, {n}, biases));
      columns += n;
    }
    for (test::Array& each : w) w_tensors.push_back(each.tensor());
    for (test::Array& each : b) b_tensors.push_back(each.tensor());
    for (test::Packed& each : packed) packed_tensors.push_back(each.weights());
  }

  /// y before it is added to
  std::vector<double> products() const {
    std::vector<double> y(static_cast<std::size_t>(rows * columns));
    const std::vector<double> xs = x[0].values();
    std::int64_t first = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const auto n = static_cast<std::int64_t>(b[i].values().size());
      const std::vector<double> sums = oracle::linear<double>(
          xs, w[i].values(), b[i].values(), static_cast<int>(depth), static_cast<int>(n));
      for (std::int64_t t = 0; t < rows; ++t)
        for (std::int64_t c = 0; c < n; ++c)
          y[static_cast<std::size_t>(t * columns + first + c)] =
              sums[static_cast<std::size_t>(t * n + c)];
      first += n;
    }
    return y;
  }
};

std::vector<double> whole_numbers(std::mt19937& random, std::int64_t count) {
  std::uniform_int_distribution<int> number(-4, 4);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = number(random);
  return values;
}

std::vector<double> normal_numbers(std::mt19937& random, std::int64_t count, double scale = 1) {
  std::normal_distribution<double> number(0, scale);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = test::rounded(DType::bf16, number(random));
  return values;
}

/// Whole numbers, whose sums are exact in any order: a row has one large number, so that its ones
/// and zeros are listed, up to 8 in each tile.
Operands whole(std::mt19937& random, std::int64_t rows, const std::vector<std::int64_t>& outputs,
               std::int64_t depth) {
  std::uniform_int_distribution<int> number(2, 4), sign(0, 1), place(0, 127);
  std::map<std::pair<std::int64_t, std::int64_t>, int> listed;
  return Operands(random, rows, outputs, depth, whole_numbers(random, rows * depth),
                  [&](std::int64_t n, std::int64_t k) -> double {
                    if (n == 0 && k == 0) listed.clear();
                    if (k == 17 * n % depth) return 65536;
                    const int small = place(random);
                    if (small < 2 && ++listed[{n / 8, k / 128}] <= PackedTile::kMostPatches)
                      return small;
                    return number(random) * (sign(random) * 2 - 1);
                  });
}

std::vector<PackedPlan> plans(std::int64_t rows, std::int64_t depth, bool swiglu) {
  std::vector<PackedPlan> all;
  for (const int tiles : {6, 8, 10, 16, 22, 24})
    for (const int split : {1, 2, 4})
      for (const int x_stages : {0, 2})
        if (split <= (depth + 127) / 128)
          all.push_back({rows <= 64 ? 64 : 128, swiglu ? tiles / 2 : tiles, split, x_stages});
  return all;
}

std::string describe(const PackedPlan& p) {
  return std::to_string(p.rows) + " rows, " + std::to_string(p.height) + " tiles, split " +
         std::to_string(p.split) + ", " + std::to_string(p.x_stages) + " stages of x";
}

bool no_card() { return cuda::level(test_device()) != cuda::Level::sm90; }

struct Case {
  std::int64_t rows, depth;
  std::vector<std::int64_t> outputs;
};

TEST(PackedMatmulOnCuda, EveryPlanIsExact) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(41);
  int number = 0;
  for (const Case& c : {Case{17, 128, {8}}, Case{63, 136, {264, 96, 8}}, Case{64, 192, {512}},
                        Case{65, 700, {264, 96, 8, 40}}, Case{100, 512, {136, 72}},
                        Case{128, 2744, {264}}, Case{64, 4096, {200, 64}}}) {
    Operands p = whole(random, c.rows, c.outputs, c.depth);
    const std::vector<double> products = p.products(),
                              old = whole_numbers(random, p.rows * p.columns);
    for (const PackedPlan& plan : plans(c.rows, c.depth, false)) {
      const DType type = ++number % 3 == 0 ? DType::bf16 : DType::f32;
      const bool accumulate = number % 3 == 1;
      SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.depth) + " x " +
                   std::to_string(p.columns) + ", " + describe(plan) + ", " + to_string(type) +
                   (accumulate ? ", added" : ""));
      std::vector<double> want = products;
      if (accumulate)
        for (std::size_t i = 0; i < want.size(); ++i) want[i] += old[i];
      want = test::rounded(type, want);
      std::vector<std::byte> first;
      for (int i = 0; i < (number % 8 == 0 ? 20 : 2); ++i) {
        test::Array y = accumulate ? test::Array::of(type, {p.rows, p.columns}, old, 8)
                                   : test::Array(type, {p.rows, p.columns}, 8);
        Context context(test_device());
        ASSERT_TRUE(cuda::planned_product(context,
                                          {.x = p.x[0].tensor(),
                                           .w = p.w_tensors,
                                           .b = p.b_tensors,
                                           .y = y.tensor(),
                                           .accumulate = accumulate,
                                           .packed = p.packed_tensors},
                                          plan));
        context.synchronize();
        ASSERT_EQ(test::max_error(y.values(), want), 0);
        ASSERT_TRUE(y.gaps_untouched());
      }
    }
  }
}

// With the depth in as many pieces, the sums have the same order.
TEST(PackedMatmulOnCuda, ResultsAreThoseOfTheWeights) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(42);
  for (const Case& c : {Case{64, 4096, {264, 64}}, Case{40, 1000, {512}}, Case{128, 10944, {136}},
                        Case{128, 768, {40, 40, 40}}}) {
    std::vector<double> numbers = normal_numbers(random, 1 << 16, 0.02);
    std::size_t at = 0;
    Operands p(random, c.rows, c.outputs, c.depth, normal_numbers(random, c.rows * c.depth),
               [&](std::int64_t, std::int64_t) { return numbers[at++ * 7919 % numbers.size()]; });
    for (const PackedPlan& plan : plans(c.rows, c.depth, false)) {
      SCOPED_TRACE(std::to_string(c.depth) + " deep, " + describe(plan));
      if (plan.split == 4 || plan.turns(false) > 1 || (plan.split == 2 && c.depth % 256 != 0))
        continue;
      test::Array y(DType::f32, {p.rows, p.columns}), same(DType::f32, {p.rows, p.columns});
      Context context(test_device());
      cuda::Product product{.x = p.x[0].tensor(),
                            .w = p.w_tensors,
                            .b = p.b_tensors,
                            .y = same.tensor(),
                            .packed = p.packed_tensors};
      ASSERT_TRUE(cuda::planned_product(
          context, product,
          MatmulPlan{MatmulKernel::streamed, plan.rows, 64, 64, plan.split, 0, 0}));
      product.y = y.tensor();
      ASSERT_TRUE(cuda::planned_product(context, product, plan));
      context.synchronize();
      EXPECT_EQ(y.bytes(), same.bytes());
    }
  }
}

TEST(PackedMatmulOnCuda, EveryPlanFormsSwiglu) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(43);
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::int64_t rows : {50, 100}) {
      constexpr std::int64_t kF = 200, kDepth = 520;
      Operands p(
          random, rows, {kF, kF}, kDepth, normal_numbers(random, rows * kDepth),
          [&, numbers = normal_numbers(random, 1 << 12, 0.1)](std::int64_t n, std::int64_t k) {
            return numbers[static_cast<std::size_t>(n * 577 + k * 31) % numbers.size()];
          });
      for (const PackedPlan& plan : plans(rows, kDepth, true)) {
        SCOPED_TRACE(std::to_string(rows) + " rows, " + describe(plan));
        if (plan.split > 1) continue;
        test::Array y(type, {rows, kF}, 8), same(type, {rows, kF}, 8);
        Context context(test_device());
        cuda::Product product{.x = p.x[0].tensor(),
                              .w = p.w_tensors,
                              .b = p.b_tensors,
                              .y = same.tensor(),
                              .swiglu = true,
                              .packed = p.packed_tensors};
        ASSERT_TRUE(cuda::planned_product(
            context, product, MatmulPlan{MatmulKernel::streamed, plan.rows, 64, 32, 1, 0, 0}));
        product.y = y.tensor();
        ASSERT_TRUE(cuda::planned_product(context, product, plan));
        context.synchronize();
        // Groups that take stages in turn have another order.
        const double error = plan.turns(true) == 1 ? 0 : type == DType::f32 ? 1e-5 : 8e-3;
        EXPECT_LE(test::max_error(y.values(), same.values()), error * test::max_abs(same.values()));
        EXPECT_TRUE(y.gaps_untouched());
      }
    }
  }
}

TEST(PackedMatmulOnCuda, AGraphAddsOnceEachTimeItRuns) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(44);
  const Device device = test_device();
  for (const std::int64_t rows : {40, 128}) {
    Operands p = whole(random, rows, {1024}, 1160);
    const std::vector<double> products = p.products();
    std::vector<double> want = products;
    for (double& value : want) value *= 4;
    test::Array y = test::Array::of(DType::f32, {rows, p.columns}, products);
    Context context(device);
    const LinearArgs args{.x = p.x[0].tensor(),
                          .w = p.w_tensors,
                          .b = p.b_tensors,
                          .y = y.tensor(),
                          .accumulate = true,
                          .packed = p.packed_tensors};
    xlstm::cuda::begin_capture(context.stream(), device);
    linear(context, args);
    void* const graph = xlstm::cuda::end_capture(context.stream(), device);
    for (int i = 0; i < 3; ++i) xlstm::cuda::launch_graph(graph, context.stream(), device);
    context.synchronize();
    xlstm::cuda::destroy_graph(graph, device);
    EXPECT_EQ(test::max_error(y.values(), want), 0);
  }
}

}  // namespace
}  // namespace xlstm::ops

#endif
