// Few tokens times packed weights: to the bit what the weights themselves give.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "core/cuda_device.hpp"
#include "core/float_bits.hpp"
#include "ops/cuda/level.hpp"
#include "ops/fused.hpp"
#include "ops/linear.hpp"
#include "ops/packed_support.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

// Of any sign, within 2^7 of each other; and each tile lists none, some, or as many as it can.
std::vector<std::uint16_t> listed_weights(std::mt19937& random, std::int64_t rows,
                                          std::int64_t columns) {
  using Tile = PackedTile;
  std::uniform_real_distribution<float> exponent(-7.0F, 0.0F);
  const auto below = [&](std::int64_t n) {
    return std::uniform_int_distribution<std::int64_t>(0, n - 1)(random);
  };
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(rows * columns));
  for (std::int64_t r = 0; r < rows; ++r) {
    const float scale = std::exp2(static_cast<float>(below(9)) - 8.0F);
    for (std::int64_t c = 0; c < columns; ++c)
      bits[static_cast<std::size_t>(r * columns + c)] =
          f32_to_bf16((below(2) == 0 ? scale : -scale) * std::exp2(exponent(random)));
  }
  constexpr int kCounts[] = {0, 1, 2, Tile::kMostPatches};
  for (std::int64_t r = 0; r < rows; r += Tile::kRows)
    for (std::int64_t c = 0; c < columns; c += Tile::kColumns)
      for (int n = kCounts[below(4)]; n > 0; --n) {
        const std::int64_t row = r + below(std::min<std::int64_t>(Tile::kRows, rows - r)),
                           column = c + below(std::min<std::int64_t>(Tile::kColumns, columns - c));
        const float numbers[] = {0.0F, -0.0F, std::exp2(-40.0F), -1.5F * std::exp2(-70.0F)};
        bits[static_cast<std::size_t>(row * columns + column)] = f32_to_bf16(numbers[below(4)]);
      }
  return bits;
}

struct Layer {
  std::vector<std::vector<std::uint16_t>> bits;
  std::vector<Packed> parts;
  std::vector<Tensor> w;
  std::vector<PackedWeights> packed;

  Layer(std::mt19937& random, const std::vector<std::int64_t>& outputs, std::int64_t inputs) {
    bits.reserve(outputs.size());
    parts.reserve(outputs.size());
    for (const std::int64_t n : outputs) add(listed_weights(random, n, inputs), n, inputs);
  }
  Layer(std::vector<std::uint16_t> matrix, std::int64_t outputs, std::int64_t inputs) {
    add(std::move(matrix), outputs, inputs);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

 private:
  void add(std::vector<std::uint16_t> matrix, std::int64_t outputs, std::int64_t inputs) {
    bits.push_back(std::move(matrix));
    w.push_back(Tensor::dense(bits.back().data(), DType::bf16, {outputs, inputs}, test_device()));
    parts.emplace_back(bits.back(), outputs, inputs);
    EXPECT_EQ(parts.back().left_out(), 0);
    packed.push_back(parts.back().weights());
  }
};

constexpr std::int64_t kTokens[] = {1, 2, 3, 8, 9, 16};

class PackedRows : public testing::Test {
 protected:
  void SetUp() override {
    if (test_device().is_cpu() || cuda::level(test_device()) != cuda::Level::sm90)
      GTEST_SKIP() << "no kernel of compute capability 9.0";
  }
};

TEST_F(PackedRows, LinearHasTheBitsOfTheWeights) {
  std::mt19937 random(31);
  struct Shape {
    std::int64_t inputs;
    std::vector<std::int64_t> outputs;
  };
  for (const Shape& s :
       {Shape{128, {24}}, Shape{136, {8, 40, 16}}, Shape{1048, {264, 40}}, Shape{4096, {16, 8, 72}},
        Shape{4104, {40}}, Shape{10944, {48, 24}}, Shape{4096, {21}}, Shape{4096, {8 * 600}}}) {
    Layer layer(random, s.outputs, s.inputs);
    std::int64_t outputs = 0;
    std::vector<Array> biases;
    for (const std::int64_t n : s.outputs) {
      outputs += n;
      biases.push_back(Array::random(random, DType::bf16, {n}));
    }
    std::vector<Tensor> b;
    for (Array& bias : biases) b.push_back(bias.tensor());
    Array x = Array::random(random, DType::bf16, {16, s.inputs}, 1.0, 0.0, 8);
    const Array before = Array::random(random, DType::f32, {16, outputs}, 1.0, 0.0, 3);
    for (const std::int64_t tokens : kTokens)
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(testing::Message() << s.inputs << " " << outputs << " " << tokens);
        Array y[] = {before, before};
        Context context(test_device());
        for (int p = 0; p < 2; ++p) {
          LinearArgs a{.x = x.tensor().rows(0, tokens),
                       .w = layer.w,
                       .b = {},
                       .y = y[p].tensor().rows(0, tokens),
                       .accumulate = accumulate};
          if (accumulate) a.b = b;
          if (p == 1) a.packed = layer.packed;
          run(context, linear, a);
          run(context, linear, a);
        }
        EXPECT_TRUE(y[0].bytes() == y[1].bytes());
        EXPECT_TRUE(y[1].gaps_untouched());
      }
  }
}

TEST_F(PackedRows, NormsHaveTheBitsOfTheWeights) {
  std::mt19937 random(32);
  constexpr std::int64_t kHeads = 3;
  for (const std::int64_t width : {128, 136, 1096, 4096}) {
    for (const std::int64_t outputs : {8, 40, 2200}) {
      Layer layer(random, {outputs, outputs}, width);
      Array x = Array::random(random, DType::f32, {16, width}, 2.0, 0.0, 4);
      Array norm = Array::random(random, DType::bf16, {width}, 0.3, 1.0);
      Array gates = Array::random(random, DType::bf16, {kHeads, width}, 0.1);
      Array gate_bias = Array::random(random, DType::bf16, {kHeads});
      Array bias = Array::random(random, DType::f32, {outputs});
      const Tensor b[] = {bias.tensor(), bias.tensor()};
      for (const std::int64_t tokens : kTokens) {
        SCOPED_TRACE(testing::Message() << width << " " << outputs << " " << tokens);
        struct Results {
          Array y, i{DType::f32, {16, kHeads}}, log_f{DType::f32, {16, kHeads}}, gated;
          explicit Results(std::int64_t n)
              : y(DType::f32, {16, 2 * n}, 2), gated(DType::bf16, {16, n}, 3) {}
        };
        Results results[] = {Results(outputs), Results(outputs)};
        Context context(test_device());
        for (int p = 0; p < 2; ++p) {
          Results& r = results[p];
          NormLinearArgs a{.x = x.tensor().rows(0, tokens),
                           .norm_w = norm.tensor(),
                           .norm_b = {},
                           .activation = DType::bf16,
                           .w = layer.w,
                           .b = b,
                           .y = r.y.tensor().rows(0, tokens),
                           .w_i = gates.tensor(),
                           .w_f = gates.tensor(),
                           .b_i = gate_bias.tensor(),
                           .b_f = gate_bias.tensor(),
                           .i = r.i.tensor().rows(0, tokens),
                           .log_f = r.log_f.tensor().rows(0, tokens)};
          NormLinearSwigluArgs s{.x = a.x,
                                 .norm_w = a.norm_w,
                                 .norm_b = {},
                                 .w = layer.w,
                                 .b = b,
                                 .y = r.gated.tensor().rows(0, tokens)};
          if (p == 1) a.packed = s.packed = layer.packed;
          run(context, norm_linear, a);
          run(context, norm_linear_swiglu, s);
        }
        EXPECT_TRUE(results[0].y.bytes() == results[1].y.bytes());
        EXPECT_TRUE(results[0].i.bytes() == results[1].i.bytes());
        EXPECT_TRUE(results[0].log_f.bytes() == results[1].log_f.bytes());
        EXPECT_TRUE(results[0].gated.bytes() == results[1].gated.bytes());
        EXPECT_TRUE(results[1].y.gaps_untouched());
        EXPECT_TRUE(results[1].gated.gaps_untouched());
      }
    }
  }
}

// Each place of a tile in its list, in turn.
TEST_F(PackedRows, EveryNumberCanBeListed) {
  constexpr std::int64_t kInputs = 128 * 128;  // tiles of 8 numbers each
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(16 * kInputs));
  for (std::size_t i = 0; i < bits.size(); ++i)
    bits[i] = static_cast<std::uint16_t>(f32_to_bf16(0x1p-14F) | i * 37 % 128);
  for (std::int64_t row = 0; row < 16; ++row) {
    bits[static_cast<std::size_t>(row * kInputs + 100)] = f32_to_bf16(1.0F);
    for (std::int64_t column = 0; column < 128; ++column) {
      const std::int64_t place = row % 8 * 128 + column, tile = place / 8;
      bits[static_cast<std::size_t>(row * kInputs + tile * 128 + column)] =
          place % 3 == 0 ? std::uint16_t{0} : f32_to_bf16(-0x1.2p-40F);
    }
  }
  Layer layer(bits, 16, kInputs);
  std::mt19937 random(33);
  Array x = Array::random(random, DType::bf16, {3, kInputs});
  Array y[] = {Array(DType::f32, {3, 16}), Array(DType::f32, {3, 16})};
  Context context(test_device());
  for (int p = 0; p < 2; ++p) {
    LinearArgs a{.x = x.tensor(), .w = layer.w, .b = {}, .y = y[p].tensor()};
    if (p == 1) a.packed = layer.packed;
    run(context, linear, a);
  }
  EXPECT_TRUE(y[0].bytes() == y[1].bytes());
}

TEST_F(PackedRows, ZerosInfinitiesAndNansPass) {
  std::mt19937 random(34);
  std::vector<std::uint16_t> bits = listed_weights(random, 24, 256);
  std::fill(bits.begin() + 3 * 256, bits.begin() + 5 * 256, std::uint16_t{0});
  std::fill(bits.begin() + 8 * 256, bits.begin() + 24 * 256, f32_to_bf16(-3.0F));
  bits[9 * 256 + 77] = f32_to_bf16(std::numeric_limits<float>::infinity());
  bits[19 * 256 + 200] = f32_to_bf16(std::numeric_limits<float>::quiet_NaN());
  Layer layer(bits, 24, 256);
  Array x = Array::random(random, DType::bf16, {2, 256});
  Array y[] = {Array(DType::f32, {2, 24}), Array(DType::f32, {2, 24})};
  Context context(test_device());
  for (int p = 0; p < 2; ++p) {
    LinearArgs a{.x = x.tensor(), .w = layer.w, .b = {}, .y = y[p].tensor()};
    if (p == 1) a.packed = layer.packed;
    run(context, linear, a);
  }
  for (std::size_t i = 0; i < y[0].floats().size(); ++i) {
    const float want = y[0].floats()[i], got = y[1].floats()[i];
    if (std::isnan(want))
      EXPECT_TRUE(std::isnan(got));
    else
      EXPECT_EQ(got, want);
  }
  EXPECT_TRUE(std::isinf(y[1].floats()[9]));
  EXPECT_TRUE(std::isnan(y[1].floats()[19]));
  EXPECT_FALSE(std::signbit(y[1].floats()[3]));
}

// What these kernels read, as a graph replays them one after the other.
TEST_F(PackedRows, GraphsReadThePackedWeightsAlone) {
  std::mt19937 random(35);
  constexpr std::int64_t kWidth = 1024;
  Layer up(random, {kWidth, kWidth}, kWidth), down(random, {kWidth}, kWidth);
  Array norm = Array::random(random, DType::bf16, {kWidth}, 0.02, 0.1);
  const Array x = Array::random(random, DType::f32, {4, kWidth});
  Array hidden(DType::bf16, {4, kWidth}), mixed(DType::f32, {4, 2 * kWidth});
  const auto step = [&](Context& context, Array& to, bool packed) {
    NormLinearArgs mix{.x = to.tensor(),
                       .norm_w = norm.tensor(),
                       .norm_b = {},
                       .activation = DType::bf16,
                       .w = up.w,
                       .b = {},
                       .y = mixed.tensor()};
    NormLinearSwigluArgs first{.x = mixed.tensor().cols(0, kWidth),
                               .norm_w = norm.tensor(),
                               .norm_b = {},
                               .w = up.w,
                               .b = {},
                               .y = hidden.tensor()};
    LinearArgs second{
        .x = hidden.tensor(), .w = down.w, .b = {}, .y = to.tensor(), .accumulate = true};
    if (packed) {
      mix.packed = first.packed = up.packed;
      second.packed = down.packed;
    }
    norm_linear(context, mix);
    norm_linear_swiglu(context, first);
    linear(context, second);
  };
  constexpr int kSteps = 5, kReplays = 4;
  Array want = x, got = x;
  Context context(test_device());
  for (int i = 0; i < kSteps * kReplays; ++i) step(context, want, false);
  context.synchronize();
  for (Layer* layer : {&up, &down})
    for (std::vector<std::uint16_t>& bits : layer->bits)
      std::fill(bits.begin(), bits.end(), std::uint16_t{0x7FC0});
  xlstm::cuda::begin_capture(context.stream(), test_device());
  for (int i = 0; i < kSteps; ++i) step(context, got, true);
  void* const graph = xlstm::cuda::end_capture(context.stream(), test_device());
  for (int i = 0; i < kReplays; ++i)
    xlstm::cuda::launch_graph(graph, context.stream(), test_device());
  context.synchronize();
  xlstm::cuda::destroy_graph(graph, test_device());
  EXPECT_TRUE(want.bytes() == got.bytes());
  for (const float value : got.floats()) ASSERT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace xlstm::ops::test
