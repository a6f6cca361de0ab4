// What graph_test.cpp captures of the ops that multiply by weights.

#include <algorithm>
#include <cmath>

#include "cuda/graph_problem.hpp"
#include "ops/e4m3.hpp"
#include "ops/fused.hpp"
#include "ops/linear.hpp"
#include "ops/packed_support.hpp"

namespace xlstm::ops::test {
namespace {

using P = GraphProblem;
using Role = GraphProblem::Role;
constexpr DType kF32 = DType::f32, kBf16 = DType::bf16, kF16 = DType::f16;

/// Row blocks of W; packed ones stay as they are, so that x alone changes.
struct Layer {
  std::vector<Tensor> w;
  std::vector<PackedWeights> packed;
};

// Within 2^7 of each other, so that tiles hold all.
std::vector<std::uint16_t> packable(std::mt19937& random, std::int64_t count) {
  std::uniform_real_distribution<float> exponent(-9, -2);
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(count));
  for (std::uint16_t& each : bits)
    each = f32_to_bf16((random() % 2 == 0 ? 1.0F : -1.0F) * std::exp2(exponent(random)));
  return bits;
}

std::span<const PackedWeights> packed_of(P& p, const std::vector<std::int64_t>& outputs,
                                         std::int64_t inputs) {
  std::mt19937 random(72);
  auto& packed = p.keep(std::vector<Packed>());
  auto& weights = p.keep(std::vector<PackedWeights>());
  packed.reserve(outputs.size());
  for (const std::int64_t n : outputs) {
    packed.emplace_back(packable(random, n * inputs), n, inputs);
    EXPECT_EQ(packed.back().left_out(), 0);
    weights.push_back(packed.back().weights());
  }
  return weights;
}

struct Weights {
  DType type = kBf16;
  std::vector<std::int64_t> outputs;
  std::int64_t inputs;
  bool packed = false, biased = false;

  std::int64_t all() const {
    std::int64_t sum = 0;
    for (const std::int64_t n : outputs) sum += n;
    return sum;
  }
  std::int64_t gap() const { return inputs % 8 == 0 ? 8 : 1; }
  /// Without memory if they are packed: else they could be read.
  std::span<const Tensor> w(P& p) const {
    std::vector<Tensor> parts;
    for (const std::int64_t n : outputs)
      parts.push_back(packed ? Tensor::dense(nullptr, type, {n, inputs}, test_device())
                             : p.in(type, {n, inputs}, 0.1, 0, gap()));
    return p.list(parts);
  }
  std::span<const Tensor> b(P& p) const {
    std::vector<Tensor> parts;
    for (const std::int64_t n : outputs)
      if (biased) parts.push_back(p.in(kBf16, {n}));
    return p.list(parts);
  }
  std::span<const PackedWeights> tiles(P& p) const {
    return packed ? packed_of(p, outputs, inputs) : std::span<const PackedWeights>();
  }
};

GraphCase linear_case(const char* what, std::int64_t rows, DType x, const Weights& of,
                      bool accumulate = false, DType y = kF32) {
  return {"linear", what, [=](P& p) {
            const std::int64_t gap = of.all() % 8 == 0 ? 8 : 3;
            p.call(linear, LinearArgs{.x = p.in(x, {rows, of.inputs}, 1, 0, of.gap()),
                                      .w = of.w(p),
                                      .b = of.b(p),
                                      .y = accumulate ? p.both(y, {rows, of.all()}, 1, 0, gap)
                                                      : p.out(y, {rows, of.all()}, gap),
                                      .accumulate = accumulate,
                                      .packed = of.tiles(p)});
          }};
}

GraphCase linear_swiglu_case(const char* what, std::int64_t rows, DType x, const Weights& of,
                             DType y) {
  return {"linear_swiglu", what, [=](P& p) {
            p.call(linear_swiglu, LinearSwigluArgs{.x = p.in(x, {rows, of.inputs}, 1, 0, of.gap()),
                                                   .w = of.w(p),
                                                   .b = of.b(p),
                                                   .y = p.out(y, {rows, of.outputs[0]}, 8),
                                                   .packed = of.tiles(p)});
          }};
}

GraphCase norm_linear_case(const char* what, std::int64_t rows, DType activation, const Weights& of,
                           std::int64_t heads) {
  return {"norm_linear", what, [=](P& p) {
            NormLinearArgs a{.x = p.in(kF32, {rows, of.inputs}, 2, 0, of.gap()),
                             .norm_w = p.in(kBf16, {of.inputs}, 0.3, 1),
                             .norm_b = {},
                             .activation = activation,
                             .w = of.w(p),
                             .b = of.b(p),
                             .y = p.out(kF32, {rows, of.all()}, 8),
                             .packed = of.tiles(p)};
            if (heads > 0) {
              a.w_i = p.in(kBf16, {heads, of.inputs}, 0.1);
              a.w_f = p.in(kBf16, {heads, of.inputs}, 0.1);
              a.b_i = p.in(kF32, {heads});
              a.b_f = p.in(kF32, {heads});
              a.i = p.out(kF32, {rows, heads}, 1);
              a.log_f = p.out(kF32, {rows, heads}, 2);
            }
            p.call(norm_linear, a);
          }};
}

GraphCase norm_linear_swiglu_case(const char* what, std::int64_t rows, DType y, const Weights& of) {
  return {"norm_linear_swiglu", what, [=](P& p) {
            p.call(norm_linear_swiglu,
                   NormLinearSwigluArgs{.x = p.in(kF32, {rows, of.inputs}, 2, 0, of.gap()),
                                        .norm_w = p.in(kBf16, {of.inputs}, 0.3, 1),
                                        .norm_b = {},
                                        .w = of.w(p),
                                        .b = of.b(p),
                                        .y = p.out(y, {rows, of.outputs[0]}, 8),
                                        .packed = of.tiles(p)});
          }};
}

GraphCase head_norm_linear_case(const char* what, std::int64_t rows, std::int64_t heads,
                                DType activation, const Weights& of) {
  return {"head_norm_linear", what, [=](P& p) {
            p.call(head_norm_linear,
                   HeadNormLinearArgs{.h = p.in(kF32, {rows, of.inputs}, 2, 0.1, of.gap()),
                                      .o = p.in(kF32, {rows, of.inputs}, 1, 0, of.gap()),
                                      .norm_w = p.in(kBf16, {of.inputs}, 0.3, 1),
                                      .norm_b = {},
                                      .heads = heads,
                                      .activation = activation,
                                      .w = of.w(p),
                                      .b = of.b(p),
                                      .y = p.both(kF32, {rows, of.all()}, 1, 0, 8),
                                      .packed = of.tiles(p)});
          }};
}

// --- e4m3 ---

/// Codes below 2^3 in absolute value, and scales near 1.
E4m3Matrix coded(P& p, E4m3Scales kind, std::int64_t rows, std::int64_t columns) {
  const auto [first, second] = e4m3_scales_shape(kind, rows, columns);
  const auto* codes = p.numbers<std::uint8_t>(
      Role::input, static_cast<std::size_t>(rows * columns), [](std::mt19937& random) {
        return static_cast<std::uint8_t>(random() % 80 + random() % 2 * 128);
      });
  return {
      Tensor::dense(const_cast<std::uint8_t*>(codes), DType::u8, {rows, columns}, test_device()),
      second == 0 ? p.in(kF32, {first}, 0.1, 1) : p.in(kF32, {first, second}, 0.1, 1), kind};
}

E4m3Matrix to_code(P& p, E4m3Scales kind, std::int64_t rows, std::int64_t columns) {
  const auto [first, second] = e4m3_scales_shape(kind, rows, columns);
  std::byte* codes = p.memory(Role::output, static_cast<std::size_t>(rows * columns));
  return {Tensor::dense(codes, DType::u8, {rows, columns}, test_device()),
          second == 0 ? p.out(kF32, {first}) : p.out(kF32, {first, second}), kind};
}

GraphCase quantise_case(const char* what, DType x, E4m3Scales kind, std::int64_t rows,
                        std::int64_t columns) {
  return {"quantise_e4m3", what, [=](P& p) {
            p.call(quantise_e4m3,
                   QuantiseE4m3Args{.x = p.in(x, {rows, columns}, 1, 0, columns % 8 == 0 ? 8 : 1),
                                    .y = to_code(p, kind, rows, columns)});
          }};
}

std::span<const E4m3Matrix> coded_weights(P& p, bool blocks,
                                          const std::vector<std::int64_t>& outputs,
                                          std::int64_t inputs) {
  auto& w = p.keep(std::vector<E4m3Matrix>());
  for (const std::int64_t n : outputs)
    w.push_back(coded(p, blocks ? E4m3Scales::blocks : E4m3Scales::rows, n, inputs));
  return w;
}

GraphCase linear_e4m3_case(const char* what, std::int64_t rows, std::int64_t inputs,
                           const std::vector<std::int64_t>& outputs, bool blocks, bool accumulate) {
  return {"linear_e4m3", what, [=](P& p) {
            std::int64_t all = 0;
            for (const std::int64_t n : outputs) all += n;
            const E4m3Scales of_x = blocks ? E4m3Scales::runs : E4m3Scales::rows;
            p.call(linear_e4m3, LinearE4m3Args{.x = coded(p, of_x, rows, inputs),
                                               .w = coded_weights(p, blocks, outputs, inputs),
                                               .b = {},
                                               .y = accumulate ? p.both(kF32, {rows, all}, 1, 0, 8)
                                                               : p.out(kBf16, {rows, all}, 8),
                                               .accumulate = accumulate});
          }};
}

GraphCase linear_swiglu_e4m3_case(const char* what, std::int64_t rows, std::int64_t inputs,
                                  std::int64_t f, bool blocks, bool codes) {
  return {"linear_swiglu_e4m3", what, [=](P& p) {
            const E4m3Scales of_x = blocks ? E4m3Scales::runs : E4m3Scales::rows;
            LinearSwigluE4m3Args a{.x = coded(p, of_x, rows, inputs),
                                   .w = coded_weights(p, blocks, {f, f}, inputs),
                                   .b = {},
                                   .y = {}};
            if (codes)
              a.coded = to_code(p, E4m3Scales::runs, rows, f);
            else
              a.y = p.out(kBf16, {rows, f}, 8);
            p.call(linear_swiglu_e4m3, a);
          }};
}

GraphCase pack_case() {
  return {
      "pack_weights", "parts of tiles", [](P& p) {
        constexpr std::int64_t kRows = 21, kColumns = 200;
        const PackedShape shape(kRows, kColumns);
        const Tensor tiles = Tensor::dense(
            p.memory(Role::output, static_cast<std::size_t>(shape.rows * shape.bytes)), DType::u8,
            {shape.rows, shape.bytes}, test_device());
        p.call(pack_weights,
               PackWeightsArgs{.w = p.in(kBf16, {kRows, kColumns}, 1, 0, 1),
                               .packed = {tiles, p.out(kF32, {kRows})},
                               .left_out = Tensor::dense(
                                   p.memory(Role::output, static_cast<std::size_t>(4 * shape.rows)),
                                   DType::i32, {shape.rows}, test_device())});
      }};
}

}  // namespace

GraphCases graph_cases_of_products(bool sm90) {
  // Of 8 columns and more, as boxes want them; and odd sizes, which plain kernels take alone.
  const Weights odd{kBf16, {21, 10}, 133, false, true}, even{kBf16, {136, 40}, 264, false, true};
  const Weights f32{kF32, {21, 10}, 133, false, true}, f16{kF16, {21}, 133, false, true};
  const Weights pair{kBf16, {152, 152}, 136, false, true}, odd_pair{kBf16, {37, 37}, 133};
  const Weights f32_pair{kF32, {37, 37}, 136, false, true};
  GraphCases all = {
      linear_case("f32, one row", 1, kF32, f32),
      linear_case("f16, few rows", 5, kF32, f16),
      linear_case("f32, tiled", 70, kF32, f32, true),
      linear_case("bf16, few rows, odd sizes", 16, kBf16, odd),
      linear_case("bf16, one row", 1, kBf16, even),
      linear_case("bf16, few rows, added", 9, kBf16, even, true),
      linear_case("bf16, few rows to bf16", 9, kBf16, even, false, kBf16),
      linear_case("bf16, tensor cores, odd sizes", 40, kBf16, odd, true),
      linear_case("bf16, 40 rows", 40, kBf16, even),
      linear_case("bf16, 40 rows, depth shared", 40, kBf16, {kBf16, {152}, 1160}, true),
      linear_case("bf16, 200 rows, added", 200, kBf16, even, true),
      linear_case("bf16, 300 rows", 300, kBf16, even, false, kBf16),
      linear_case("bf16, 300 rows, added", 300, kBf16, even, true),
      linear_swiglu_case("f32", 9, kF32, f32_pair, kF32),
      linear_swiglu_case("bf16, odd sizes", 40, kBf16, odd_pair, kF32),
      linear_swiglu_case("bf16, few rows", 9, kBf16, pair, kBf16),
      linear_swiglu_case("bf16, 40 rows", 40, kBf16, {kBf16, {152, 152}, 264, false, true}, kBf16),
      linear_swiglu_case("bf16, 100 rows", 100, kBf16, pair, kBf16),
      linear_swiglu_case("bf16, 300 rows", 300, kBf16, pair, kF32),
      norm_linear_case("f32, odd sizes", 3, kF32, f32, 3),
      norm_linear_case("f32, few rows", 7, kF32, {kF32, {37, 10}, 136}, 0),
      norm_linear_case("bf16 weights alone", 7, kF32, even, 3),
      norm_linear_case("bf16, few rows", 16, kBf16, even, 3),
      norm_linear_case("bf16, one row without gates", 1, kBf16, even, 0),
      norm_linear_case("bf16, 40 rows, gates beside the products", 40, kBf16, even, 3),
      norm_linear_case("bf16, 300 rows", 300, kBf16, even, 3),
      head_norm_linear_case("f32, odd sizes", 3, 7, kF32, {kF32, {37}, 133, false, true}),
      head_norm_linear_case("bf16, few rows", 16, 3, kBf16, {kBf16, {40}, 264}),
      norm_linear_swiglu_case("f32, odd sizes", 3, kF32, odd_pair),
      norm_linear_swiglu_case("f32, few rows", 7, kF32, f32_pair),
      norm_linear_swiglu_case("bf16, few rows", 16, kBf16, pair),
      quantise_case("rows, odd sizes", kF32, E4m3Scales::rows, 7, 133),
      quantise_case("rows of packs", kBf16, E4m3Scales::rows, 40, 264),
      quantise_case("runs, odd sizes", kF16, E4m3Scales::runs, 7, 133),
      quantise_case("runs of packs", kBf16, E4m3Scales::runs, 40, 264),
      quantise_case("blocks", kBf16, E4m3Scales::blocks, 150, 133),
      linear_e4m3_case("odd sizes", 40, 133, {21, 10}, false, true),
      linear_e4m3_case("rows", 100, 144, {48, 16}, false, false),
      linear_e4m3_case("blocks, added", 100, 272, {144, 16}, true, true),
      linear_swiglu_e4m3_case("odd sizes", 40, 133, 37, false, false),
      linear_swiglu_e4m3_case("rows", 100, 144, 48, false, false),
      linear_swiglu_e4m3_case("blocks", 100, 272, 144, true, false),
      linear_swiglu_e4m3_case("blocks, to codes", 100, 272, 144, true, true),
      pack_case(),
  };
  if (!sm90) return all;
  const Weights packed{kBf16, {136, 40}, 1048, true, true}, out{kBf16, {1024}, 1160, true};
  const Weights packed_pair{kBf16, {152, 152}, 1048, true, true};
  const Weights deep{kBf16, {256}, 4104, true}, deep_pair{kBf16, {256, 256}, 4104, true, true};
  for (GraphCase more :
       {linear_case("packed, few rows", 9, kBf16, packed, true),
        linear_case("packed, one row", 1, kBf16, out),
        linear_case("packed, 40 rows", 40, kBf16, packed),
        linear_case("packed, 40 rows, depth shared", 40, kBf16, {kBf16, {152}, 1160, true}, true),
        linear_case("packed, 128 rows", 128, kBf16, out, true),
        linear_case("packed, 300 rows", 300, kBf16, packed, false, kBf16),
        linear_case("packed, 600 rows, added", 600, kBf16, out, true),
        linear_case("packed, 528 rows, stream-K", 528, kBf16, deep, true),
        linear_swiglu_case("packed, 40 rows", 40, kBf16, packed_pair, kBf16),
        linear_swiglu_case("packed, 600 rows", 600, kBf16, packed_pair, kBf16),
        linear_swiglu_case("packed, 528 rows, stream-K", 528, kBf16, deep_pair, kF32),
        norm_linear_case("packed, few rows", 16, kBf16, packed, 3),
        norm_linear_case("packed, 40 rows, gates in the norm's kernel", 40, kBf16, packed, 3),
        head_norm_linear_case("packed", 9, 8, kBf16, {kBf16, {136}, 1048, true}),
        norm_linear_swiglu_case("packed, few rows", 9, kBf16, packed_pair)})
    all.push_back(std::move(more));
  return all;
}

}  // namespace xlstm::ops::test
