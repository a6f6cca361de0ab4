#include "ops/norm.hpp"

#include <cmath>

#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {
namespace {

constexpr DType kWeightTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr DType kResultTypes[] = {DType::f32, DType::bf16};
constexpr float kEps = 1e-6F;

TEST(RmsNorm, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(1);
    for (DType results : kResultTypes) {
      Errors errors;
      for (DType weights : kWeightTypes)
        for (bool bias : {false, true})
          for (int width : {1, 5, 16, 63, 129, 4096})
            for (double scale : {1e-4, 1.0, 1e3}) {
              const int gap = width > 16 ? 8 : 3;  // rows on 16 bytes, or not
              Array x = Array::random(random, DType::f32, {5, width}, scale, 0.0, gap);
              Array w = Array::random(random, weights, {width}, 0.3, 1.0);
              Array b = Array::random(random, weights, {width}, 0.3);
              Array y(results, {5, width}, gap);
              Context context(test_device(), 2);
              run<RmsNormArgs>(context, rms_norm,
                               {.x = x.tensor(),
                                .w = w.tensor(),
                                .b = bias ? b.tensor() : Tensor(),
                                .eps = kEps,
                                .y = y.tensor()});
              const auto want = oracle::rms_norm<double>(
                  x.values(), w.values(), bias ? b.values() : oracle::Vector(), width, kEps);
              const auto naive = oracle::rms_norm<float>(
                  x.floats(), w.floats(), bias ? b.floats() : std::vector<float>(), width, kEps);
              errors.add(y.values(), want, naive, results);
              EXPECT_TRUE(y.gaps_untouched());
            }
      errors.expect_at_most_twice_naive(to_string(results));
    }
  });
}

TEST(RmsNorm, WorksInPlaceAndKeepsNanInItsRow) {
  for_each_isa([] {
    std::mt19937 random(2);
    const int width = 37;
    Array x = Array::random(random, DType::f32, {3, width});
    Array w = Array::random(random, DType::f32, {width});
    const oracle::Vector want = oracle::rms_norm<double>(x.values(), w.values(), {}, width, kEps);
    x.set(1, 4, NAN);
    Context context(test_device(), 1);
    rms_norm(context, {.x = x.tensor(), .w = w.tensor(), .b = {}, .eps = kEps, .y = x.tensor()});
    const std::vector<double> got = x.values();
    for (int t : {0, 2})
      for (int d = 0; d < width; ++d)
        EXPECT_NEAR(got[t * width + d], want[t * width + d], 2e-6) << t << " " << d;
    for (int d = 0; d < width; ++d) EXPECT_TRUE(std::isnan(got[width + d]));
  });
}

struct Gates {
  Array x, w, b, w_i, w_f, b_i, b_f;
  Gates(std::mt19937& random, int rows, int width, int heads, DType weights, int gap = 3)
      : x(Array::random(random, DType::f32, {rows, width}, 2.0, 0.0, gap)),
        w(Array::random(random, weights, {width}, 0.3, 1.0)),
        b(Array::random(random, weights, {width}, 0.3)),
        w_i(Array::random(random, weights, {heads, width}, 4 / std::sqrt(width), 0.0, gap)),
        w_f(Array::random(random, weights, {heads, width}, 4 / std::sqrt(width))),
        b_i(Array::random(random, weights, {heads}, 1.0, -5.0)),
        b_f(Array::random(random, weights, {heads}, 1.0, 4.0)) {}
  RmsNormGatesArgs args(Array& u, Array& i, Array& log_f, float cap) {
    return {.x = x.tensor(),
            .w = w.tensor(),
            .b = b.tensor(),
            .w_i = w_i.tensor(),
            .w_f = w_f.tensor(),
            .b_i = b_i.tensor(),
            .b_f = b_f.tensor(),
            .eps = kEps,
            .cap = cap,
            .u = u.tensor(),
            .i = i.tensor(),
            .log_f = log_f.tensor()};
  }
};

/// i and log f in the arithmetic of `Real`.
template <class Real>
void gates_of(const std::vector<Real>& u, const std::vector<Real>& w, const std::vector<Real>& b,
              int width, int heads, Real cap, bool forget, std::vector<Real>& result) {
  result = oracle::soft_cap<Real>(oracle::linear<Real>(u, w, b, width, heads), cap);
  if (forget)
    for (Real& value : result) value = oracle::log_sigmoid(value);
}

struct GateErrors {
  Errors u, i, log_f;
  void add(Gates& g, int rows, int width, int heads, DType results, float cap, int gap) {
    Array result(results, {rows, width}, gap), i_result(DType::f32, {rows, heads}, 1),
        f_result(DType::f32, {rows, heads});
    Context context(test_device(), 2);
    run<RmsNormGatesArgs>(context, rms_norm_gates, g.args(result, i_result, f_result, cap));

    const auto want =
        oracle::rms_norm<double>(g.x.values(), g.w.values(), g.b.values(), width, kEps);
    const auto naive =
        oracle::rms_norm<float>(g.x.floats(), g.w.floats(), g.b.floats(), width, kEps);
    u.add(result.values(), want, naive, results);
    std::vector<double> exact;
    std::vector<float> single;
    gates_of<double>(want, g.w_i.values(), g.b_i.values(), width, heads, cap, false, exact);
    gates_of<float>(naive, g.w_i.floats(), g.b_i.floats(), width, heads, cap, false, single);
    i.add(i_result.values(), exact, single);
    gates_of<double>(want, g.w_f.values(), g.b_f.values(), width, heads, cap, true, exact);
    gates_of<float>(naive, g.w_f.floats(), g.b_f.floats(), width, heads, cap, true, single);
    log_f.add(f_result.values(), exact, single);
    EXPECT_TRUE(result.gaps_untouched() && i_result.gaps_untouched());
  }
  void expect_at_most_twice_naive(DType results) {
    u.expect_at_most_twice_naive(to_string(results));
    i.expect_at_most_twice_naive("i");
    log_f.expect_at_most_twice_naive("log f");
  }
};

TEST(RmsNormGates, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(3);
    for (DType results : kResultTypes) {
      GateErrors errors;
      for (DType weights : kWeightTypes)
        for (float cap : {15.0F, 0.0F})
          for (int heads : {1, 4, 7, 8, 13})
            for (int width : {3, 64, 257, 1024}) {
              Gates g(random, 3, width, heads, weights);
              errors.add(g, 3, width, heads, results, cap, 2);
            }
      errors.expect_at_most_twice_naive(results);
    }
  });
}

// As a model's are. CUDA devices take several rows at a time, and tensor cores.
TEST(RmsNormGates, AlignedRowsMatchTheOracle) {
  for_each_isa([] {
    std::mt19937 random(7);
    for (DType results : kResultTypes) {
      GateErrors errors;
      for (int heads : {1, 4, 8, 13})
        for (int width : {16, 272, 1024, 4096})
          for (int rows : {1, 6, 37}) {
            Gates g(random, rows, width, heads, DType::bf16, 8);
            errors.add(g, rows, width, heads, results, 15.0F, 8);
          }
      errors.expect_at_most_twice_naive(results);
    }
  });
}

TEST(RmsNormGates, RowsDoNotDependOnRowsOrThreads) {
  for_each_isa([] {
    std::mt19937 random(4);
    const int rows = 40, heads = 6;
    for (const int width : {1000, 1024}) {
      Gates g(random, rows, width, heads, DType::bf16, 8);
      Array u(DType::f32, {rows, width}), i(DType::f32, {rows, heads}),
          f(DType::f32, {rows, heads});
      Context four(test_device(), 4), one(test_device(), 1);
      const RmsNormGatesArgs all = g.args(u, i, f, 15.0F);
      run<RmsNormGatesArgs>(four, rms_norm_gates, all);
      const auto u_bits = u.bytes(), i_bits = i.bytes(), f_bits = f.bytes();
      u.poison();
      i.poison();
      f.poison();
      for (int t = 0; t < rows; ++t) {
        RmsNormGatesArgs row = all;
        for (Tensor* tensor : {&row.x, &row.u, &row.i, &row.log_f}) *tensor = tensor->rows(t, 1);
        run<RmsNormGatesArgs>(one, rms_norm_gates, row);
      }
      EXPECT_EQ(u.bytes(), u_bits);
      EXPECT_EQ(i.bytes(), i_bits);
      EXPECT_EQ(f.bytes(), f_bits);
    }
  });
}

// Strong gates: log sigmoid must neither overflow nor round to 0.
TEST(RmsNormGates, LogSigmoidIsStable) {
  for_each_isa([] {
    const std::vector<double> biases{-100, -88, -25, -1e-3, 0, 1e-3, 25, 50, 80};
    const auto heads = static_cast<std::int64_t>(biases.size());
    Array x = Array::of(DType::f32, {1, 2}, {1, 1}), w = Array::of(DType::f32, {2}, {1, 1});
    Array zero = Array::of(DType::f32, {heads, 2}, std::vector<double>(2 * biases.size()));
    Array bias = Array::of(DType::f32, {heads}, biases);
    Array u(DType::f32, {1, 2}), i(DType::f32, {1, heads}), log_f(DType::f32, {1, heads});
    Context context(test_device(), 1);
    run<RmsNormGatesArgs>(context, rms_norm_gates,
                          {.x = x.tensor(),
                           .w = w.tensor(),
                           .b = {},
                           .w_i = zero.tensor(),
                           .w_f = zero.tensor(),
                           .b_i = bias.tensor(),
                           .b_f = bias.tensor(),
                           .eps = kEps,
                           .cap = 0.0F,
                           .u = u.tensor(),
                           .i = i.tensor(),
                           .log_f = log_f.tensor()});
    EXPECT_EQ(i.values(), bias.values());
    const std::vector<double> got = log_f.values();
    for (std::size_t h = 0; h < biases.size(); ++h) {
      const double want = oracle::log_sigmoid(bias.values()[h]);
      EXPECT_NEAR(got[h], want, 0x1p-23 * std::abs(want)) << biases[h];
      EXPECT_LT(got[h], 0.0);
    }
  });
}

TEST(HeadNorm, MatchesTheOracle) {
  for_each_isa([] {
    std::mt19937 random(5);
    for (DType results : kResultTypes) {
      Errors errors;
      for (DType weights : kWeightTypes)
        for (bool bias : {false, true})
          for (int heads : {1, 3})
            for (int head_width : {1, 2, 17, 64, 512, 515, 1024})
              for (double scale : {1e-5, 1.0}) {
                const int width = heads * head_width;
                // A mean far from 0 punishes a variance taken as a difference of squares.
                const int gap = head_width >= 512 ? 8 : 3;
                Array h = Array::random(random, DType::f32, {4, width}, scale, 10 * scale, gap);
                Array o = Array::random(random, DType::f32, {4, width}, 3.0, 0.0, gap);
                Array w = Array::random(random, weights, {width}, 0.3, 1.0);
                Array b = Array::random(random, weights, {width}, 0.3);
                Array y(results, {4, width}, gap);
                Context context(test_device(), 2);
                run<HeadNormArgs>(context, head_norm,
                                  {.h = h.tensor(),
                                   .o = o.tensor(),
                                   .w = w.tensor(),
                                   .b = bias ? b.tensor() : Tensor(),
                                   .heads = heads,
                                   .eps = kEps,
                                   .y = y.tensor()});
                const auto want = oracle::head_norm<double>(h.values(), o.values(), w.values(),
                                                            bias ? b.values() : oracle::Vector(),
                                                            heads, head_width, kEps);
                const auto naive = oracle::head_norm<float>(
                    h.floats(), o.floats(), w.floats(), bias ? b.floats() : std::vector<float>(),
                    heads, head_width, kEps);
                errors.add(y.values(), want, naive, results);
                EXPECT_TRUE(y.gaps_untouched());
              }
      errors.expect_at_most_twice_naive(to_string(results));
    }
  });
}

TEST(HeadNorm, WorksInPlaceAndKeepsNanInItsHead) {
  for_each_isa([] {
    std::mt19937 random(6);
    const int heads = 3, head_width = 21, width = heads * head_width;
    Array h = Array::random(random, DType::f32, {2, width});
    Array o = Array::random(random, DType::f32, {2, width});
    Array w = Array::random(random, DType::f32, {width});
    const auto want =
        oracle::head_norm<double>(h.values(), o.values(), w.values(), {}, heads, head_width, kEps);
    h.set(1, head_width + 3, NAN);
    o.set(0, 5, NAN);
    o.set(0, 6, -INFINITY);
    o.set(0, 7, INFINITY);
    Context context(test_device(), 1);
    head_norm(context, {.h = h.tensor(),
                        .o = o.tensor(),
                        .w = w.tensor(),
                        .b = {},
                        .heads = heads,
                        .eps = kEps,
                        .y = h.tensor()});
    const std::vector<double> got = h.values();
    for (int at = 0; at < 2 * width; ++at) {
      if (at == 5 || (at >= width + head_width && at < width + 2 * head_width)) {
        EXPECT_TRUE(std::isnan(got[at])) << at;
      } else if (at == 6) {
        EXPECT_EQ(got[at], 0.0);
      } else if (at != 7) {
        EXPECT_NEAR(got[at], want[at], 3e-6) << at;
      }
    }
  });
}

TEST(Norm, RefusesBadArguments) {
  Array x(DType::f32, {2, 6}), w(DType::f32, {5}), good(DType::f32, {6}), half(DType::f16, {2, 6});
  Context context(test_device(), 1);
  expect_refused(
      [&] { rms_norm(context, {.x = x.tensor(), .w = w.tensor(), .b = {}, .y = x.tensor()}); },
      "rms_norm: w must be f32, bf16 or f16[6], found f32[5]");
  expect_refused(
      [&] {
        rms_norm(context, {.x = half.tensor(), .w = good.tensor(), .b = {}, .y = x.tensor()});
      },
      "x must be f32[2, 6], found f16[2, 6]");
  expect_refused([&] { rms_norm(context, {.x = x.tensor(), .w = {}, .b = {}, .y = x.tensor()}); },
                 "w must be f32, bf16 or f16[6], found no tensor");
  expect_refused(
      [&] {
        head_norm(context, {.h = x.tensor(),
                            .o = x.tensor(),
                            .w = good.tensor(),
                            .b = {},
                            .heads = 4,
                            .y = x.tensor()});
      },
      "the width 6 must be a multiple of the 4 heads");
}

}  // namespace
}  // namespace xlstm::ops::test
