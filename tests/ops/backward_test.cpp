// Backward passes of the ops beside the cells, against central differences of the oracle's forward
// passes in double, element by element.

#include <cmath>

#include "ops/activation.hpp"
#include "ops/central_differences.hpp"
#include "ops/embed.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"
#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {
namespace {

using oracle::Vector;

TEST(RmsNormBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    std::mt19937 random(1);
    for (DType weights : {DType::f32, DType::bf16})
      for (int width : {1, 5, 16, 37}) {
        const int tokens = 35;  // more than one block of rows
        Array x = Array::random(random, DType::f32, {tokens, width}, 1.0, 0.2, 2);
        Array w = Array::random(random, weights, {width}, 0.3, 1.0);
        Array d_y = Array::random(random, DType::f32, {tokens, width}, 1.0, 0.0, 1);
        Array d_x = Array::random(random, DType::f32, {tokens, width}, 1.0, 0.0, 3);
        Array d_w = Array::random(random, DType::f32, {width}), d_b = d_w;
        const Array x0 = d_x, w0 = d_w, b0 = d_b;
        Context context({}, 2);
        // Not run(): the op adds.
        const RmsNormBackwardArgs args{.x = x.tensor(),
                                       .w = w.tensor(),
                                       .eps = 1e-3F,
                                       .d_y = d_y.tensor(),
                                       .d_x = d_x.tensor(),
                                       .d_w = d_w.tensor(),
                                       .d_b = d_b.tensor()};
        run<RmsNormBackwardArgs>(context, rms_norm_backward, args);
        Vector xs = x.values(), ws = w.values(), bs(std::size_t(width), 0.0);
        const Vector dy = d_y.values();
        const auto loss = [&] {
          return dot(dy, oracle::rms_norm<double>(xs, ws, bs, width, 1e-3));
        };
        near(added(d_x, x0), central(xs, loss), "x");
        near(added(d_w, w0), central(ws, loss), "w");
        near(added(d_b, b0), central(bs, loss), "b");
        EXPECT_TRUE(d_x.gaps_untouched());
      }
  });
}

TEST(RmsNormGatesBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    std::mt19937 random(2);
    for (float cap : {15.0F, 2.0F, 0.0F})
      for (bool sigmoid : {false, true})
        for (int heads : {1, 3, 9}) {
          const int tokens = 34, width = 21;
          const auto matrix = [&](std::int64_t rows, std::int64_t columns, double scale) {
            return Array::random(random, DType::f32, {rows, columns}, scale, 0.0, 1);
          };
          const auto vector = [&](std::int64_t size, double mean) {
            return Array::random(random, DType::f32, {size}, 0.3, mean);
          };
          Array x = matrix(tokens, width, 1), w = vector(width, 1), b = vector(width, 0);
          Array w_i = matrix(heads, width, 0.5), w_f = matrix(heads, width, 0.5);
          Array b_i = vector(heads, -1), b_f = vector(heads, 2);
          Array u(DType::f32, {tokens, width}), i(DType::f32, {tokens, heads}), log_f = i;
          Context context({}, 2);
          run<RmsNormGatesArgs>(context, rms_norm_gates,
                                {.x = x.tensor(),
                                 .w = w.tensor(),
                                 .b = b.tensor(),
                                 .w_i = w_i.tensor(),
                                 .w_f = w_f.tensor(),
                                 .b_i = b_i.tensor(),
                                 .b_f = b_f.tensor(),
                                 .eps = 1e-3F,
                                 .cap = cap,
                                 .u = u.tensor(),
                                 .i = i.tensor(),
                                 .log_f = log_f.tensor(),
                                 .sigmoid_input = sigmoid});
          Array d_u = matrix(tokens, width, 1), d_i = matrix(tokens, heads, 1);
          Array d_f = matrix(tokens, heads, 1), d_x = matrix(tokens, width, 1);
          const Vector du = d_u.values(), di = d_i.values(), df = d_f.values();
          Array d_w = vector(width, 0), d_b = d_w, d_w_i = matrix(heads, width, 1), d_w_f = d_w_i;
          Array d_b_i = vector(heads, 0), d_b_f = d_b_i;
          const Array x0 = d_x, w0 = d_w, wi0 = d_w_i, bi0 = d_b_i;
          run<RmsNormGatesBackwardArgs>(context, rms_norm_gates_backward,
                                        {.x = x.tensor(),
                                         .w = w.tensor(),
                                         .b = b.tensor(),
                                         .w_i = w_i.tensor(),
                                         .w_f = w_f.tensor(),
                                         .eps = 1e-3F,
                                         .cap = cap,
                                         .sigmoid_input = sigmoid,
                                         .i = i.tensor(),
                                         .log_f = log_f.tensor(),
                                         .d_i = d_i.tensor(),
                                         .d_log_f = d_f.tensor(),
                                         .d_u = d_u.tensor(),
                                         .d_x = d_x.tensor(),
                                         .d_w = d_w.tensor(),
                                         .d_b = d_b.tensor(),
                                         .d_w_i = d_w_i.tensor(),
                                         .d_w_f = d_w_f.tensor(),
                                         .d_b_i = d_b_i.tensor(),
                                         .d_b_f = d_b_f.tensor()});
          Vector xs = x.values(), ws = w.values(), bs = b.values(), wis = w_i.values();
          Vector wfs = w_f.values(), bis = b_i.values(), bfs = b_f.values();
          const auto loss = [&] {
            const Vector normed = oracle::rms_norm<double>(xs, ws, bs, width, 1e-3);
            const auto gate = [&](const Vector& weight, const Vector& bias, bool logarithm) {
              Vector z = oracle::soft_cap<double>(
                  oracle::linear<double>(normed, weight, bias, width, heads), cap);
              if (logarithm)
                for (double& value : z) value = oracle::log_sigmoid(value);
              return z;
            };
            return dot(du, normed) + dot(di, gate(wis, bis, sigmoid)) +
                   dot(df, gate(wfs, bfs, true));
          };
          near(added(d_x, x0), central(xs, loss), "x", 2e-5);
          near(added(d_w, w0), central(ws, loss), "w", 2e-5);
          near(added(d_b, w0), central(bs, loss), "b", 2e-5);
          near(added(d_w_i, wi0), central(wis, loss), "w_i", 2e-5);
          near(added(d_w_f, wi0), central(wfs, loss), "w_f", 2e-5);
          near(added(d_b_i, bi0), central(bis, loss), "b_i", 2e-5);
          near(added(d_b_f, bi0), central(bfs, loss), "b_f", 2e-5);
        }
  });
}

TEST(HeadNormBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    std::mt19937 random(3);
    for (int heads : {1, 3})
      for (int head_width : {2, 7, 16, 33})
        for (bool in_place : {false, true}) {
          const int tokens = 34, width = heads * head_width;
          const auto matrix = [&] {
            return Array::random(random, DType::f32, {tokens, width}, 1.0, 0.1, 2);
          };
          Array h = matrix(), o = matrix(), d_y = matrix(), d_h = matrix(), d_o = matrix();
          Array w = Array::random(random, DType::f32, {width}, 0.3, 1.0);
          Array b = Array::random(random, DType::f32, {width}, 0.3);
          Array d_w = Array::random(random, DType::f32, {width}), d_b = d_w;
          const Array w0 = d_w;
          const Vector dy = d_y.values();
          Context context({}, 2);
          run<HeadNormBackwardArgs>(context, head_norm_backward,
                                    {.h = h.tensor(),
                                     .o = o.tensor(),
                                     .w = w.tensor(),
                                     .b = b.tensor(),
                                     .heads = heads,
                                     .eps = 1e-2F,
                                     .d_y = d_y.tensor(),
                                     .d_h = in_place ? d_y.tensor() : d_h.tensor(),
                                     .d_o = d_o.tensor(),
                                     .d_w = d_w.tensor(),
                                     .d_b = d_b.tensor()});
          Vector hs = h.values(), os = o.values(), ws = w.values(), bs = b.values();
          const auto loss = [&] {
            return dot(dy, oracle::head_norm<double>(hs, os, ws, bs, heads, head_width, 1e-2F));
          };
          near(in_place ? d_y.values() : d_h.values(), central(hs, loss), "h", 2e-5);
          near(d_o.values(), central(os, loss), "o", 2e-5);
          near(added(d_w, w0), central(ws, loss), "w", 2e-5);
          near(added(d_b, w0), central(bs, loss), "b", 2e-5);
        }
  });
}

TEST(SwigluBackward, MatchesCentralDifferencesInPlace) {
  for_each_isa([] {
    std::mt19937 random(4);
    for (int width : {1, 15, 64, 67}) {
      Array gate = Array::random(random, DType::f32, {3, width}, 3.0, 0.0, 1);
      Array up = Array::random(random, DType::f32, {3, width}, 1.0, 0.0, 2);
      Array d_y = Array::random(random, DType::f32, {3, width});
      Vector gates = gate.values(), ups = up.values();
      const Vector dy = d_y.values();
      const auto loss = [&] { return dot(dy, oracle::swiglu<double>(gates, ups)); };
      Context context({}, 2);
      swiglu_backward(context, {.gate = gate.tensor(),
                                .up = up.tensor(),
                                .d_y = d_y.tensor(),
                                .d_gate = gate.tensor(),
                                .d_up = up.tensor()});
      near(gate.values(), central(gates, loss), "gate");
      near(up.values(), central(ups, loss), "up");
    }
  });
}

TEST(EmbedBackward, AddsEveryTokenToItsRow) {
  for_each_isa([] {
    std::mt19937 random(5);
    const int width = 67;
    const std::vector<std::int32_t> ids{3, 0, 3, 3, 1, 0};
    Array d_y = Array::random(random, DType::f32, {6, width}, 1.0, 0.0, 1);
    Array d_table = Array::random(random, DType::f32, {5, width}, 1.0, 0.0, 2);
    Vector want = d_table.values();
    for (std::size_t t = 0; t < ids.size(); ++t)
      for (int d = 0; d < width; ++d)
        want[std::size_t(ids[t] * width + d)] += d_y.values()[t * width + std::size_t(d)];
    Context context({}, 3);
    embed_backward(context, {.ids = ids, .d_y = d_y.tensor(), .d_table = d_table.tensor()});
    near(d_table.values(), want, "table", 1e-6);
    const std::vector<std::int32_t> wrong{0, 0, 0, 5, 0, 0};
    expect_refused(
        [&] {
          embed_backward(context, {.ids = wrong, .d_y = d_y.tensor(), .d_table = d_table.tensor()});
        },
        "ids must be in [0, 5), found 5");
  });
}

// Gradients of a group of layers that share x. All sums in double from the operands as stored: in
// bf16, d_y too is rounded for the products.
void expect_linear_backward(DType activations, DType weights, int tokens, bool accumulate) {
  std::mt19937 random(6);
  const int inputs = 37, outputs[] = {5, 48};
  Array x = Array::random(random, activations, {tokens, inputs}, 1.0, 0.0, 3);
  Array d_y = Array::random(random, DType::f32, {tokens, 53}, 1.0, 0.0, 1);
  Array w[] = {Array::random(random, weights, {5, inputs}, 0.5, 0.0, 1),
               Array::random(random, weights, {48, inputs}, 0.5)};
  Array d_w[] = {Array::random(random, DType::f32, {5, inputs}),
                 Array::random(random, DType::f32, {48, inputs}, 1.0, 0.0, 2)};
  Array d_b[] = {Array::random(random, DType::f32, {5}), Array::random(random, DType::f32, {48})};
  Array d_x = Array::random(random, DType::f32, {tokens, inputs}, 1.0, 0.0, 2);
  const Array w0[] = {d_w[0], d_w[1]}, b0[] = {d_b[0], d_b[1]}, x0 = d_x;
  const Tensor ws[] = {w[0].tensor(), w[1].tensor()};
  const Tensor d_ws[] = {d_w[0].tensor(), d_w[1].tensor()};
  const Tensor d_bs[] = {d_b[0].tensor(), d_b[1].tensor()};
  Context context({}, 2);
  run<LinearBackwardArgs>(context, linear_backward,
                          {.x = x.tensor(),
                           .w = ws,
                           .d_y = d_y.tensor(),
                           .d_x = d_x.tensor(),
                           .accumulate = accumulate,
                           .d_w = d_ws,
                           .d_b = d_bs});
  const Vector xs = x.values(), dy = d_y.values();
  Vector want_x(std::size_t(tokens * inputs));
  int first = 0;
  for (int i = 0; i < 2; ++i) {
    const Vector wi = w[i].values();
    Vector want_w(wi.size()), want_b(static_cast<std::size_t>(outputs[i]));
    for (int t = 0; t < tokens; ++t)
      for (int n = 0; n < outputs[i]; ++n) {
        const double d = dy[std::size_t(t * 53 + first + n)];
        want_b[std::size_t(n)] += d;
        for (int k = 0; k < inputs; ++k) {
          want_w[std::size_t(n * inputs + k)] += d * xs[std::size_t(t * inputs + k)];
          want_x[std::size_t(t * inputs + k)] += d * wi[std::size_t(n * inputs + k)];
        }
      }
    const double bound = activations == DType::bf16 && weights == DType::bf16 ? 5e-3 : 2e-6;
    near(added(d_w[i], w0[i]), want_w, "w", bound);
    near(added(d_b[i], b0[i]), want_b, "b", 2e-6);
    first += outputs[i];
    EXPECT_TRUE(d_w[i].gaps_untouched());
    if (i == 1) near(accumulate ? added(d_x, x0) : d_x.values(), want_x, "x", bound);
  }
  EXPECT_TRUE(d_x.gaps_untouched());
}

TEST(LinearBackward, MatchesSumsInDouble) {
  for_each_isa([] {
    for (DType activations : {DType::f32, DType::bf16})
      for (DType weights : {DType::f32, DType::bf16, DType::f16})
        for (int tokens : {1, 7, 130})
          for (bool accumulate : {false, true}) {
            SCOPED_TRACE(std::string(to_string(activations)) + " x " + to_string(weights) + ", " +
                         std::to_string(tokens));
            expect_linear_backward(activations, weights, tokens, accumulate);
          }
  });
}

// What only some layers want: no gradient of x (the first layer), none of W (frozen weights).
TEST(LinearBackward, LeavesOutWhatIsNotWanted) {
  std::mt19937 random(7);
  Array x = Array::random(random, DType::f32, {4, 6}),
        d_y = Array::random(random, DType::f32, {4, 5});
  Array w = Array::random(random, DType::f32, {5, 6});
  Array d_x(DType::f32, {4, 6}), both_x(DType::f32, {4, 6});
  Array d_w = Array::of(DType::f32, {5, 6}, Vector(30, 0.0)), both_w = d_w;
  const Tensor ws[] = {w.tensor()}, d_ws[] = {d_w.tensor()}, both_ws[] = {both_w.tensor()};
  Context context({}, 1);
  run<LinearBackwardArgs>(context, linear_backward,
                          {.x = {}, .w = ws, .d_y = d_y.tensor(), .d_x = d_x.tensor()});
  run<LinearBackwardArgs>(context, linear_backward,
                          {.x = x.tensor(), .w = ws, .d_y = d_y.tensor(), .d_x = {}, .d_w = d_ws});
  run<LinearBackwardArgs>(
      context, linear_backward,
      {.x = x.tensor(), .w = ws, .d_y = d_y.tensor(), .d_x = both_x.tensor(), .d_w = both_ws});
  EXPECT_EQ(d_x.bytes(), both_x.bytes());
  EXPECT_EQ(d_w.bytes(), both_w.bytes());
  expect_refused(
      [&] {
        linear_backward(context, {.x = {}, .w = ws, .d_y = d_y.tensor(), .d_x = {}, .d_w = d_ws});
      },
      "x must be f32 or bf16[4, 6], found no tensor");
}

// A NaN in d_y reaches its own row of the gradient of x, of heads its own, and the sums over rows.
TEST(NormBackward, NanStaysInItsRowAndHead) {
  for_each_isa([] {
    std::mt19937 random(9);
    const int tokens = 5, width = 42, heads = 2;
    Array x = Array::random(random, DType::f32, {tokens, width});
    Array d_y = Array::random(random, DType::f32, {tokens, width});
    Array w = Array::random(random, DType::f32, {width}, 0.3, 1.0);
    d_y.set(2, 3, NAN);
    const Vector zeros(std::size_t(tokens * width), 0.0);
    Array d_x = Array::of(DType::f32, {tokens, width}, zeros), d_h = d_x, d_o = d_x;
    Array d_w = Array::of(DType::f32, {width}, Vector(std::size_t(width), 0.0));
    Context context({}, 2);
    run<RmsNormBackwardArgs>(context, rms_norm_backward,
                             {.x = x.tensor(),
                              .w = w.tensor(),
                              .d_y = d_y.tensor(),
                              .d_x = d_x.tensor(),
                              .d_w = d_w.tensor(),
                              .d_b = {}});
    const Vector sums = d_w.values();
    for (int d = 0; d < width; ++d) EXPECT_EQ(std::isnan(sums[std::size_t(d)]), d == 3) << d;
    run<HeadNormBackwardArgs>(context, head_norm_backward,
                              {.h = x.tensor(),
                               .o = x.tensor(),
                               .w = w.tensor(),
                               .b = {},
                               .heads = heads,
                               .d_y = d_y.tensor(),
                               .d_h = d_h.tensor(),
                               .d_o = d_o.tensor(),
                               .d_w = d_w.tensor(),
                               .d_b = {}});
    const Vector dx = d_x.values(), dh = d_h.values(), d_gate = d_o.values();
    for (int t = 0; t < tokens; ++t)
      for (int d = 0; d < width; ++d) {
        const auto at = std::size_t(t * width + d);
        EXPECT_EQ(std::isnan(dx[at]), t == 2) << t << " " << d;
        EXPECT_EQ(std::isnan(dh[at]), t == 2 && d < width / heads) << t << " " << d;
        EXPECT_EQ(std::isnan(d_gate[at]), t == 2 && d == 3) << t << " " << d;
      }
  });
}

// To the bit, for any number of threads.
TEST(NormBackward, ThreadsChangeNoBit) {
  std::mt19937 random(8);
  const int tokens = 150, width = 200, heads = 4;
  Array x = Array::random(random, DType::f32, {tokens, width});
  Array o = Array::random(random, DType::f32, {tokens, width});
  Array d_y = Array::random(random, DType::f32, {tokens, width});
  Array w = Array::random(random, DType::f32, {width}, 0.3, 1.0);
  Array w_i = Array::random(random, DType::f32, {heads, width}, 0.1);
  Array gate = Array::random(random, DType::f32, {tokens, heads}, 0.5, -2.0);
  std::vector<std::vector<std::byte>> first;
  for (int threads : {1, 2, 3, 8}) {
    Context context({}, threads);
    const auto zeros = [](std::vector<std::int64_t> shape) {
      const std::int64_t count = shape[0] * (shape.size() > 1 ? shape[1] : 1);
      return Array::of(DType::f32, shape, Vector(std::size_t(count), 0.0));
    };
    Array d_w = zeros({width}), d_x = zeros({tokens, width}), d_h = d_x, d_o = d_x, d_w2 = d_w;
    Array d_w_i = zeros({heads, width}), d_w_f = d_w_i, d_b_i = zeros({heads}), d_b_f = d_b_i;
    Array d_u = d_y, d_i = gate, d_f = gate;
    run<HeadNormBackwardArgs>(context, head_norm_backward,
                              {.h = x.tensor(),
                               .o = o.tensor(),
                               .w = w.tensor(),
                               .b = {},
                               .heads = heads,
                               .d_y = d_y.tensor(),
                               .d_h = d_h.tensor(),
                               .d_o = d_o.tensor(),
                               .d_w = d_w2.tensor(),
                               .d_b = {}});
    run<RmsNormGatesBackwardArgs>(context, rms_norm_gates_backward,
                                  {.x = x.tensor(),
                                   .w = w.tensor(),
                                   .b = {},
                                   .w_i = w_i.tensor(),
                                   .w_f = w_i.tensor(),
                                   .i = gate.tensor(),
                                   .log_f = gate.tensor(),
                                   .d_i = d_i.tensor(),
                                   .d_log_f = d_f.tensor(),
                                   .d_u = d_u.tensor(),
                                   .d_x = d_x.tensor(),
                                   .d_w = d_w.tensor(),
                                   .d_b = {},
                                   .d_w_i = d_w_i.tensor(),
                                   .d_w_f = d_w_f.tensor(),
                                   .d_b_i = d_b_i.tensor(),
                                   .d_b_f = d_b_f.tensor()});
    std::vector<std::vector<std::byte>> all;
    for (Array* array : {&d_w, &d_x, &d_h, &d_o, &d_w2, &d_w_i, &d_w_f, &d_b_i, &d_b_f})
      all.push_back(array->bytes());
    if (first.empty()) first = all;
    EXPECT_EQ(all, first) << threads;
  }
}

}  // namespace
}  // namespace xlstm::ops::test
