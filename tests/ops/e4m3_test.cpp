// Numbers of 8 bits: their conversion, rows of them, and products, on every device.

#include "ops/e4m3.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/float_bits.hpp"
#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops {
namespace {

TEST(E4m3, EveryCodeIsItsNumberAndBack) {
  EXPECT_EQ(e4m3_to_f32(0x7E), kMostE4m3);
  EXPECT_EQ(e4m3_to_f32(0x08), 0x1p-6F);
  EXPECT_EQ(e4m3_to_f32(0x01), 0x1p-9F);
  EXPECT_EQ(e4m3_to_f32(0xB8), -1.0F);
  EXPECT_TRUE(std::isnan(e4m3_to_f32(0x7F)) && std::isnan(e4m3_to_f32(0xFF)));
  for (int code = 0; code < 256; ++code) {
    if (code % 128 == 127) continue;
    EXPECT_EQ(f32_to_e4m3(e4m3_to_f32(static_cast<std::uint8_t>(code))), code);
  }
}

TEST(E4m3, BetweenTwoNumbersTheNearerOrTheEvenOne) {
  for (int code = 0; code < 126; ++code) {
    const float low = e4m3_to_f32(static_cast<std::uint8_t>(code)),
                high = e4m3_to_f32(static_cast<std::uint8_t>(code + 1)), middle = (low + high) / 2;
    EXPECT_EQ(f32_to_e4m3(middle), code + code % 2);
    EXPECT_EQ(f32_to_e4m3(std::nextafter(middle, 0.0F)), code);
    EXPECT_EQ(f32_to_e4m3(-std::nextafter(middle, 1000.0F)), 128 + code + 1);
  }
  EXPECT_EQ(f32_to_e4m3(1e9F), 0x7E);
  EXPECT_EQ(f32_to_e4m3(-std::numeric_limits<float>::infinity()), 0xFE);
  EXPECT_EQ(f32_to_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7F, 0x7F);
}

const E4m3Scales kKinds[] = {E4m3Scales::rows, E4m3Scales::blocks};  // of weights
E4m3Scales of_activations(E4m3Scales of_weights) {
  return of_weights == E4m3Scales::rows ? of_weights : E4m3Scales::runs;
}
std::string name_of(E4m3Scales kind) {
  return kind == E4m3Scales::rows ? "rows" : kind == E4m3Scales::runs ? "runs" : "blocks";
}

/// A matrix of codes with a gap after every row.
struct Coded {
  Coded(E4m3Scales kind_, std::int64_t rows_, std::int64_t columns_, std::int64_t gap = 0)
      : kind(kind_),
        rows(rows_),
        columns(columns_),
        stride(columns_ + gap),
        shape(e4m3_scales_shape(kind, rows, columns)),
        codes(static_cast<std::size_t>(rows * stride), 0x7F),
        scales(static_cast<std::size_t>(shape[0] * std::max<std::int64_t>(shape[1], 1)),
               std::numeric_limits<float>::quiet_NaN()) {}

  E4m3Matrix matrix() {
    Tensor t = Tensor::dense(codes.data(), DType::u8, {rows, columns}, test_device());
    t.stride[0] = stride;
    const Tensor s =
        kind == E4m3Scales::rows
            ? Tensor::dense(scales.data(), DType::f32, {shape[0]}, test_device())
            : Tensor::dense(scales.data(), DType::f32, {shape[0], shape[1]}, test_device());
    return {t, s, kind};
  }
  std::uint8_t code(std::int64_t r, std::int64_t c) const {
    return codes[static_cast<std::size_t>(r * stride + c)];
  }
  std::size_t place(std::int64_t r, std::int64_t c) const {
    const std::int64_t at = kind == E4m3Scales::rows   ? r
                            : kind == E4m3Scales::runs ? c / kE4m3Run * rows + r
                                                       : r / kE4m3Run * shape[1] + c / kE4m3Run;
    return static_cast<std::size_t>(at);
  }
  float scale(std::int64_t r, std::int64_t c) const { return scales[place(r, c)]; }
  double value(std::int64_t r, std::int64_t c) const {
    return static_cast<double>(e4m3_to_f32(code(r, c))) * static_cast<double>(scale(r, c));
  }
  /// Whole numbers from -4 to 4 times powers of two.
  std::vector<double> fill(std::mt19937& random) {
    std::uniform_int_distribution<int> number(-4, 4), power(-2, 2);
    for (float& s : scales) s = std::ldexp(1.0F, power(random));
    std::vector<double> values;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        codes[static_cast<std::size_t>(r * stride + c)] =
            f32_to_e4m3(static_cast<float>(number(random)));
        values.push_back(value(r, c));
      }
    }
    return values;
  }

  E4m3Scales kind;
  std::int64_t rows, columns, stride;
  std::array<std::int64_t, 2> shape;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
};

TEST(E4m3, TheLargestOfEachScaleIs448) {
  std::mt19937 random(31);
  for (const E4m3Scales kind : {E4m3Scales::rows, E4m3Scales::runs, E4m3Scales::blocks}) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const std::int64_t width : {1, 7, 16, 40, 264, 2056, 4104, 12296}) {
        SCOPED_TRACE(name_of(kind) + ", " + to_string(dtype) + ", " + std::to_string(width));
        const std::int64_t rows = width < 3000 ? 133 : 5;
        test::Array x = test::Array::random(random, dtype, {rows, width}, 3.0, 0.0, 8);
        for (std::int64_t c = 0; c < width; ++c) x.set(2, c, 0.0);
        Coded y(kind, rows, width, 16);
        Context context(test_device());
        test::run(context, quantise_e4m3, {.x = x.tensor(), .y = y.matrix()});
        const std::vector<double> values = x.values();
        std::vector<float> most(y.scales.size(), 0.0F);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < width; ++c) {
            float& m = most[y.place(r, c)];
            m = std::max(
                m, static_cast<float>(std::abs(values[static_cast<std::size_t>(r * width + c)])));
          }
        }
        for (std::size_t i = 0; i < most.size(); ++i)
          ASSERT_FLOAT_EQ(y.scales[i], most[i] / kMostE4m3);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t c = 0; c < width; ++c) {
            const float m = most[y.place(r, c)], factor = m == 0 ? 0.0F : kMostE4m3 / m;
            const auto v = static_cast<float>(values[static_cast<std::size_t>(r * width + c)]);
            ASSERT_EQ(y.code(r, c), f32_to_e4m3(v * factor));
          }
          for (std::int64_t c = width; c < y.stride; ++c) ASSERT_EQ(y.code(r, c), 0x7F);
        }
      }
    }
  }
}

TEST(E4m3, NaNStaysInItsPlaceAndInfinityTakesItsScale) {
  for (const E4m3Scales kind : {E4m3Scales::rows, E4m3Scales::runs}) {
    for (const std::int64_t width : {9, 32, 160}) {
      test::Array x = test::Array::of(
          DType::bf16, {3, width}, std::vector<double>(static_cast<std::size_t>(3 * width), 2.0));
      x.set(0, 4, std::numeric_limits<double>::quiet_NaN());
      x.set(1, 4, std::numeric_limits<double>::infinity());
      Coded y(kind, 3, width);
      Context context(test_device());
      test::run(context, quantise_e4m3, {.x = x.tensor(), .y = y.matrix()});
      for (std::int64_t c = 0; c < width; ++c) {
        EXPECT_EQ(std::isnan(y.value(0, c)), c == 4);
        EXPECT_EQ(std::isnan(y.value(1, c)), kind == E4m3Scales::rows || c < kE4m3Run);
        EXPECT_NEAR(y.value(2, c), 2.0, 1e-6);
      }
    }
  }
}

// Sums of these numbers are exact, whatever their order and in what tensor cores keep of them.
TEST(E4m3, ProductsOfWholeNumbersAreExact) {
  std::mt19937 random(32);
  for (const E4m3Scales kind : kKinds) {
    for (const auto& [depth, gap] : {std::pair{144, 0}, {144, 5}, {144, 16}, {141, 3}}) {
      for (const std::int64_t rows : {1, 17, 65, 130, 300}) {
        const bool accumulate = rows % 2 == 0;
        SCOPED_TRACE(name_of(kind) + ", " + std::to_string(rows) + " rows of " +
                     std::to_string(depth) + ", gap " + std::to_string(gap) +
                     (accumulate ? ", added" : ""));
        const std::int64_t sizes[] = {72, 8, 5, 140};
        Coded x(of_activations(kind), rows, depth, gap);
        const std::vector<double> xs = x.fill(random);
        std::vector<Coded> w;
        std::vector<test::Array> b;
        std::int64_t columns = 0;
        for (const std::int64_t n : sizes) columns += n;
        std::vector<double> before(static_cast<std::size_t>(rows * columns));
        for (double& value : before) value = static_cast<double>(random() % 9) - 4;
        std::vector<double> want = accumulate ? before : std::vector<double>(before.size(), 0.0);
        std::int64_t first = 0;
        for (const std::int64_t n : sizes) {
          const std::vector<double> ws = w.emplace_back(kind, n, depth, gap).fill(random);
          std::vector<double> bs(static_cast<std::size_t>(n));
          for (double& value : bs) value = static_cast<double>(random() % 9) - 4;
          b.push_back(test::Array::of(DType::bf16, {n}, bs));
          const std::vector<double> sums =
              oracle::linear<double>(xs, ws, bs, depth, static_cast<int>(n));
          for (std::int64_t t = 0; t < rows; ++t)
            for (std::int64_t i = 0; i < n; ++i)
              want[static_cast<std::size_t>(t * columns + first + i)] +=
                  sums[static_cast<std::size_t>(t * n + i)];
          first += n;
        }
        std::vector<E4m3Matrix> ws;
        std::vector<Tensor> bs;
        for (Coded& each : w) ws.push_back(each.matrix());
        for (test::Array& each : b) bs.push_back(each.tensor());
        test::Array y = test::Array::of(DType::f32, {rows, columns}, before, 3);
        Context context(test_device());
        test::run(context, linear_e4m3,
                  {.x = x.matrix(), .w = ws, .b = bs, .y = y.tensor(), .accumulate = accumulate});
        EXPECT_EQ(test::max_error(y.values(), want), 0);
        EXPECT_TRUE(y.gaps_untouched());
      }
    }
  }
}

// Rows that copies of whole boxes can take, in tiles that are not full.
TEST(E4m3, ProductsOfRandomNumbersAreNear) {
  std::mt19937 random(33);
  for (const E4m3Scales kind : kKinds) {
    for (const std::int64_t rows : {40, 257, 300}) {
      SCOPED_TRACE(name_of(kind) + ", " + std::to_string(rows) + " rows");
      constexpr std::int64_t kDepth = 1040, kOutputs = 328;
      const auto draw = [&](E4m3Scales own, std::int64_t n) {
        test::Array a = test::Array::random(random, DType::bf16, {n, kDepth});
        for (std::int64_t r = 0; r < n; ++r) a.set(r, r % kDepth, 40.0);
        Coded coded(own, n, kDepth);
        Context context(test_device());
        test::run(context, quantise_e4m3, {.x = a.tensor(), .y = coded.matrix()});
        return coded;
      };
      Coded x = draw(of_activations(kind), rows), w = draw(kind, kOutputs);
      const E4m3Matrix weight = w.matrix();
      test::Array y(DType::f32, {rows, kOutputs}, 4);
      Context context(test_device());
      test::run(context, linear_e4m3,
                {.x = x.matrix(), .w = {&weight, 1}, .b = {}, .y = y.tensor()});
      const std::vector<double> got = y.values();
      double error = 0, size = 0;
      for (std::int64_t t = 0; t < rows; ++t) {
        for (std::int64_t n = 0; n < kOutputs; ++n) {
          double sum = 0;
          for (std::int64_t k = 0; k < kDepth; ++k) sum += x.value(t, k) * w.value(n, k);
          const double off = got[static_cast<std::size_t>(t * kOutputs + n)] - sum;
          error += off * off;
          size += sum * sum;
        }
      }
      EXPECT_LT(std::sqrt(error / size), kind == E4m3Scales::rows ? 3e-3 : 3e-4);
      EXPECT_TRUE(y.gaps_untouched());
    }
  }
}

TEST(E4m3, Swiglu) {
  std::mt19937 random(34);
  for (const E4m3Scales kind : kKinds) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t rows : {3, 100, 260}) {
        constexpr std::int64_t kDepth = 176, kOutputs = 152;
        Coded x(of_activations(kind), rows, kDepth), gate(kind, kOutputs, kDepth),
            up(kind, kOutputs, kDepth);
        const std::vector<double> xs = x.fill(random), us = up.fill(random);
        std::vector<double> gs = gate.fill(random);
        for (float& s : gate.scales) s /= 64;
        for (double& value : gs) value /= 64;
        const std::vector<double> bs[2] = {std::vector<double>(kOutputs, 0.5),
                                           std::vector<double>(kOutputs, -0.25)};
        test::Array b[2] = {test::Array::of(DType::f32, {kOutputs}, bs[0]),
                            test::Array::of(DType::f32, {kOutputs}, bs[1])};
        const Tensor biases[2] = {b[0].tensor(), b[1].tensor()};
        const auto sums = [&](const std::vector<double>& ws, int i) {
          return oracle::linear<double>(xs, ws, bs[i], static_cast<int>(kDepth),
                                        static_cast<int>(kOutputs));
        };
        const std::vector<double> want = oracle::swiglu<double>(sums(gs, 0), sums(us, 1));
        const E4m3Matrix w[2] = {gate.matrix(), up.matrix()};
        test::Array y(dtype, {rows, kOutputs}, 8);
        Context context(test_device());
        test::run(context, linear_swiglu_e4m3,
                  {.x = x.matrix(), .w = w, .b = biases, .y = y.tensor()});
        EXPECT_LT(test::max_error(y.values(), want) / test::max_abs(want),
                  dtype == DType::f32 ? 1e-6 : 4e-3);
        EXPECT_TRUE(y.gaps_untouched());
      }
    }
  }
}

TEST(E4m3, SwigluMayGiveRuns) {
  std::mt19937 random(35);
  for (const std::int64_t rows : {3, 100, 260, 1100}) {
    for (const std::int64_t outputs : {64, 328}) {
      SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(outputs) + " outputs");
      constexpr std::int64_t kDepth = 176;
      Coded x(E4m3Scales::runs, rows, kDepth), gate(E4m3Scales::blocks, outputs, kDepth),
          up(E4m3Scales::blocks, outputs, kDepth);
      x.fill(random);
      gate.fill(random);
      up.fill(random);
      for (float& s : gate.scales) s /= 64;
      const E4m3Matrix w[2] = {gate.matrix(), up.matrix()};
      test::Array y(DType::f32, {rows, outputs});
      Coded coded(E4m3Scales::runs, rows, outputs, 16 + (16 - outputs % 16) % 16),
          want(E4m3Scales::runs, rows, outputs);
      Context context(test_device());
      test::run(context, linear_swiglu_e4m3, {.x = x.matrix(), .w = w, .b = {}, .y = y.tensor()});
      test::run(context, linear_swiglu_e4m3,
                {.x = x.matrix(), .w = w, .b = {}, .y = {}, .coded = coded.matrix()});
      test::run(context, quantise_e4m3, {.x = y.tensor(), .y = want.matrix()});
      EXPECT_EQ(coded.scales, want.scales);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < outputs; ++c)
          ASSERT_EQ(e4m3_to_f32(coded.code(r, c)), e4m3_to_f32(want.code(r, c))) << r << " " << c;
        // Whole units of 16 bytes are stored.
        for (std::int64_t c = (outputs + 15) / 16 * 16; c < coded.stride; ++c)
          ASSERT_EQ(coded.code(r, c), 0x7F);
      }
    }
  }
}

TEST(E4m3, SwigluGivesNumbersOrCodes) {
  Coded x(E4m3Scales::runs, 2, 16), gate(E4m3Scales::blocks, 3, 16), up(E4m3Scales::blocks, 3, 16),
      coded(E4m3Scales::runs, 2, 3);
  const E4m3Matrix w[2] = {gate.matrix(), up.matrix()};
  test::Array y(DType::f32, {2, 3});
  Context context(test_device());
  test::expect_refused(
      [&] {
        linear_swiglu_e4m3(
            context, {.x = x.matrix(), .w = w, .b = {}, .y = y.tensor(), .coded = coded.matrix()});
      },
      "either y or coded");
}

TEST(E4m3, WrongShapesAndKindsAreRefused) {
  Coded x(E4m3Scales::rows, 2, 16), w(E4m3Scales::rows, 3, 8), blocks(E4m3Scales::blocks, 3, 16);
  test::Array y(DType::f32, {2, 3});
  Context context(test_device());
  const auto multiply = [&](Coded& by) {
    const E4m3Matrix weight = by.matrix();
    linear_e4m3(context, {.x = x.matrix(), .w = {&weight, 1}, .b = {}, .y = y.tensor()});
  };
  test::expect_refused([&] { multiply(w); }, "codes of w must be u8[3, 16], found u8[3, 8]");
  test::expect_refused([&] { multiply(blocks); }, "x has scales of another kind");
}

}  // namespace
}  // namespace xlstm::ops
