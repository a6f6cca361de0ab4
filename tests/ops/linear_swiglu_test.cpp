// linear_swiglu() on the CPU; tests/cuda/matmul_test.cpp has it on CUDA.

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "ops/activation.hpp"
#include "ops/linear.hpp"
#include "ops/support.hpp"

namespace xlstm::ops {
namespace {

TEST(LinearSwiglu, IsLinearAndSwiglu) {
  std::mt19937 random(31);
  constexpr std::int64_t kDepth = 24, kF = 12;
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const std::int64_t rows : {1, 9, 40, 1060}) {  // the last in more than one piece
      test::Array x = test::Array::random(random, type, {rows, kDepth}),
                  gate = test::Array::random(random, type, {kF, kDepth}),
                  up = test::Array::random(random, type, {kF, kDepth}),
                  gate_bias = test::Array::random(random, type, {kF}),
                  up_bias = test::Array::random(random, type, {kF}),
                  both(DType::f32, {rows, 2 * kF}), want(type, {rows, kF}), got(type, {rows, kF});
      const std::vector<Tensor> w = {gate.tensor(), up.tensor()},
                                b = {gate_bias.tensor(), up_bias.tensor()};
      Context context(test_device());
      test::run(context, linear, {.x = x.tensor(), .w = w, .b = b, .y = both.tensor()});
      test::run(context, swiglu,
                {.gate = both.tensor().cols(0, kF),
                 .up = both.tensor().cols(kF, kF),
                 .y = want.tensor()});
      test::run(context, linear_swiglu, {.x = x.tensor(), .w = w, .b = b, .y = got.tensor()});
      const double bound = test::max_abs(want.values()) * (type == DType::f32 ? 1e-6 : 8e-3);
      EXPECT_LE(test::max_error(got.values(), want.values()), bound)
          << to_string(type) << ", " << rows << " rows";
    }
  }
}

TEST(LinearSwiglu, RefusesArgumentsThatDoNotFit) {
  Context context(test_device());
  test::Array x(DType::f32, {2, 8}), w(DType::f32, {4, 8}), other(DType::f32, {5, 8}),
      y(DType::f32, {2, 4});
  const std::vector<Tensor> one = {w.tensor()}, unlike = {w.tensor(), other.tensor()};
  test::expect_refused(
      [&] { linear_swiglu(context, {.x = x.tensor(), .w = one, .b = {}, .y = y.tensor()}); },
      "linear_swiglu: expected 2 weights");
  test::expect_refused(
      [&] { linear_swiglu(context, {.x = x.tensor(), .w = unlike, .b = {}, .y = y.tensor()}); },
      "linear_swiglu: w");
}

TEST(Linear, OnlyCudaGivesBf16) {
  Context context(test_device());
  test::Array x(DType::f32, {2, 8}), w(DType::f32, {4, 8}), y(DType::bf16, {2, 4});
  const Tensor weight = w.tensor();
  test::expect_refused(
      [&] {
        linear(context, {.x = x.tensor(), .w = {&weight, 1}, .b = {}, .y = y.tensor()});
      },
      "linear: expected y f32");
}

}  // namespace
}  // namespace xlstm::ops
