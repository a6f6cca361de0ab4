// Products of packed weights on cards of capability 9.0: all plans, sizes that fill no tile, listed
// weights, SwiGLU, and that results are those of the weights themselves.

#if defined(XLSTM_TEST_ON_CARD)

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "core/cuda_device.hpp"
#include "cuda/matmul_packed_support.hpp"
#include "ops/cuda/sm90/matmul.hpp"
#include "ops/cuda/sm90/matmul_packed_plan.hpp"
#include "ops/linear.hpp"

namespace xlstm::ops {
namespace {

using cuda::MatmulKernel;
using cuda::MatmulPlan;
using cuda::PackedPlan;
using test::Case;
using test::no_card;
using test::normal;
using test::Operands;
using test::whole;
using test::whole_numbers;

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

TEST(PackedMatmulOnCuda, EveryPlanIsExact) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(41);
  int number = 0;
  for (const Case& c :
       {Case{17, 128, {8}}, Case{63, 136, {264, 96, 8}}, Case{64, 192, {512}},
        Case{65, 700, {264, 96, 8, 40}}, Case{100, 512, {136, 72}}, Case{128, 2744, {264}},
        Case{64, 4096, {200, 64}}, Case{129, 520, {264, 8}}, Case{400, 264, {136, 200}}}) {
    Operands p = whole(random, c.rows, c.outputs, c.depth);
    const std::vector<double> products = p.products(),
                              old = whole_numbers(random, p.rows * p.columns);
    for (const PackedPlan& plan : plans(c.rows, c.depth, false)) {
      const DType type = ++number % 3 == 0 ? DType::bf16 : DType::f32;
      const bool accumulate = number % 3 == 1;
      SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.depth) + " x " +
                   std::to_string(p.columns) + ", " + describe(plan) + ", " + to_string(type) +
                   (accumulate ? ", added" : ""));
      test::expect_exact(p, products, old, plan, type, accumulate, number % 8 == 0 ? 20 : 2);
    }
  }
}

// With the depth in as many pieces, the sums have the same order.
TEST(PackedMatmulOnCuda, ResultsAreThoseOfTheWeights) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(42);
  for (const Case& c : {Case{64, 4096, {264, 64}}, Case{40, 1000, {512}}, Case{128, 10944, {136}},
                        Case{128, 768, {40, 40, 40}}, Case{200, 4096, {264, 64}}}) {
    Operands p = normal(random, c.rows, c.outputs, c.depth, 0.02);
    for (const PackedPlan& plan : plans(c.rows, c.depth, false)) {
      SCOPED_TRACE(std::to_string(c.depth) + " deep, " + describe(plan));
      if (plan.split == 4 || plan.turns(false) > 1 || (plan.split == 2 && c.depth % 256 != 0))
        continue;
      test::Array y(DType::f32, {p.rows, p.columns}), same(DType::f32, {p.rows, p.columns});
      Context context(test_device());
      cuda::Product product = p.product(same.tensor());
      ASSERT_TRUE(
          cuda::planned_product(context, product,
                                MatmulPlan{MatmulKernel::streamed, c.rows > 128 ? 256 : plan.rows,
                                           64, 64, plan.split, 0, 0}));
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
    for (const std::int64_t rows : {50, 100, 300}) {
      constexpr std::int64_t kF = 200, kDepth = 520;
      Operands p = normal(random, rows, {kF, kF}, kDepth, 0.1);
      for (const PackedPlan& plan : plans(rows, kDepth, true)) {
        SCOPED_TRACE(std::to_string(rows) + " rows, " + describe(plan));
        if (plan.split > 1) continue;
        test::Array y(type, {rows, kF}, 8), same(type, {rows, kF}, 8);
        Context context(test_device());
        cuda::Product product = p.product(same.tensor());
        product.swiglu = true;
        ASSERT_TRUE(cuda::planned_product(
            context, product,
            rows > 128 ? MatmulPlan{MatmulKernel::tiled, 256, 256, 128, 1, 0, 0}
                       : MatmulPlan{MatmulKernel::streamed, plan.rows, 64, 32, 1, 0, 0}));
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
