// Products of bf16 matrices whose rows lie where the copies of compute capability 9.0 can take them
// (other ones: linear_test.cpp): every kernel that a card has for them, sizes that fill no tile,
// groups, SwiGLU, sums in bf16, and graphs.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/cuda_device.hpp"
#include "core/float_bits.hpp"
#include "ops/linear.hpp"
#include "ops/support.hpp"
#include "oracle/ops.hpp"

#if defined(XLSTM_TEST_ON_CARD)
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/matmul.hpp"
#include "ops/cuda/sm90/matmul_plan.hpp"
#endif

namespace xlstm::ops {
namespace {

// Sums of these are exact in float32, in any order.
std::vector<double> whole_numbers(std::mt19937& random, std::int64_t count) {
  std::uniform_int_distribution<int> number(-4, 4);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = number(random);
  return values;
}

/// y (+)= x W^T + b of whole numbers, W in row blocks.
struct Exact {
  Exact(std::mt19937& random, std::int64_t rows_, std::vector<std::int64_t> outputs_,
        std::int64_t depth_, DType y_type_, bool accumulate_, std::int64_t gap = 8)
      : rows(rows_), depth(depth_), y_type(y_type_), accumulate(accumulate_) {
    const std::vector<double> xs = whole_numbers(random, rows * depth);
    x.push_back(test::Array::of(DType::bf16, {rows, depth}, xs, gap));
    for (const std::int64_t n : outputs_) columns += n;
    before = whole_numbers(random, rows * columns);
    want = accumulate ? before : std::vector<double>(before.size(), 0.0);
    std::int64_t first = 0;
    for (const std::int64_t n : outputs_) {
      const std::vector<double> ws = whole_numbers(random, n * depth),
                                bs = whole_numbers(random, n);
      w.push_back(test::Array::of(DType::bf16, {n, depth}, ws, gap));
      b.push_back(test::Array::of(DType::f32, {n}, bs));
      const std::vector<double> sums =
          oracle::linear<double>(xs, ws, bs, static_cast<int>(depth), static_cast<int>(n));
      for (std::int64_t t = 0; t < rows; ++t)
        for (std::int64_t i = 0; i < n; ++i)
          want[static_cast<std::size_t>(t * columns + first + i)] +=
              sums[static_cast<std::size_t>(t * n + i)];
      first += n;
    }
    for (test::Array& each : w) w_tensors.push_back(each.tensor());
    for (test::Array& each : b) b_tensors.push_back(each.tensor());
    for (double& value : want) value = test::rounded(y_type, value);
    y.push_back(test::Array::of(y_type, {rows, columns}, before, y_type == DType::f32 ? 4 : 8));
  }

  LinearArgs args() {
    return {.x = x[0].tensor(),
            .w = w_tensors,
            .b = b_tensors,
            .y = y[0].tensor(),
            .accumulate = accumulate};
  }
  void start_again() {
    for (std::int64_t t = 0; t < rows; ++t)
      for (std::int64_t i = 0; i < columns; ++i)
        y[0].set(t, i, before[static_cast<std::size_t>(t * columns + i)]);
  }
  void expect_done() const {
    EXPECT_EQ(test::max_error(y[0].values(), want), 0);
    EXPECT_TRUE(y[0].gaps_untouched());
  }

  std::int64_t rows, depth, columns = 0;
  DType y_type;
  bool accumulate;
  std::vector<test::Array> x, w, b, y;
  std::vector<Tensor> w_tensors, b_tensors;
  std::vector<double> before, want;
};

TEST(MatmulOnCuda, GroupsAndSizesThatFillNoTile) {
  std::mt19937 random(21);
  for (const std::int64_t rows : {17, 64, 65, 129, 257, 300}) {
    for (const DType y : {DType::f32, DType::bf16}) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(std::to_string(rows) + " rows, " + to_string(y) +
                     (accumulate ? ", added" : ""));
        Exact p(random, rows, {136, 8, 72, 264}, 104, y, accumulate);
        Context context(test_device());
        test::run(context, linear, p.args());
        p.expect_done();
      }
    }
  }
}

TEST(MatmulOnCuda, DepthsThatEndOff16Bytes) {
  std::mt19937 random(30);
  for (const std::int64_t rows : {17, 100, 300}) {
    Exact p(random, rows, {136, 8}, 100, DType::f32, false, 4);
    Context context(test_device());
    test::run(context, linear, p.args());
    p.expect_done();
  }
}

TEST(MatmulOnCuda, LeavesWhatLiesBehindItsColumns) {
  std::mt19937 random(29);
  for (const std::int64_t rows : {40, 300}) {
    for (const DType type : {DType::f32, DType::bf16}) {
      constexpr std::int64_t kColumns = 146, kWidth = 152;
      Exact p(random, rows, {136, 10}, 104, type, false);
      test::Array wide = test::Array::random(random, type, {rows, kWidth});
      const std::vector<double> before = wide.values();
      LinearArgs args = p.args();
      args.y = wide.tensor().cols(0, kColumns);
      Context context(test_device());
      test::run(context, linear, args);
      const std::vector<double> after = wide.values();
      for (std::int64_t t = 0; t < rows; ++t)
        for (std::int64_t i = 0; i < kWidth; ++i)
          ASSERT_EQ(after[static_cast<std::size_t>(t * kWidth + i)],
                    i < kColumns ? p.want[static_cast<std::size_t>(t * kColumns + i)]
                                 : before[static_cast<std::size_t>(t * kWidth + i)])
              << rows << " rows, column " << i;
    }
  }
}

TEST(MatmulOnCuda, FewRowsMayGiveBf16) {
  std::mt19937 random(22);
  for (const DType y : {DType::f32, DType::bf16}) {
    for (const std::int64_t rows : {1, 5, 16}) {
      Exact p(random, rows, {24, 40}, 96, y, true);
      Context context(test_device());
      test::run(context, linear, p.args());
      p.expect_done();
    }
  }
}

TEST(MatmulOnCuda, AGraphAddsOnceEachTimeItRuns) {
  std::mt19937 random(23);
  const Device device = test_device();
  for (const std::int64_t rows : {40, 260}) {
    Exact p(random, rows, {64, 136}, 72, DType::f32, true);
    Context context(device);
    run_alone(context, linear, p.args());  // what is made once is there
    context.synchronize();
    p.start_again();
    xlstm::cuda::begin_capture(context.stream(), device);
    linear(context, p.args());
    void* const graph = xlstm::cuda::end_capture(context.stream(), device);
    for (int i = 0; i < 3; ++i) xlstm::cuda::launch_graph(graph, context.stream(), device);
    context.synchronize();
    xlstm::cuda::destroy_graph(graph, device);
    for (std::size_t i = 0; i < p.want.size(); ++i) p.want[i] += 2 * (p.want[i] - p.before[i]);
    p.expect_done();
  }
}

TEST(MatmulOnCuda, OtherRowsDoNotChangeARow) {
  std::mt19937 random(24);
  constexpr std::int64_t kDepth = 1544, kOutputs = 200;
  test::Array w = test::Array::random(random, DType::bf16, {kOutputs, kDepth});
  const Tensor weight = w.tensor();
  for (const std::int64_t rows : {50, 100, 200, 300}) {
    test::Array x = test::Array::random(random, DType::bf16, {rows, kDepth}),
                y(DType::f32, {rows, kOutputs}), again(DType::f32, {rows, kOutputs});
    Context context(test_device());
    test::run(context, linear, {.x = x.tensor(), .w = {&weight, 1}, .b = {}, .y = y.tensor()});
    for (std::int64_t t = 0; t < rows; ++t)
      if (t != 33)
        for (std::int64_t k = 0; k < kDepth; ++k) x.set(t, k, t % 7);
    test::run(context, linear, {.x = x.tensor(), .w = {&weight, 1}, .b = {}, .y = again.tensor()});
    const std::vector<float> one = y.floats(), two = again.floats();
    EXPECT_TRUE(std::equal(one.begin() + 33 * kOutputs, one.begin() + 34 * kOutputs,
                           two.begin() + 33 * kOutputs));
    EXPECT_FALSE(one == two);
  }
}

// silu(x W_0^T + b_0) (x W_1^T + b_1) of random numbers
struct Swiglu {
  Swiglu(std::mt19937& random, std::int64_t rows, std::int64_t f, std::int64_t depth, DType y_type,
         bool biased)
      : x(test::Array::random(random, DType::bf16, {rows, depth})), y(y_type, {rows, f}, 8) {
    std::vector<double> sums[2];
    std::vector<float> naive_sums[2];
    const std::vector<double> xs = x.values();
    for (int i = 0; i < 2; ++i) {
      w.push_back(test::Array::random(random, DType::bf16, {f, depth}, 0.1));
      b.push_back(test::Array::random(random, DType::bf16, {f}));
      const std::vector<double> ws = w.back().values();
      const std::vector<double> bs = biased ? b.back().values() : std::vector<double>();
      sums[i] = oracle::linear<double>(xs, ws, bs, static_cast<int>(depth), static_cast<int>(f));
      naive_sums[i] = oracle::linear<float>({xs.begin(), xs.end()}, {ws.begin(), ws.end()},
                                            {bs.begin(), bs.end()}, static_cast<int>(depth),
                                            static_cast<int>(f));
    }
    want = oracle::swiglu<double>(sums[0], sums[1]);
    naive = oracle::swiglu<float>(naive_sums[0], naive_sums[1]);
    for (test::Array& each : w) w_tensors.push_back(each.tensor());
    if (biased)
      for (test::Array& each : b) b_tensors.push_back(each.tensor());
  }
  LinearSwigluArgs args() {
    return {.x = x.tensor(), .w = w_tensors, .b = b_tensors, .y = y.tensor()};
  }

  test::Array x, y;
  std::vector<test::Array> w, b;
  std::vector<Tensor> w_tensors, b_tensors;
  std::vector<double> want;
  std::vector<float> naive;
};

TEST(MatmulOnCuda, Swiglu) {
  std::mt19937 random(25);
  for (const DType y : {DType::f32, DType::bf16}) {
    test::Errors errors;
    for (const std::int64_t rows : {1, 17, 100, 257}) {
      Swiglu p(random, rows, 152, 88, y, rows % 2 == 1);
      Context context(test_device());
      test::run(context, linear_swiglu, p.args());
      errors.add(p.y.values(), p.want, p.naive, y);
      EXPECT_TRUE(p.y.gaps_untouched());
    }
    errors.expect_at_most_twice_naive(to_string(y));
  }
}

#if defined(XLSTM_TEST_ON_CARD)

using cuda::MatmulKernel;
using cuda::MatmulPlan;

std::vector<MatmulPlan> plans(std::int64_t rows, bool swiglu) {
  std::vector<MatmulPlan> all;
  for (const int columns : {128, 192, 256})
    all.push_back({MatmulKernel::tiled, 256, columns, swiglu ? columns / 2 : columns, 1, 0, 0});
  if (rows > cuda::kMatmulStreamedRows) return all;
  const int held = rows <= 64 ? 64 : rows <= 128 ? 128 : 256;
  for (const int columns : {32, 64, 96, 128, 176}) {
    const int most = swiglu ? columns / 2 : columns;
    for (const int less : {0, 4})
      for (const int split : {1, 2})
        if (split == 1 || (!swiglu && columns <= 128))
          all.push_back(
              {MatmulKernel::streamed, held, columns, most - less, split, less == 0 ? 0 : 3, 0});
  }
  return all;
}

TEST(MatmulOnCuda, EveryPlanOfCapability90IsExact) {
  if (cuda::level(test_device()) != cuda::Level::sm90) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(26);
  for (const std::int64_t rows : {50, 100, 200, 300}) {
    for (const bool accumulate : {false, true}) {
      Exact p(random, rows, {264, 96, 8}, 456, DType::f32, accumulate);
      const LinearArgs a = p.args();
      for (const MatmulPlan& plan : plans(rows, false)) {
        SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(plan.columns) +
                     " columns, height " + std::to_string(plan.height) + ", split " +
                     std::to_string(plan.split));
        for (int i = 0; i < 3; ++i) {
          p.start_again();
          Context context(test_device());
          ASSERT_TRUE(cuda::planned_product(
              context, {.x = a.x, .w = a.w, .b = a.b, .y = a.y, .accumulate = a.accumulate}, plan));
          context.synchronize();
          p.expect_done();
        }
      }
    }
  }
}

// More tiles than clusters in a whole band of rows: columns that take the depth from its end
// (TileOrder), of an odd number of stages and an even one.
TEST(MatmulOnCuda, ColumnsThatTakeTheDepthFromItsEnd) {
  if (cuda::level(test_device()) != cuda::Level::sm90) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(31);
  for (const auto& [depth, type, accumulate] :
       {std::tuple{std::int64_t{264}, DType::f32, true}, {std::int64_t{200}, DType::bf16, false}}) {
    Exact p(random, 2310, {2056, 264}, depth, type, accumulate);
    const LinearArgs a = p.args();
    for (int i = 0; i < 3; ++i) {
      p.start_again();
      Context context(test_device());
      ASSERT_TRUE(cuda::planned_product(
          context, {.x = a.x, .w = a.w, .b = a.b, .y = a.y, .accumulate = a.accumulate},
          {MatmulKernel::tiled, 256, 256, 256, 1, 0, 0}));
      context.synchronize();
      p.expect_done();
    }
  }
}

// The same numbers as e4m3, all scales 1.
TEST(MatmulOnCuda, EveryPlanOfCapability90IsExactInE4m3) {
  if (cuda::level(test_device()) != cuda::Level::sm90) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(28);
  const auto codes_of = [](const test::Array& a) {
    std::vector<std::uint8_t> codes;
    for (const double value : a.values()) codes.push_back(f32_to_e4m3(static_cast<float>(value)));
    return codes;
  };
  std::vector<float> ones(4096, 1.0F);
  const auto scales = [&](std::initializer_list<std::int64_t> shape) {
    return Tensor::dense(ones.data(), DType::f32, shape, test_device());
  };
  for (const std::int64_t rows : {50, 300}) {
    constexpr std::int64_t kDepth = 464, kRuns = 4;
    Exact p(random, rows, {264, 96, 8}, kDepth, DType::f32, rows > 100);
    std::vector<std::uint8_t> x = codes_of(p.x[0]);
    std::vector<std::vector<std::uint8_t>> w;
    std::vector<Tensor> codes, of_rows, of_blocks;
    for (const test::Array& each : p.w) w.push_back(codes_of(each));
    for (std::vector<std::uint8_t>& each : w) {
      const auto n = static_cast<std::int64_t>(each.size()) / kDepth;
      codes.push_back(Tensor::dense(each.data(), DType::u8, {n, kDepth}, test_device()));
      of_rows.push_back(scales({n}));
      of_blocks.push_back(scales({(n + 127) / 128, kRuns}));
    }
    const LinearArgs a = p.args();
    for (const int columns : {128, 192, 256}) {
      for (const bool blocks : {false, true}) {
        if (blocks && columns == 192) continue;
        SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(columns) + " columns" +
                     (blocks ? ", blocks" : ""));
        for (int i = 0; i < 3; ++i) {
          p.start_again();
          Context context(test_device());
          ASSERT_TRUE(cuda::planned_product(
              context,
              {.x = Tensor::dense(x.data(), DType::u8, {rows, kDepth}, test_device()),
               .w = codes,
               .b = a.b,
               .y = a.y,
               .accumulate = a.accumulate,
               .x_scales = blocks ? scales({kRuns, rows}) : scales({rows}),
               .w_scales = blocks ? of_blocks : of_rows},
              {MatmulKernel::tiled, 256, columns, columns, 1, 0, 0}));
          context.synchronize();
          p.expect_done();
        }
      }
    }
  }
}

TEST(MatmulOnCuda, EveryPlanOfCapability90FormsSwiglu) {
  if (cuda::level(test_device()) != cuda::Level::sm90) GTEST_SKIP() << "no card of capability 9.0";
  std::mt19937 random(27);
  for (const DType y : {DType::f32, DType::bf16}) {
    for (const std::int64_t rows : {50, 100, 200, 300}) {
      Swiglu p(random, rows, 200, 136, y, true);
      for (const MatmulPlan& plan : plans(rows, true)) {
        test::Errors errors;
        p.y.poison();
        Context context(test_device());
        const LinearSwigluArgs a = p.args();
        ASSERT_TRUE(cuda::planned_product(
            context, {.x = a.x, .w = a.w, .b = a.b, .y = a.y, .swiglu = true}, plan));
        context.synchronize();
        errors.add(p.y.values(), p.want, p.naive, y);
        errors.expect_at_most_twice_naive(to_string(y));
        EXPECT_TRUE(p.y.gaps_untouched());
      }
    }
  }
}

#endif

}  // namespace
}  // namespace xlstm::ops
