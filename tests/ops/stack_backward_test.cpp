// Backward passes of the first xLSTM's ops, against central differences of the oracle's forward
// passes in double, element by element.

#include <cmath>
#include <cstring>

#include "ops/activation.hpp"
#include "ops/central_differences.hpp"
#include "ops/conv.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "oracle/stack_ops.hpp"

namespace xlstm::ops::test {
namespace {

Array matrix(std::mt19937& random, std::int64_t rows, std::int64_t columns, double scale = 1,
             std::int64_t gap = 1) {
  return Array::random(random, DType::f32, {rows, columns}, scale, 0.0, gap);
}
Array vector(std::mt19937& random, std::int64_t size, double mean = 0) {
  return Array::random(random, DType::f32, {size}, 0.3, mean);
}
Tensor as_blocks(Array& a, std::int64_t b, std::int64_t c) {
  const Tensor t = a.tensor();
  return Tensor::dense(t.data, t.dtype, {t.dim(0), b, c});
}

TEST(GatesBackward, MatchesCentralDifferences) {
  std::mt19937 random(1);
  const int tokens = 5, heads = 3;
  Array z = matrix(random, tokens, 2 * heads, 4), d_i = matrix(random, tokens, heads);
  Array d_f = matrix(random, tokens, heads), i = d_i, log_f = d_i;
  Array d_z(DType::f32, {tokens, 2 * heads}, 2);
  Context context({}, 1);
  run<GatesArgs>(context, gates, {.z = z.tensor(), .i = i.tensor(), .log_f = log_f.tensor()});
  run<GatesBackwardArgs>(
      context, gates_backward,
      {.log_f = log_f.tensor(), .d_i = d_i.tensor(), .d_log_f = d_f.tensor(), .d_z = d_z.tensor()});
  Vector zs = z.values();
  const Vector di = d_i.values(), df = d_f.values();
  const auto loss = [&] {
    double sum = 0;
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t h = 0; h < heads; ++h)
        sum += di[t * heads + h] * zs[t * 2 * heads + h] +
               df[t * heads + h] * oracle::log_sigmoid(zs[t * 2 * heads + heads + h]);
    return sum;
  };
  near(d_z.values(), central(zs, loss), "z");
  EXPECT_TRUE(d_z.gaps_untouched());
}

TEST(GatedActivationBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    std::mt19937 random(2);
    struct Kind {
      Activation kind;
      const char* name;
    };
    for (const Kind& k : {Kind{Activation::gelu, "gelu"}, Kind{Activation::relu, "relu"},
                          Kind{Activation::relu2, "relu^2"}, Kind{Activation::sigmoid, "sigmoid"},
                          Kind{Activation::silu, "swish"}}) {
      const char* name = k.name;
      SCOPED_TRACE(name);
      const int tokens = 3, width = 37;
      Array gate = matrix(random, tokens, width, 2), up = matrix(random, tokens, width);
      Array d_y = matrix(random, tokens, width);
      Array d_gate(DType::f32, {tokens, width}, 2), d_up = d_gate;
      Context context({}, 2);
      run<GatedActivationBackwardArgs>(context, gated_activation_backward,
                                       {.gate = gate.tensor(),
                                        .up = up.tensor(),
                                        .kind = k.kind,
                                        .d_y = d_y.tensor(),
                                        .d_gate = d_gate.tensor(),
                                        .d_up = d_up.tensor()});
      Vector gates = gate.values(), ups = up.values();
      const Vector dy = d_y.values();
      const auto loss = [&] { return dot(dy, oracle::gated_activation<double>(gates, ups, name)); };
      near(d_gate.values(), central(gates, loss), "gate");
      near(d_up.values(), central(ups, loss), "up");
      EXPECT_TRUE(d_gate.gaps_untouched());
    }
  });
}

TEST(HeadwiseLinearBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    std::mt19937 random(3);
    struct Case {
      int blocks, out, in;
    };
    for (const Case& s : {Case{9, 4, 4}, Case{16, 4, 4}, Case{3, 5, 7}, Case{2, 16, 16}})
      for (int tokens : {1, 70})
        for (bool accumulate : {false, true}) {
          SCOPED_TRACE(std::to_string(s.blocks) + " x " + std::to_string(s.out));
          Array x = matrix(random, tokens, s.blocks * s.in, 1, 3);
          Array w = matrix(random, s.blocks, s.out * s.in, 1, 0);
          Array d_y = matrix(random, tokens, s.blocks * s.out);
          Array d_x = matrix(random, tokens, s.blocks * s.in, 1, 2);
          Array d_w = matrix(random, s.blocks, s.out * s.in, 1, 0);
          Array d_b = vector(random, s.blocks * s.out);
          const Array x0 = d_x, w0 = d_w, b0 = d_b;
          Context context({}, 2);
          const HeadwiseLinearBackwardArgs args{.x = x.tensor(),
                                                .w = as_blocks(w, s.out, s.in),
                                                .d_y = d_y.tensor(),
                                                .d_x = d_x.tensor(),
                                                .accumulate = accumulate,
                                                .d_w = as_blocks(d_w, s.out, s.in),
                                                .d_b = d_b.tensor()};
          run<HeadwiseLinearBackwardArgs>(context, headwise_linear_backward, args);
          Vector xs = x.values(), ws = w.values(), bs(std::size_t(s.blocks * s.out), 0.0);
          const Vector dy = d_y.values();
          const auto loss = [&] {
            return dot(dy, oracle::headwise_linear<double>(xs, ws, bs, s.blocks, s.in, s.out));
          };
          near(accumulate ? added(d_x, x0) : d_x.values(), central(xs, loss), "x");
          near(added(d_w, w0), central(ws, loss), "w");
          near(added(d_b, b0), central(bs, loss), "b");
          EXPECT_TRUE(d_x.gaps_untouched());
        }
  });
}

TEST(LayerNormBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    std::mt19937 random(4);
    for (int heads : {1, 3})
      for (int head_width : {2, 7, 16})
        for (bool weight : {false, true})
          for (bool accumulate : {false, true}) {
            const int tokens = 35, width = heads * head_width;
            Array x = matrix(random, tokens, width), w = vector(random, width);
            Array d_y = matrix(random, tokens, width), d_x = matrix(random, tokens, width, 1, 2);
            Array d_w = vector(random, width);
            const Array x0 = d_x, w0 = d_w;
            Context context({}, 2);
            run<LayerNormBackwardArgs>(context, layer_norm_backward,
                                       {.x = x.tensor(),
                                        .w = weight ? w.tensor() : Tensor(),
                                        .heads = heads,
                                        .eps = 1e-3F,
                                        .d_y = d_y.tensor(),
                                        .accumulate = accumulate,
                                        .d_x = d_x.tensor(),
                                        .d_w = weight ? d_w.tensor() : Tensor()});
            Vector xs = x.values(), ws = weight ? w.values() : Vector();
            const Vector dy = d_y.values();
            const auto loss = [&] {
              return dot(dy, oracle::layer_norm<double>(xs, ws, {}, width, heads, 1e-3));
            };
            near(accumulate ? added(d_x, x0) : d_x.values(), central(xs, loss), "x", 2e-5);
            if (weight) near(added(d_w, w0), central(ws, loss), "w");
            EXPECT_TRUE(d_x.gaps_untouched());
          }
  });
}

TEST(SkipGateBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    std::mt19937 random(5);
    for (int heads : {1, 3})
      for (bool in_place : {false, true}) {
        const int tokens = 35, width = heads * 11;
        Array h = matrix(random, tokens, width), c = matrix(random, tokens, width);
        Array z = matrix(random, tokens, width), d_y = matrix(random, tokens, width);
        Array w = vector(random, width), skip = vector(random, width, 1);
        Array d_h(DType::f32, {tokens, width}, 1), d_c = d_h, d_z = d_h;
        Array d_w = vector(random, width), d_skip = d_w;
        const Array w0 = d_w;
        const Vector dy = d_y.values();
        Context context({}, 2);
        const SkipGateBackwardArgs args{.h = h.tensor(),
                                        .w = w.tensor(),
                                        .skip = skip.tensor(),
                                        .c = c.tensor(),
                                        .z = z.tensor(),
                                        .heads = heads,
                                        .eps = 1e-3F,
                                        .d_y = d_y.tensor(),
                                        .d_h = in_place ? d_y.tensor() : d_h.tensor(),
                                        .d_c = d_c.tensor(),
                                        .d_z = d_z.tensor(),
                                        .d_w = d_w.tensor(),
                                        .d_skip = d_skip.tensor()};
        run<SkipGateBackwardArgs>(context, skip_gate_backward, args);
        Vector hs = h.values(), cs = c.values(), zs = z.values(), ws = w.values();
        Vector skips = skip.values();
        const auto loss = [&] {
          return dot(dy, oracle::skip_gate<double>(hs, ws, skips, cs, zs, width, heads, 1e-3));
        };
        near((in_place ? d_y : d_h).values(), central(hs, loss), "h", 2e-5);
        near(d_c.values(), central(cs, loss), "c");
        near(d_z.values(), central(zs, loss), "z");
        near(added(d_w, w0), central(ws, loss), "w");
        near(added(d_skip, w0), central(skips, loss), "skip");
      }
  });
}

// Sequences with and without a record, one of them shorter than the window; gradients of final
// windows go in, those of initial ones come out.
void expect_conv_backward(int width, int kernel, bool silu, bool bias, int threads) {
  SCOPED_TRACE(std::to_string(width) + " channels, " + std::to_string(kernel) + " taps");
  std::mt19937 random(6);
  const std::vector<std::int32_t> offsets = {0, 70, 72, 77};
  const bool has_record[] = {true, true, false};
  Array x = matrix(random, 77, width), w = matrix(random, width, kernel, 0.5, 0);
  Array b = vector(random, width), d_y = matrix(random, 77, width, 1, 2);
  Array d_x = matrix(random, 77, width, 1, 3), d_w = matrix(random, width, kernel, 1, 0);
  Array d_b = vector(random, width);
  const Array x0 = d_x, w0 = d_w, b0 = d_b;
  constexpr std::size_t kBefore = 16;  // floats of the record that belong to others
  const std::size_t size = std::size_t((kernel - 1) * width);
  std::vector<std::vector<float>> windows(3), d_windows(3);
  std::vector<std::byte*> slots(3, nullptr), d_slots(3, nullptr);
  std::normal_distribution<float> normal;
  for (std::size_t s = 0; s < 3; ++s) {
    if (!has_record[s]) continue;
    for (std::size_t i = 0; i < kBefore + size; ++i) {
      windows[s].push_back(normal(random));
      d_windows[s].push_back(normal(random));
    }
    slots[s] = reinterpret_cast<std::byte*>(windows[s].data());
    d_slots[s] = reinterpret_cast<std::byte*>(d_windows[s].data());
  }
  const auto d_final = d_windows;
  const Vector dy = d_y.values();
  const Batch batch{offsets, slots};
  Context context({}, threads);
  run<CausalConvBackwardArgs>(context, causal_conv_backward,
                              {.x = x.tensor(),
                               .w = as_blocks(w, 1, kernel),
                               .b = bias ? b.tensor() : Tensor(),
                               .batch = batch,
                               .window = kBefore * sizeof(float),
                               .d_slots = d_slots,
                               .silu = silu,
                               .d_y = d_y.tensor(),
                               .d_x = d_x.tensor(),
                               .d_w = as_blocks(d_w, 1, kernel),
                               .d_b = bias ? d_b.tensor() : Tensor()});
  Vector xs = x.values(), ws = w.values(), bs = bias ? b.values() : Vector();
  std::vector<Vector> initial(3);
  for (std::size_t s = 0; s < 3; ++s) {
    initial[s].assign(size, 0.0);
    if (has_record[s])
      std::copy(windows[s].begin() + kBefore, windows[s].end(), initial[s].begin());
  }
  const auto loss = [&] {
    double sum = 0;
    for (std::size_t s = 0; s < 3; ++s) {
      const auto begin = std::size_t(offsets[s] * width), end = std::size_t(offsets[s + 1] * width);
      Vector window = initial[s];
      const Vector y = oracle::causal_conv<double>(
          Vector(xs.begin() + std::ptrdiff_t(begin), xs.begin() + std::ptrdiff_t(end)), ws, bs,
          width, silu, window);
      for (std::size_t i = 0; i < y.size(); ++i) sum += dy[begin + i] * y[i];
      if (has_record[s])
        for (std::size_t i = 0; i < size; ++i) sum += d_final[s][kBefore + i] * window[i];
    }
    return sum;
  };
  near(added(d_x, x0), central(xs, loss), "x", 2e-5);
  near(added(d_w, w0), central(ws, loss), "w", 2e-5);
  if (bias) near(added(d_b, b0), central(bs, loss), "b", 2e-5);
  EXPECT_TRUE(d_x.gaps_untouched());
  for (std::size_t s = 0; s < 2; ++s) {
    const Vector got(d_windows[s].begin() + kBefore, d_windows[s].end());
    near(got, central(initial[s], loss), "window", 2e-5);
    EXPECT_TRUE(std::equal(d_final[s].begin(), d_final[s].begin() + kBefore, d_windows[s].begin()));
  }
}

TEST(CausalConvBackward, MatchesCentralDifferences) {
  for_each_isa([] {
    for (int width : {1, 20})
      for (int kernel : {2, 4, 5})
        for (bool silu : {false, true}) expect_conv_backward(width, kernel, silu, width > 1, 2);
  });
}

Array dropped(Array& x, float p, std::uint64_t key, bool accumulate = false) {
  Array y = x;
  Context context({}, 2);
  dropout(context,
          {.x = x.tensor(), .p = p, .key = key, .accumulate = accumulate, .y = y.tensor()});
  return y;
}

TEST(Dropout, KeepsTheMeanAndScales) {
  const int tokens = 200, width = 501;
  Array ones = Array::of(DType::f32, {tokens, width}, Vector(std::size_t(tokens * width), 1.0), 3);
  for (float p : {0.1F, 0.5F, 0.9F}) {
    Array y = dropped(ones, p, 7);
    double zeros = 0, others = 0;
    const float scale = 1 / (1 - p);
    for (const double v : y.values()) {
      if (v == 0) ++zeros;
      if (v == static_cast<double>(scale)) ++others;
    }
    EXPECT_EQ(zeros + others, tokens * width);
    // Five deviations of the number of zeros.
    EXPECT_NEAR(zeros / (tokens * width), p, 5 * std::sqrt(p * (1 - p) / (tokens * width)));
    EXPECT_TRUE(y.gaps_untouched());
    EXPECT_EQ(dropped(ones, p, 7).bytes(), y.bytes());
    EXPECT_NE(dropped(ones, p, 8).bytes(), y.bytes());
  }
  EXPECT_EQ(dropped(ones, 0, 7).bytes(), ones.bytes());
  Array doubled = dropped(ones, 0, 7, true);
  EXPECT_EQ(doubled.values(), Vector(std::size_t(tokens * width), 2.0));
  expect_refused([&] { dropped(ones, 1, 7); }, "dropout: p must be at least 0 and below 1");
}

TEST(StackBackward, ThreadsChangeNoBit) {
  std::mt19937 random(8);
  const int tokens = 150, width = 200, heads = 4;
  Array h = matrix(random, tokens, width), c = matrix(random, tokens, width);
  Array d_y = matrix(random, tokens, width), w = vector(random, width);
  Array small = matrix(random, width / 4, 16, 1, 0), taps = matrix(random, width, 4, 1, 0);
  const std::vector<std::int32_t> offsets = {0, 100, 150};
  std::vector<std::byte*> slots(2, nullptr);
  const Batch batch{offsets, slots};
  std::vector<std::vector<std::byte>> first;
  for (int threads : {1, 2, 3, 8}) {
    Context context({}, threads);
    Array d_h = d_y, d_c = d_y, d_z = d_y, d_w = w, d_skip = w, d_small = small, d_taps = taps;
    Array d_s = d_y;
    run<SkipGateBackwardArgs>(context, skip_gate_backward,
                              {.h = h.tensor(),
                               .w = w.tensor(),
                               .skip = w.tensor(),
                               .c = c.tensor(),
                               .z = c.tensor(),
                               .heads = heads,
                               .d_y = d_y.tensor(),
                               .d_h = d_h.tensor(),
                               .d_c = d_c.tensor(),
                               .d_z = d_z.tensor(),
                               .d_w = d_w.tensor(),
                               .d_skip = d_skip.tensor()});
    run<HeadwiseLinearBackwardArgs>(context, headwise_linear_backward,
                                    {.x = h.tensor(),
                                     .w = as_blocks(small, 4, 4),
                                     .d_y = d_y.tensor(),
                                     .d_x = d_z.tensor(),
                                     .accumulate = true,
                                     .d_w = as_blocks(d_small, 4, 4),
                                     .d_b = d_w.tensor()});
    run<CausalConvBackwardArgs>(context, causal_conv_backward,
                                {.x = h.tensor(),
                                 .w = as_blocks(taps, 1, 4),
                                 .b = {},
                                 .batch = batch,
                                 .d_slots = {},
                                 .d_y = d_s.tensor(),
                                 .d_x = d_c.tensor(),
                                 .d_w = as_blocks(d_taps, 1, 4),
                                 .d_b = {}});
    run<LayerNormBackwardArgs>(context, layer_norm_backward,
                               {.x = h.tensor(),
                                .w = w.tensor(),
                                .heads = heads,
                                .d_y = d_y.tensor(),
                                .accumulate = true,
                                .d_x = d_h.tensor(),
                                .d_w = d_skip.tensor()});
    std::vector<std::vector<std::byte>> all;
    for (Array* array : {&d_h, &d_c, &d_z, &d_w, &d_skip, &d_small, &d_taps})
      all.push_back(array->bytes());
    if (first.empty()) first = all;
    EXPECT_EQ(all, first) << threads;
  }
}

}  // namespace
}  // namespace xlstm::ops::test
