// The operations of the first xLSTM, all but the sLSTM cell, against the oracle.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "ops/activation.hpp"
#include "ops/conv.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/support.hpp"
#include "oracle/stack_ops.hpp"

namespace xlstm::ops::test {
namespace {

constexpr DType kWeightTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr DType kResultTypes[] = {DType::f32, DType::bf16};
constexpr float kEps = 1e-5F;

/// Of ops that give or take bf16 on a card alone.
std::vector<DType> card_types() {
  if (test_device().is_cpu()) return {DType::f32};
  return {DType::f32, DType::bf16};
}

std::vector<float> to_float(const std::vector<double>& x) { return {x.begin(), x.end()}; }

/// A tensor [a, b, c] over the values of a matrix [a, b c].
Tensor as_blocks(Array& matrix, std::int64_t b, std::int64_t c) {
  const Tensor t = matrix.tensor();
  return Tensor::dense(t.data, t.dtype, {t.dim(0), b, c});
}

/// Rows [begin, begin + count) of a matrix.
template <class Real>
std::vector<Real> slice(const std::vector<Real>& x, int width, int begin, int count) {
  return {x.begin() + begin * width, x.begin() + (begin + count) * width};
}

struct ConvProblem {
  int width, kernel;
  std::vector<std::int32_t> offsets;
  Array x, w, b;
  std::vector<double> windows;  // [sequences, kernel - 1, width]

  ConvProblem(std::mt19937& random, int width_, int kernel_, std::vector<std::int32_t> offsets_,
              DType weights)
      : width(width_),
        kernel(kernel_),
        offsets(std::move(offsets_)),
        x(Array::random(random, DType::f32, {offsets.back(), width}, 1.0, 0.0, 3)),
        w(Array::random(random, weights, {width, kernel}, 0.5)),
        b(Array::random(random, weights, {width}, 0.5)) {
    const auto n = static_cast<std::int64_t>((offsets.size() - 1) *
                                             static_cast<std::size_t>((kernel - 1) * width));
    windows = Array::random(random, DType::f32, {std::max<std::int64_t>(n, 1)}).values();
    windows.resize(static_cast<std::size_t>(n));
  }
  std::size_t window_size() const { return static_cast<std::size_t>((kernel - 1) * width); }

  // Runs the op on a batch; returns y and leaves the new windows in `after`.
  std::vector<double> run_op(int threads, bool bias, bool silu, std::vector<double>& after) {
    constexpr std::size_t kBefore = 64;  // bytes of the record that belong to others
    const std::size_t sequences = offsets.size() - 1;
    std::vector<std::vector<float>> records;
    std::vector<std::byte*> slots;
    for (std::size_t s = 0; s < sequences; ++s) {
      records.emplace_back(kBefore / 4 + window_size());
      for (std::size_t i = 0; i < window_size(); ++i)
        records[s][kBefore / 4 + i] = static_cast<float>(windows[s * window_size() + i]);
    }
    for (auto& record : records) slots.push_back(reinterpret_cast<std::byte*>(record.data()));
    const Batch batch{offsets, slots};
    Array y(DType::f32, {offsets.back(), width}, 5);
    Context context(test_device(), threads);
    run<CausalConvArgs>(context, causal_conv,
                        {.x = x.tensor(),
                         .w = as_blocks(w, 1, kernel),
                         .b = bias ? b.tensor() : Tensor(),
                         .batch = batch,
                         .window = kBefore,
                         .silu = silu,
                         .y = y.tensor()});
    EXPECT_TRUE(y.gaps_untouched());
    after.clear();
    for (const auto& record : records)
      after.insert(after.end(), record.begin() + kBefore / 4, record.end());
    return y.values();
  }
};

TEST(CausalConv, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(1);
    Errors errors;
    for (DType weights : kWeightTypes)
      for (int width : {1, 7, 64, 150})
        for (int kernel : {1, 2, 4, 5})
          for (bool bias : {false, true}) {
            const bool silu = width != 64;
            ConvProblem p(random, width, kernel, {0, 9, 10, 12}, weights);
            std::vector<double> windows;
            const std::vector<double> got = p.run_op(2, bias, silu, windows);
            std::vector<double> want, want_windows;
            std::vector<float> naive;
            for (std::size_t s = 0; s + 1 < p.offsets.size(); ++s) {
              const int begin = p.offsets[s], count = p.offsets[s + 1] - begin;
              const auto at = static_cast<std::ptrdiff_t>(s * p.window_size());
              const auto size = static_cast<std::ptrdiff_t>(p.window_size());
              std::vector<double> window(p.windows.begin() + at, p.windows.begin() + at + size);
              std::vector<float> window_f = to_float(window);
              const auto y = oracle::causal_conv<double>(
                  slice(p.x.values(), width, begin, count), p.w.values(),
                  bias ? p.b.values() : oracle::Vector(), width, silu, window);
              const auto y_f = oracle::causal_conv<float>(
                  slice(p.x.floats(), width, begin, count), p.w.floats(),
                  bias ? p.b.floats() : std::vector<float>(), width, silu, window_f);
              want.insert(want.end(), y.begin(), y.end());
              naive.insert(naive.end(), y_f.begin(), y_f.end());
              want_windows.insert(want_windows.end(), window.begin(), window.end());
            }
            errors.add(got, want, naive);
            EXPECT_EQ(windows, want_windows);
          }
    errors.expect_at_most_twice_naive("causal_conv");
  });
}

TEST(CausalConv, WithoutARecordZerosLieBeforeTheText) {
  std::mt19937 random(11);
  ConvProblem p(random, 20, 4, {0, 6, 8}, DType::f32);
  std::fill(p.windows.begin(), p.windows.end(), 0.0);
  std::vector<double> windows;
  const std::vector<double> want = p.run_op(1, true, true, windows);
  std::vector<std::byte*> slots(2, nullptr);
  const Batch batch{p.offsets, slots};
  Array y(DType::f32, {8, 20});
  Context context(test_device(), 1);
  run<CausalConvArgs>(context, causal_conv,
                      {.x = p.x.tensor(),
                       .w = as_blocks(p.w, 1, 4),
                       .b = p.b.tensor(),
                       .batch = batch,
                       .y = y.tensor()});
  EXPECT_EQ(y.values(), want);
}

TEST(CausalConv, NanStaysInItsChannelWindowAndSequence) {
  std::mt19937 random(2);
  ConvProblem p(random, 33, 4, {0, 6, 12}, DType::f32);
  p.x.set(1, 5, NAN);
  std::vector<double> windows;
  const std::vector<double> y = p.run_op(2, true, true, windows);
  for (int t = 0; t < 12; ++t)
    for (int c = 0; c < 33; ++c)
      EXPECT_EQ(std::isnan(y[static_cast<std::size_t>(t * 33 + c)]), c == 5 && t >= 1 && t <= 4)
          << t << " " << c;
}

TEST(HeadwiseLinear, MatchesTheOracle) {
  struct Shape {
    int blocks, in, out;
  };
  for_each_isa([] {
    std::mt19937 random(3);
    for (DType results : card_types()) {
      Errors errors;
      for (DType weights : kWeightTypes)
        for (const Shape s : {Shape{1, 4, 4},
                              {5, 4, 4},
                              {32, 4, 4},
                              {3, 2, 5},
                              {2, 16, 16},
                              {4, 37, 37},
                              {1, 64, 64},
                              {2, 330, 70}})
          for (int tokens : {1, 3, 40})
            for (bool bias : {false, true}) {
              Array x = Array::random(random, DType::f32, {tokens, s.blocks * s.in}, 1, 0, 4);
              Array w =
                  Array::random(random, weights, {s.blocks, s.out * s.in}, 1 / std::sqrt(s.in));
              Array b = Array::random(random, weights, {s.blocks * s.out});
              Array y(results, {tokens, s.blocks * s.out}, 4);
              Context context(test_device(), 2);
              run<HeadwiseLinearArgs>(context, headwise_linear,
                                      {.x = x.tensor(),
                                       .w = as_blocks(w, s.out, s.in),
                                       .b = bias ? b.tensor() : Tensor(),
                                       .y = y.tensor()});
              EXPECT_TRUE(y.gaps_untouched());
              errors.add(y.values(),
                         oracle::headwise_linear<double>(x.values(), w.values(),
                                                         bias ? b.values() : oracle::Vector(),
                                                         s.blocks, s.in, s.out),
                         oracle::headwise_linear<float>(x.floats(), w.floats(),
                                                        bias ? b.floats() : std::vector<float>(),
                                                        s.blocks, s.in, s.out),
                         results);
            }
      errors.expect_at_most_twice_naive(to_string(results));
    }
  });
}

TEST(HeadwiseLinear, NanStaysInItsBlock) {
  for_each_isa([] {
    std::mt19937 random(4);
    Array x = Array::random(random, DType::f32, {3, 40});
    Array w = Array::random(random, DType::f32, {10, 16});
    Array y(DType::f32, {3, 40});
    x.set(1, 9, NAN);
    Context context(test_device(), 1);
    run<HeadwiseLinearArgs>(context, headwise_linear,
                            {.x = x.tensor(), .w = as_blocks(w, 4, 4), .b = {}, .y = y.tensor()});
    const std::vector<double> got = y.values();
    for (int t = 0; t < 3; ++t)
      for (int j = 0; j < 40; ++j)
        EXPECT_EQ(std::isnan(got[static_cast<std::size_t>(t * 40 + j)]), t == 1 && j / 4 == 2);
  });
}

TEST(LayerNorm, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(5);
    for (DType results : kResultTypes) {
      Errors errors;
      for (DType weights : kWeightTypes)
        for (int heads : {1, 4})
          for (int head_width : {2, 16, 33, 256})
            for (int kind = 0; kind < 4; ++kind) {  // without and with w and b
              const bool has_w = (kind & 1) != 0, has_b = (kind & 2) != 0;
              const int width = heads * head_width;
              Array x = Array::random(random, DType::f32, {5, width}, 3.0, 1.0, 2);
              Array w = Array::random(random, weights, {width}, 0.3);
              Array b = Array::random(random, weights, {width}, 0.3);
              Array y(results, {5, width}, 3);
              Context context(test_device(), 2);
              run<LayerNormArgs>(context, layer_norm,
                                 {.x = x.tensor(),
                                  .w = has_w ? w.tensor() : Tensor(),
                                  .b = has_b ? b.tensor() : Tensor(),
                                  .heads = heads,
                                  .eps = kEps,
                                  .y = y.tensor()});
              EXPECT_TRUE(y.gaps_untouched());
              errors.add(y.values(),
                         oracle::layer_norm<double>(
                             x.values(), has_w ? w.values() : oracle::Vector(),
                             has_b ? b.values() : oracle::Vector(), width, heads, kEps),
                         oracle::layer_norm<float>(
                             x.floats(), has_w ? w.floats() : std::vector<float>(),
                             has_b ? b.floats() : std::vector<float>(), width, heads, kEps),
                         results);
            }
      errors.expect_at_most_twice_naive(to_string(results));
    }
  });
}

TEST(LayerNorm, AddsToItsResult) {
  for_each_isa([] {
    std::mt19937 random(6);
    Array x = Array::random(random, DType::f32, {3, 37});
    Array w = Array::random(random, DType::f32, {37});
    Array plain(DType::f32, {3, 37});
    Array sum = Array::random(random, DType::f32, {3, 37}, 1, 0, 2);
    const std::vector<float> before = sum.floats();
    Context context(test_device(), 1);
    LayerNormArgs args{.x = x.tensor(), .w = w.tensor(), .b = {}, .y = plain.tensor()};
    layer_norm(context, args);
    args.accumulate = true;
    args.y = sum.tensor();
    layer_norm(context, args);
    const std::vector<float> added = sum.floats(), alone = plain.floats();
    for (std::size_t i = 0; i < added.size(); ++i) EXPECT_EQ(added[i], before[i] + alone[i]);
  });
}

TEST(SkipGate, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(7);
    for (DType results : kResultTypes) {
      Errors errors;
      for (DType weights : kWeightTypes)
        for (int heads : {1, 4})
          for (int head_width : {3, 16, 65}) {
            const int width = heads * head_width;
            // Of one type or of two.
            const DType of_h = heads == 1 ? DType::f32 : card_types().back();
            Array h = Array::random(random, of_h, {4, width}, 1.0, 0.0, 2);
            Array c = Array::random(random, DType::f32, {4, width}, 1.0, 0.0, 1);
            Array z = Array::random(random, DType::f32, {4, width}, 4.0, 0.0, 3);
            Array w = Array::random(random, weights, {width}, 0.3);
            Array skip = Array::random(random, weights, {width}, 0.3, 1.0);
            Array y(results, {4, width}, 1);
            Context context(test_device(), 2);
            run<SkipGateArgs>(context, skip_gate,
                              {.h = h.tensor(),
                               .w = w.tensor(),
                               .skip = skip.tensor(),
                               .c = c.tensor(),
                               .z = z.tensor(),
                               .heads = heads,
                               .eps = kEps,
                               .y = y.tensor()});
            EXPECT_TRUE(y.gaps_untouched());
            errors.add(y.values(),
                       oracle::skip_gate<double>(h.values(), w.values(), skip.values(), c.values(),
                                                 z.values(), width, heads, kEps),
                       oracle::skip_gate<float>(h.floats(), w.floats(), skip.floats(), c.floats(),
                                                z.floats(), width, heads, kEps),
                       results);
          }
      errors.expect_at_most_twice_naive(to_string(results));
    }
  });
}

TEST(GatedActivation, MatchesTheOracle) {
  struct Kind {
    Activation kind;
    const char* name;
  };
  for_each_isa([] {
    std::mt19937 random(8);
    for (const Kind k : {Kind{Activation::gelu, "gelu"},
                         {Activation::relu, "relu"},
                         {Activation::relu2, "relu^2"},
                         {Activation::sigmoid, "sigmoid"},
                         {Activation::silu, "swish"}})
      for (DType results : kResultTypes) {
        Errors errors;
        for (double scale : {0.01, 1.0, 6.0})
          for (int width : {1, 17, 700}) {
            Array gate = Array::random(random, DType::f32, {3, width}, scale, 0.0, 2);
            Array up = Array::random(random, DType::f32, {3, width}, 1.0, 0.0, 1);
            Array y(results, {3, width}, 3);
            Context context(test_device(), 2);
            run<GatedActivationArgs>(
                context, gated_activation,
                {.gate = gate.tensor(), .up = up.tensor(), .kind = k.kind, .y = y.tensor()});
            EXPECT_TRUE(y.gaps_untouched());
            errors.add(
                y.values(), oracle::gated_activation<double>(gate.values(), up.values(), k.name),
                oracle::gated_activation<float>(gate.floats(), up.floats(), k.name), results);
          }
        errors.expect_at_most_twice_naive(k.name);
      }
  });
}

// Where 1 + erf would cancel: far below 0, and at the borders of what a float holds.
TEST(GatedActivation, GeluIsExactEverywhere) {
  for_each_isa([] {
    std::vector<double> points = {0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, INFINITY, -20.0};
    for (double x = -13; x <= 13; x += 0.0625) points.push_back(x);
    const auto n = static_cast<std::int64_t>(points.size());
    Array gate = Array::of(DType::f32, {1, n}, points);
    Array up = Array::of(DType::f32, {1, n}, std::vector<double>(points.size(), 1.0));
    Array y(DType::f32, {1, n});
    Context context(test_device(), 1);
    gated_activation(context, {.gate = gate.tensor(), .up = up.tensor(), .y = y.tensor()});
    const std::vector<double> got = y.values();
    for (std::size_t i = 0; i < points.size(); ++i) {
      const double x = points[i];
      if (std::isinf(x)) {
        EXPECT_EQ(got[i], x);
        continue;
      }
      const double want = x * 0.5 * std::erfc(-x / std::sqrt(2.0));
      EXPECT_NEAR(got[i], want, 3e-6 * std::fabs(want) + 1e-37) << x;
    }
    gate.set(0, 3, NAN);
    gated_activation(context, {.gate = gate.tensor(), .up = up.tensor(), .y = y.tensor()});
    for (std::size_t i = 0; i < points.size(); ++i) EXPECT_EQ(std::isnan(y.values()[i]), i == 3);
  });
}

TEST(Gates, MatchTheOracle) {
  std::mt19937 random(9);
  Array z = Array::random(random, DType::f32, {50, 6}, 20.0, 0.0, 2);
  z.set(0, 3, -200);
  z.set(0, 4, 200);
  Array i(DType::f32, {50, 3}, 1), log_f(DType::f32, {50, 3}, 2);
  Context context(test_device(), 1);
  gates(context, {.z = z.tensor(), .i = i.tensor(), .log_f = log_f.tensor()});
  const std::vector<double> raw = z.values(), input = i.values(), forget = log_f.values();
  for (std::size_t t = 0; t < 50; ++t)
    for (std::size_t h = 0; h < 3; ++h) {
      EXPECT_EQ(input[t * 3 + h], raw[t * 6 + h]);
      const double want = oracle::log_sigmoid(raw[t * 6 + 3 + h]);
      EXPECT_NEAR(forget[t * 3 + h], want, 6e-8 * std::fabs(want) + 1e-45);
    }
}

TEST(StackOps, WrongArgumentsAreRefused) {
  std::mt19937 random(10);
  Array x = Array::random(random, DType::f32, {3, 12}), y(DType::f32, {3, 12});
  Array w = Array::random(random, DType::f32, {12});
  Array half = Array::random(random, DType::bf16, {3, 12});
  Context context(test_device(), 1);
  expect_refused(
      [&] {
        layer_norm(context,
                   {.x = x.tensor(), .w = w.tensor(), .b = {}, .heads = 5, .y = y.tensor()});
      },
      "multiple of the 5 heads");
  expect_refused(
      [&] {
        layer_norm(
            context,
            {.x = x.tensor(), .w = w.tensor(), .b = {}, .accumulate = true, .y = half.tensor()});
      },
      "y must be f32");
  Array blocks = Array::random(random, DType::f32, {4, 16});
  expect_refused(
      [&] {
        headwise_linear(context,
                        {.x = x.tensor(), .w = as_blocks(blocks, 4, 4), .b = {}, .y = y.tensor()});
      },
      "x must be");
  expect_refused(
      [&] {
        gated_activation(context, {.gate = half.tensor(), .up = x.tensor(), .y = y.tensor()});
      },
      "gate must be f32");
}

}  // namespace
}  // namespace xlstm::ops::test
