// What graph_test.cpp captures of the ops that take rows one by one.

#include <algorithm>
#include <cmath>

#include "cuda/graph_problem.hpp"
#include "ops/activation.hpp"
#include "ops/best.hpp"
#include "ops/conv.hpp"
#include "ops/draw.hpp"
#include "ops/embed.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/norm.hpp"

namespace xlstm::ops::test {
namespace {

using P = GraphProblem;
using Role = GraphProblem::Role;
constexpr DType kF32 = DType::f32, kBf16 = DType::bf16, kF16 = DType::f16;

GraphCase embed_case(const char* what, DType table, std::int64_t width) {
  return {"embed", what, [=](P& p) {
            constexpr int kIds = 37, kTokens = 19;
            const auto* ids =
                p.numbers<std::int32_t>(Role::input, kTokens, [](std::mt19937& random) {
                  return std::uniform_int_distribution<std::int32_t>(0, kIds - 1)(random);
                });
            p.call(embed, EmbedArgs{.ids = {ids, kTokens},
                                    .table = p.in(table, {kIds, width}, 1, 0, 1),
                                    .y = p.out(kF32, {kTokens, width}, 3)});
          }};
}

GraphCase gated_case(const char* what, Activation kind, DType y) {
  return {"gated_activation", what, [=](P& p) {
            p.call(gated_activation, GatedActivationArgs{.gate = p.in(kF32, {7, 133}, 2, 0, 1),
                                                         .up = p.in(kF32, {7, 133}),
                                                         .kind = kind,
                                                         .y = p.out(y, {7, 133}, 5)});
          }};
}

GraphCase conv_case(const char* what, const std::vector<int>& lengths, int width, int taps,
                    bool silu) {
  return {"causal_conv", what, [=](P& p) {
            constexpr std::size_t kWindow = 8;  // behind other parts of a record
            const std::size_t numbers = static_cast<std::size_t>((taps - 1) * width);
            const Batch& batch = p.batch(
                lengths, kWindow + numbers * 4,
                [=](std::mt19937& random, std::byte* to) {
                  std::normal_distribution<float> normal;
                  for (std::size_t i = 0; i < kWindow / 4 + numbers; ++i) {
                    const float number = normal(random);
                    std::memcpy(to + 4 * i, &number, 4);
                  }
                },
                3);
            const Tensor w = p.in(kBf16, {width, taps}, 0.5);
            p.call(causal_conv,
                   CausalConvArgs{.x = p.in(kF32, {batch.tokens(), width}, 1, 0, 2),
                                  .w = Tensor::dense(w.data, kBf16, {width, 1, taps}, w.device),
                                  .b = p.in(kF32, {width}),
                                  .batch = batch,
                                  .window = kWindow,
                                  .silu = silu,
                                  .y = p.out(kF32, {batch.tokens(), width}, 1)});
          }};
}

GraphCase headwise_case(const char* what, DType type, std::int64_t tokens, std::int64_t blocks,
                        std::int64_t out, std::int64_t in, DType y = kF32) {
  return {"headwise_linear", what, [=](P& p) {
            const Tensor w = p.in(type, {blocks * out, in}, 0.5);
            p.call(headwise_linear,
                   HeadwiseLinearArgs{.x = p.in(kF32, {tokens, blocks * in}, 1, 0, 4),
                                      .w = Tensor::dense(w.data, type, {blocks, out, in}, w.device),
                                      .b = p.in(kF32, {blocks * out}),
                                      .y = p.out(y, {tokens, blocks * out}, 3)});
          }};
}

GraphCase layer_norm_case(const char* what, std::int64_t width, std::int64_t heads, DType y,
                          bool accumulate) {
  return {"layer_norm", what, [=](P& p) {
            p.call(layer_norm, LayerNormArgs{.x = p.in(kF32, {9, width}, 2, 0.5, 1),
                                             .w = p.in(kBf16, {width}, 0.3),
                                             .b = p.in(kF32, {width}),
                                             .heads = heads,
                                             .accumulate = accumulate,
                                             .y = accumulate ? p.both(y, {9, width}, 1, 0, 3)
                                                             : p.out(y, {9, width}, 3)});
          }};
}

GraphCase rms_norm_case(const char* what, std::int64_t rows, std::int64_t width, DType y) {
  return {"rms_norm", what, [=](P& p) {
            p.call(rms_norm, RmsNormArgs{.x = p.in(kF32, {rows, width}, 2),
                                         .w = p.in(kBf16, {width}, 0.3, 1),
                                         .b = p.in(kBf16, {width}),
                                         .y = p.out(y, {rows, width}, width % 8 == 0 ? 8 : 1)});
          }};
}

GraphCase rms_norm_gates_case(const char* what, std::int64_t rows, std::int64_t width, DType u) {
  return {"rms_norm_gates", what, [=](P& p) {
            constexpr std::int64_t kHeads = 3;
            p.call(rms_norm_gates,
                   RmsNormGatesArgs{.x = p.in(kF32, {rows, width}, 2),
                                    .w = p.in(kBf16, {width}, 0.3, 1),
                                    .b = {},
                                    .w_i = p.in(kBf16, {kHeads, width}, 0.1),
                                    .w_f = p.in(kBf16, {kHeads, width}, 0.1),
                                    .b_i = p.in(kF32, {kHeads}),
                                    .b_f = p.in(kF32, {kHeads}),
                                    .u = p.out(u, {rows, width}, width % 8 == 0 ? 8 : 1),
                                    .i = p.out(kF32, {rows, kHeads}, 1),
                                    .log_f = p.out(kF32, {rows, kHeads}, 2)});
          }};
}

GraphCase head_norm_case(const char* what, std::int64_t rows, std::int64_t heads, std::int64_t dv,
                         DType h, DType y) {
  return {"head_norm", what, [=](P& p) {
            const std::int64_t width = heads * dv, gap = width % 8 == 0 ? 8 : 1;
            p.call(head_norm, HeadNormArgs{.h = p.in(h, {rows, width}, 2, 0.1, gap),
                                           .o = p.in(h, {rows, width}, 1, 0, gap),
                                           .w = p.in(kBf16, {width}, 0.3, 1),
                                           .b = {},
                                           .heads = heads,
                                           .y = p.out(y, {rows, width}, gap)});
          }};
}

GraphCase best_case(const char* what, std::int64_t width, std::int64_t count) {
  return {"best_logits", what, [=](P& p) {
            p.call(best_logits,
                   BestLogitsArgs{
                       .logits = p.in(kF32, {3, width}, 2, 0, 1),
                       .values = p.out(kF32, {3, count}, 1),
                       .ids = Tensor::dense(p.memory(Role::output, 4 * 3 * std::size_t(count)),
                                            DType::i32, {3, count}, test_device())});
          }};
}

GraphCase draw_case(const char* what, std::int64_t width, std::int64_t count) {
  return {
      "draw_tokens", what, [=](P& p) {
        constexpr std::int64_t kRows = 5;
        const auto dense = [](std::byte* data, DType type,
                              std::initializer_list<std::int64_t> shape) {
          return Tensor::dense(data, type, shape, test_device());
        };
        std::byte* const spare = p.memory(Role::scratch, kRows);
        std::byte* const draws =
            p.memory(Role::both, kRows * sizeof(Draw), [=](std::mt19937& random, std::byte* to) {
              for (std::int64_t r = 0; r < kRows; ++r) {
                Draw draw;
                draw.generator = RandomGenerator(random());
                draw.inverse_temperature = r == 0 ? 0 : 1.0 / static_cast<double>(r);
                draw.top_p = r == 2 ? 0.7 : 1;
                draw.min_p = r == 3 ? 0.1 : 0;
                draw.top_k = std::min<std::int64_t>(count, 1 + 16 * r);
                draw.after_end = r % 2 == 0 ? spare + r : nullptr;
                std::memcpy(to + static_cast<std::size_t>(r) * sizeof(Draw), &draw, sizeof(Draw));
              }
            });
        // So many that some are drawn.
        const std::int64_t ends = width / 2;
        std::int32_t id = 0;
        const auto* end_ids = p.numbers<std::int32_t>(
            Role::input, static_cast<std::size_t>(ends),
            [&](std::mt19937&) { return static_cast<std::int32_t>(2 * (id++ % ends)); });
        p.call(draw_tokens,
               DrawTokensArgs{.logits = p.in(kF32, {kRows, width}, 2, 0, 1),
                              .count = count,
                              .draws = dense(draws, DType::u8, {kRows, sizeof(Draw)}),
                              .ends = Tensor::dense(const_cast<std::int32_t*>(end_ids), DType::i32,
                                                    {ends}, test_device()),
                              .slots = dense(p.memory(Role::both, kRows * sizeof(std::byte*),
                                                      [](std::mt19937&, std::byte* to) {
                                                        std::memset(to, 0,
                                                                    kRows * sizeof(std::byte*));
                                                      }),
                                             DType::u8, {kRows, sizeof(std::byte*)}),
                              .next = dense(p.memory(Role::output, 4 * kRows), DType::i32, {kRows}),
                              .ids = dense(p.memory(Role::output, 4 * kRows), DType::i32, {kRows}),
                              .values = p.out(kF32, {kRows})});
      }};
}

}  // namespace

GraphCases graph_cases_of_rows() {
  return {
      embed_case("f32", kF32, 133),
      embed_case("bf16", kBf16, 520),
      embed_case("f16", kF16, 9),
      {"swiglu", "f32",
       [](P& p) {
         p.call(swiglu, SwigluArgs{.gate = p.in(kF32, {7, 133}, 2, 0, 1),
                                   .up = p.in(kF32, {7, 133}, 1, 0, 2),
                                   .y = p.out(kF32, {7, 133}, 3)});
       }},
      {"swiglu", "bf16, whole packs",
       [](P& p) {
         p.call(swiglu, SwigluArgs{.gate = p.in(kF32, {40, 264}, 2),
                                   .up = p.in(kF32, {40, 264}),
                                   .y = p.out(kBf16, {40, 264}, 8)});
       }},
      gated_case("gelu", Activation::gelu, kF32),
      gated_case("relu", Activation::relu, kF32),
      gated_case("relu2", Activation::relu2, kBf16),
      gated_case("sigmoid", Activation::sigmoid, kBf16),
      gated_case("silu", Activation::silu, kF32),
      {"soft_cap", "in place",
       [](P& p) {
         p.call(soft_cap, SoftCapArgs{.x = p.both(kF32, {5, 333}, 40, 0, 3)});
       }},
      {"gates", "of the first xLSTM",
       [](P& p) {
         p.call(gates, GatesArgs{.z = p.in(kF32, {17, 10}, 4, 0, 1),
                                 .i = p.out(kF32, {17, 5}, 1),
                                 .log_f = p.out(kF32, {17, 5}, 2)});
       }},
      conv_case("four taps", {7, 1, 12, 3, 2}, 133, 4, true),
      conv_case("four taps, many tokens", {300, 1, 260, 3}, 40, 4, true),
      conv_case("any taps", {7, 1, 12, 3, 2}, 40, 3, false),
      conv_case("any taps, many tokens", {300, 1, 260, 3}, 19, 5, false),
      headwise_case("small blocks", kBf16, 19, 7, 5, 3),
      headwise_case("blocks of four", kF32, 19, 7, 4, 4),
      headwise_case("blocks of four, many tokens", kBf16, 700, 7, 4, 4),
      headwise_case("large blocks, f32", kF32, 70, 3, 40, 37),
      headwise_case("large blocks, tensor cores", kBf16, 70, 3, 40, 48),
      headwise_case("large blocks, tensor cores, bf16", kBf16, 70, 3, 40, 48, kBf16),
      headwise_case("blocks of four, bf16", kBf16, 700, 7, 4, 4, kBf16),
      layer_norm_case("one head", 133, 1, kBf16, false),
      layer_norm_case("heads, added", 3 * 40, 3, kF32, true),
      {"skip_gate", "bf16",
       [](P& p) {
         constexpr std::int64_t kWidth = 3 * 37;
         p.call(skip_gate, SkipGateArgs{.h = p.in(kBf16, {9, kWidth}, 2, 0.1, 1),
                                        .w = p.in(kBf16, {kWidth}, 0.3),
                                        .skip = p.in(kBf16, {kWidth}, 0.3),
                                        .c = p.in(kF32, {9, kWidth}),
                                        .z = p.in(kF32, {9, kWidth}),
                                        .heads = 3,
                                        .y = p.out(kBf16, {9, kWidth}, 3)});
       }},
      rms_norm_case("any width", 7, 133, kF32),
      rms_norm_case("a block a row", 7, 520, kBf16),
      rms_norm_gates_case("any width", 7, 133, kF32),
      rms_norm_gates_case("several rows a block", 300, 528, kBf16),
      head_norm_case("any width", 7, 3, 37, kF32, kF32),
      head_norm_case("a warp a head", 7, 3, 40, kF32, kBf16),
      head_norm_case("a warp a wide head", 7, 2, 512, kF32, kBf16),
      head_norm_case("of bf16", 40, 3, 40, kBf16, kBf16),
      best_case("one", 5000, 1),
      best_case("of few", 70, 7),
      best_case("in two passes", 5000, 64),
      draw_case("of few", 70, 7),
      draw_case("in two passes", 5000, 64),
  };
}

}  // namespace xlstm::ops::test
