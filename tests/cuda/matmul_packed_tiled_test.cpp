// Products of many rows and packed weights on cards of capability 9.0: sizes that fill no tile,
// listed weights, SwiGLU, graphs, and that results are those of the weights themselves.

#if defined(XLSTM_TEST_ON_CARD)

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/cuda_device.hpp"
#include "cuda/matmul_packed_support.hpp"
#include "ops/cuda/sm90/matmul.hpp"
#include "ops/cuda/sm90/matmul_packed_tiled_plan.hpp"
#include "ops/linear.hpp"

namespace xlstm::ops {
namespace {

using cuda::MatmulKernel;
using cuda::MatmulPlan;
using cuda::PackedTiledPlan;
using test::Case;
using test::no_card;
using test::normal;
using test::Operands;
using test::whole;
using test::whole_numbers;

std::string describe(const Case& c, int width) {
  return std::to_string(c.rows) + " x " + std::to_string(c.depth) + ", " +
         std::to_string(c.outputs.size()) + " weights, tiles of " + std::to_string(width);
}

TEST(PackedTiledMatmulOnCuda, EveryWidthIsExact) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(51);
  int number = 0;
  for (const Case& c :
       {Case{129, 128, {8}}, Case{1, 8, {8, 16}}, Case{300, 136, {264, 96, 8}},
        Case{256, 64, {512}}, Case{257, 704, {264, 96, 8, 40}}, Case{513, 512, {136, 72}},
        Case{192, 2744, {264}}, Case{2310, 192, {320, 8}}, Case{700, 328, {1032, 2056}},
        Case{260, 10944, {520}}, Case{2560, 640, {2304}}}) {
    Operands p = whole(random, c.rows, c.outputs, c.depth);
    const std::vector<double> products = p.products(),
                              old = whole_numbers(random, p.rows * p.columns);
    std::vector<PackedTiledPlan> plans;
    for (const int width : cuda::kPackedTiledRows) plans.push_back({width});
    for (const int width : cuda::kStreamKRows) plans.push_back({width, true});
    for (const PackedTiledPlan& plan : plans) {
      for (const auto& [type, accumulate] :
           {std::pair{DType::f32, false}, {DType::f32, true}, {DType::bf16, false}}) {
        SCOPED_TRACE(describe(c, plan.rows) + (plan.stream_k ? ", stream-K, " : ", ") +
                     to_string(type) + (accumulate ? ", added" : ""));
        test::expect_exact(p, products, old, plan, type, accumulate, ++number % 8 == 0 ? 20 : 2,
                           cuda::kPackedTiledPartials);
      }
    }
  }
}

TEST(PackedTiledMatmulOnCuda, ResultsAreThoseOfTheWeights) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(52);
  for (const Case& c : {Case{300, 4096, {264, 64}}, Case{600, 1000, {512}}, Case{129, 10944, {136}},
                        Case{1100, 768, {40, 1040, 40}}, Case{2100, 712, {2064, 264}}}) {
    Operands p = normal(random, c.rows, c.outputs, c.depth, 0.02);
    test::Array same(DType::f32, {p.rows, p.columns});
    Context context(test_device());
    cuda::Product product = p.product(same.tensor());
    ASSERT_TRUE(cuda::planned_product(context, product,
                                      MatmulPlan{MatmulKernel::tiled, 256, 256, 256, 1, 0, 0}));
    for (const int width : cuda::kPackedTiledRows) {
      for (int i = 0; i < 20; ++i) {
        SCOPED_TRACE(describe(c, width));
        test::Array y(DType::f32, {p.rows, p.columns});
        product.y = y.tensor();
        ASSERT_TRUE(cuda::planned_product(context, product, PackedTiledPlan{width}));
        context.synchronize();
        ASSERT_EQ(y.bytes(), same.bytes());
      }
    }
  }
}

TEST(PackedTiledMatmulOnCuda, EveryWidthFormsSwiglu) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(53);
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const auto& [rows, f, depth] :
         {std::tuple<std::int64_t, std::int64_t, std::int64_t>{150, 200, 520},
          {400, 72, 136},
          {1000, 1096, 256},
          {2100, 1160, 264}}) {
      // Whole numbers have the same sums in the order of stream-K.
      for (const bool stream_k : {false, true}) {
        Operands p = stream_k ? whole(random, rows, {f, f}, depth)
                              : normal(random, rows, {f, f}, depth, 0.1);
        test::Array same(type, {rows, f}, 8);
        Context context(test_device());
        context.arena().reserve(cuda::kPackedTiledPartials);
        cuda::Product product = p.product(same.tensor());
        product.swiglu = true;
        ASSERT_TRUE(cuda::planned_product(context, product,
                                          MatmulPlan{MatmulKernel::tiled, 256, 256, 128, 1, 0, 0}));
        const auto expect_same = [&](int width) {
          SCOPED_TRACE(describe({rows, depth, {f, f}}, width) + ", " + to_string(type) +
                       (stream_k ? ", stream-K" : ""));
          test::Array y(type, {rows, f}, 8);
          product.y = y.tensor();
          ASSERT_TRUE(cuda::planned_product(context, product, PackedTiledPlan{width, stream_k}));
          context.synchronize();
          EXPECT_EQ(y.bytes(), same.bytes());
          EXPECT_TRUE(y.gaps_untouched());
        };
        if (stream_k)
          for (const int width : cuda::kStreamKRows) expect_same(width);
        else
          for (const int width : cuda::kPackedTiledRows) expect_same(width);
      }
    }
  }
}

TEST(PackedTiledMatmulOnCuda, AGraphReadsWhatIsThereWhenItRuns) {
  if (no_card()) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(54);
  const Device device = test_device();
  constexpr std::int64_t kRows = 600;
  Operands p = whole(random, kRows, {1024}, 1160);
  const std::vector<double> products = p.products();
  for (Tensor& w : p.w_tensors) w.data = nullptr;  // else it would be read
  test::Array y = test::Array::of(DType::f32, {kRows, p.columns}, products);
  Context context(device);
  context.arena().reserve(cuda::kPackedTiledPartials);
  const LinearArgs args{.x = p.x[0].tensor(),
                        .w = p.w_tensors,
                        .b = p.b_tensors,
                        .y = y.tensor(),
                        .accumulate = true,
                        .packed = p.packed_tensors};
  xlstm::cuda::begin_capture(context.stream(), device);
  for (int i = 0; i < 2; ++i) linear(context, args);
  void* const graph = xlstm::cuda::end_capture(context.stream(), device);
  xlstm::cuda::launch_graph(graph, context.stream(), device);
  context.synchronize();
  std::vector<double> want = products;
  for (double& value : want) value *= 3;
  EXPECT_EQ(test::max_error(y.values(), want), 0);
  for (std::int64_t t = 0; t < kRows; ++t)
    for (std::int64_t k = 0; k < p.depth; ++k)
      p.x[0].set(t, k, static_cast<double>((t * 7 + k * 3) % 9 - 4));
  const std::vector<double> changed = p.products();
  for (std::size_t i = 0; i < want.size(); ++i) want[i] += 4 * changed[i];
  for (int i = 0; i < 2; ++i) xlstm::cuda::launch_graph(graph, context.stream(), device);
  context.synchronize();
  xlstm::cuda::destroy_graph(graph, device);
  EXPECT_EQ(test::max_error(y.values(), want), 0);
}

}  // namespace
}  // namespace xlstm::ops

#endif
