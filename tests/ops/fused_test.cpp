// Fused ops beside the ops that they stand for.

#include "ops/fused.hpp"

#include <cmath>

#include "ops/support.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops::test {
namespace {

constexpr DType kWeightTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr DType kActivations[] = {DType::f32, DType::bf16};

// The same sums in another order; a normed value may also round to the next bf16.
double bound(DType activation) { return activation == DType::f32 ? 2e-6 : 4e-3; }

void expect_near(const Array& got, const Array& want, double bound) {
  const std::vector<double> a = got.values(), b = want.values();
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_FALSE(std::isnan(a[i]) != std::isnan(b[i])) << i;
    difference += std::pow(a[i] - b[i], 2);
    size += std::pow(b[i], 2);
  }
  EXPECT_LE(std::sqrt(difference), bound * std::sqrt(size));
}

struct Shape {
  std::int64_t width, outputs, heads;
};
// Rows of the second are not on 16 bytes: it takes the ops one by one.
constexpr Shape kShapes[] = {{48, 40, 3}, {36, 5, 2}, {256, 130, 4}, {104, 264, 1}};

struct NormLinearProblem {
  Array x, norm_w, norm_b, q, k, b_q, b_k, w_i, w_f, b_i, b_f;
  NormLinearProblem(std::mt19937& random, Shape s, std::int64_t tokens, DType weights)
      : x(Array::random(random, DType::f32, {tokens, s.width}, 2.0, 0.0, 4)),
        norm_w(Array::random(random, weights, {s.width}, 0.3, 1.0)),
        norm_b(Array::random(random, weights, {s.width}, 0.3)),
        q(Array::random(random, weights, {s.outputs, s.width}, 0.2)),
        k(Array::random(random, weights, {s.outputs + 3, s.width}, 0.2)),
        b_q(Array::random(random, weights, {s.outputs})),
        b_k(Array::random(random, weights, {s.outputs + 3})),
        w_i(Array::random(random, weights, {s.heads, s.width}, 0.2)),
        w_f(Array::random(random, weights, {s.heads, s.width}, 0.2)),
        b_i(Array::random(random, weights, {s.heads})),
        b_f(Array::random(random, weights, {s.heads})) {}
};

struct NormLinearResult {
  Array y, i, log_f;
  NormLinearResult(Shape s, std::int64_t tokens)
      : y(DType::f32, {tokens, 2 * s.outputs + 3}, 2),
        i(DType::f32, {tokens, s.heads}, 1),
        log_f(DType::f32, {tokens, s.heads}) {}
};

void run_norm_linear(void (*op)(Context&, const NormLinearArgs&), NormLinearProblem& p,
                     NormLinearResult& r, DType activation, bool biases, bool gates,
                     std::int64_t first = 0, std::int64_t tokens = -1) {
  Context context(test_device(), 2);
  const Tensor w[] = {p.q.tensor(), p.k.tensor()}, b[] = {p.b_q.tensor(), p.b_k.tensor()};
  const auto part = [&](const Tensor& t) { return tokens < 0 ? t : t.rows(first, tokens); };
  NormLinearArgs args{.x = part(p.x.tensor()),
                      .norm_w = p.norm_w.tensor(),
                      .norm_b = biases ? p.norm_b.tensor() : Tensor(),
                      .activation = activation,
                      .w = w,
                      .b = biases ? std::span<const Tensor>(b) : std::span<const Tensor>(),
                      .y = part(r.y.tensor())};
  if (gates) {
    args.w_i = p.w_i.tensor();
    args.w_f = p.w_f.tensor();
    args.b_i = p.b_i.tensor();
    args.b_f = p.b_f.tensor();
    args.i = part(r.i.tensor());
    args.log_f = part(r.log_f.tensor());
  }
  run(context, op, args);
}

TEST(FewThatPend, AreFewerWhereCIsLarger) {
  EXPECT_EQ(few_that_pend(8 * 256 * 512 * 4), 3) << "the 7B";
  EXPECT_EQ(few_that_pend(4 * 128 * 256 * 4), kExactPendsFrom);
  EXPECT_EQ(few_that_pend(0), kExactPendsFrom) << "no mLSTM cell";
  EXPECT_EQ(few_that_pend(std::int64_t{1} << 40), 2);
  std::int64_t last = kExactPendsFrom;
  for (std::int64_t bytes = 1000; bytes < 100'000'000; bytes += bytes / 7) {
    const std::int64_t few = few_that_pend(bytes);
    EXPECT_LE(few, last);
    EXPECT_GE(few, 2);
    last = few;
  }
}

TEST(NormLinear, IsItsParts) {
  std::mt19937 random(1);
  for (const Shape s : kShapes)
    for (const DType weights : kWeightTypes)
      for (const DType activation : kActivations)
        for (const std::int64_t tokens : {1, 2, 5, 9, 16, 17, 40, 257})
          for (const bool all : {false, true}) {
            SCOPED_TRACE(testing::Message() << s.width << " " << to_string(weights) << " "
                                            << to_string(activation) << " " << tokens);
            NormLinearProblem p(random, s, tokens, weights);
            NormLinearResult fused(s, tokens), parts(s, tokens);
            run_norm_linear(norm_linear, p, fused, activation, all, all);
            run_norm_linear(composed::norm_linear, p, parts, activation, all, all);
            expect_near(fused.y, parts.y, bound(activation));
            EXPECT_TRUE(fused.y.gaps_untouched());
            if (!all) continue;
            expect_near(fused.i, parts.i, 2e-6);
            expect_near(fused.log_f, parts.log_f, 2e-6);
            EXPECT_TRUE(fused.i.gaps_untouched());
          }
}

TEST(NormLinear, ATokenHasTheSameBitsInAnyBatch) {
  std::mt19937 random(2);
  for (const Shape s : kShapes)
    for (const DType activation : kActivations) {
      NormLinearProblem p(random, s, 16, DType::bf16);
      NormLinearResult all(s, 16), alone(s, 16);
      p.x.set(3, 5, NAN);  // and a NaN stays in its token
      run_norm_linear(norm_linear, p, all, activation, true, true);
      for (std::int64_t t = 0; t < 16; ++t)
        run_norm_linear(norm_linear, p, alone, activation, true, true, t, 1);
      EXPECT_EQ(all.y.bytes(), alone.y.bytes());
      EXPECT_EQ(all.i.bytes(), alone.i.bytes());
      EXPECT_EQ(all.log_f.bytes(), alone.log_f.bytes());
    }
}

TEST(HeadNormLinear, IsItsPartsAddedToWhatWasThere) {
  std::mt19937 random(3);
  for (const Shape s : kShapes)
    for (const DType weights : kWeightTypes)
      for (const DType activation : kActivations)
        for (const std::int64_t tokens : {1, 3, 16}) {
          Array h = Array::random(random, DType::f32, {tokens, s.width}, 2.0, 0.5, 4);
          Array o = Array::random(random, DType::f32, {tokens, s.width}, 2.0, 0.0, 1);
          Array norm_w = Array::random(random, weights, {s.width}, 0.3, 1.0);
          Array norm_b = Array::random(random, weights, {s.width}, 0.3);
          Array w = Array::random(random, weights, {s.outputs, s.width}, 0.2);
          Array b = Array::random(random, weights, {s.outputs});
          Array y = Array::random(random, DType::f32, {tokens, s.outputs}, 1.0, 0.0, 2);
          Array fused = y, parts = y;
          const Tensor weight = w.tensor(), bias = b.tensor();
          for (const bool biases : {false, true}) {
            Context context(test_device(), 2);
            HeadNormLinearArgs args{.h = h.tensor(),
                                    .o = o.tensor(),
                                    .norm_w = norm_w.tensor(),
                                    .norm_b = biases ? norm_b.tensor() : Tensor(),
                                    .heads = s.heads,
                                    .activation = activation,
                                    .w = {&weight, 1},
                                    .b = {},
                                    .y = fused.tensor()};
            if (biases) args.b = {&bias, 1};
            run(context, head_norm_linear, args);
            args.y = parts.tensor();
            run(context, composed::head_norm_linear, args);
          }
          expect_near(fused, parts, bound(activation));
          EXPECT_TRUE(fused.gaps_untouched());
        }
}

TEST(NormLinearSwiglu, IsItsParts) {
  std::mt19937 random(4);
  for (const Shape s : kShapes)
    for (const DType weights : kWeightTypes)
      for (const DType activation : kActivations)
        for (const std::int64_t tokens : {1, 4, 7, 16}) {
          Array x = Array::random(random, DType::f32, {tokens, s.width}, 2.0, 0.0, 4);
          Array norm_w = Array::random(random, weights, {s.width}, 0.3, 1.0);
          Array gate = Array::random(random, weights, {s.outputs, s.width}, 0.2);
          Array up = Array::random(random, weights, {s.outputs, s.width}, 0.2);
          Array b_gate = Array::random(random, weights, {s.outputs});
          Array b_up = Array::random(random, weights, {s.outputs});
          Array fused(activation, {tokens, s.outputs}, 3), parts = fused, alone = fused;
          const Tensor w[] = {gate.tensor(), up.tensor()}, b[] = {b_gate.tensor(), b_up.tensor()};
          for (const bool biases : {true, false}) {
            Context context(test_device(), 2);
            NormLinearSwigluArgs args{.x = x.tensor(),
                                      .norm_w = norm_w.tensor(),
                                      .norm_b = {},
                                      .w = w,
                                      .b = {},
                                      .y = fused.tensor()};
            if (biases) args.b = b;
            run(context, norm_linear_swiglu, args);
            args.y = parts.tensor();
            run(context, composed::norm_linear_swiglu, args);
            expect_near(fused, parts, activation == DType::f32 ? 4e-6 : 1e-2);
            for (std::int64_t t = 0; t < tokens; ++t) {
              args.x = x.tensor().rows(t, 1);
              args.y = alone.tensor().rows(t, 1);
              run(context, norm_linear_swiglu, args);
            }
            EXPECT_EQ(alone.bytes(), fused.bytes());
          }
        }
}

TEST(FusedOps, RefuseWhatDoesNotFit) {
  std::mt19937 random(5);
  constexpr std::int64_t kTokens = 17, kWidth = 48, kOutputs = 40;
  Array x = Array::random(random, DType::f32, {kTokens, kWidth}, 1.0);
  Array norm_w = Array::random(random, DType::f32, {kWidth}, 0.3);
  Array w = Array::random(random, DType::f32, {kOutputs, kWidth}, 0.2);
  Array y(DType::f32, {kTokens, kOutputs});
  const Tensor weights[] = {w.tensor(), w.tensor()};
  Context context(test_device(), 2);
  const NormLinearSwigluArgs args{.x = x.tensor(),
                                  .norm_w = norm_w.tensor(),
                                  .norm_b = {},
                                  .w = weights,
                                  .b = {},
                                  .y = y.tensor()};
  expect_refused([&] { run(context, norm_linear_swiglu, args); }, "at most 16 tokens");
}

}  // namespace
}  // namespace xlstm::ops::test
