// Few tokens at widths that tests/ops does not reach: rows of several stages, longer than what a
// kernel keeps in registers, and ends that are no whole stage; and the cell with its norm.

#include "cuda/norm_error.hpp"
#include "ops/fused.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm.hpp"
#include "ops/mlstm_record.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

// Whole numbers: every sum is exact in any order.
std::vector<double> whole_numbers(std::mt19937& random, std::int64_t count) {
  std::uniform_int_distribution<int> number(-8, 8);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = number(random);
  return values;
}

TEST(FewRows, ProductsOfAnyWidthAreExact) {
  std::mt19937 random(21);
  for (const std::int64_t width : {8, 136, 1024, 1160, 4096, 4104, 5472})
    for (const std::int64_t outputs : {3, 70})
      for (const std::int64_t tokens : {1, 8, 11}) {
        SCOPED_TRACE(testing::Message() << width << " " << outputs << " " << tokens);
        const std::vector<double> x = whole_numbers(random, tokens * width),
                                  w = whole_numbers(random, outputs * width),
                                  before = whole_numbers(random, tokens * outputs);
        Array xs = Array::of(DType::bf16, {tokens, width}, x, 8);
        Array ws = Array::of(DType::bf16, {outputs, width}, w, 16);
        Array y = Array::of(DType::f32, {tokens, outputs}, before, 1);
        const Tensor weight = ws.tensor();
        Context context(test_device());
        run(context, linear, {.x = xs.tensor(), .w = {&weight, 1}, .b = {}, .y = y.tensor()});
        run_alone(
            context, linear,
            {.x = xs.tensor(), .w = {&weight, 1}, .b = {}, .y = y.tensor(), .accumulate = true});
        context.synchronize();
        std::vector<float> want(before.size());
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t n = 0; n < outputs; ++n) {
            double sum = 0;
            for (std::int64_t k = 0; k < width; ++k)
              sum += x[static_cast<std::size_t>(t * width + k)] *
                     w[static_cast<std::size_t>(n * width + k)];
            want[static_cast<std::size_t>(t * outputs + n)] = static_cast<float>(2 * sum);
          }
        EXPECT_TRUE(y.floats() == want);
        EXPECT_TRUE(y.gaps_untouched());
      }
}

TEST(FewRows, NormsOfAnyWidthAreTheirParts) {
  std::mt19937 random(22);
  constexpr std::int64_t kTokens = 16, kHeads = 3;
  for (const std::int64_t width : {8, 1096, 4096, 4224})
    for (const DType norm_type : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(testing::Message() << width << " " << to_string(norm_type));
      const std::int64_t outputs = 37;
      Array x = Array::random(random, DType::f32, {kTokens, width}, 2.0, 0.0, 4);
      Array norm = Array::random(random, norm_type, {width}, 0.3, 1.0);
      Array gate = Array::random(random, DType::bf16, {outputs, width}, 0.1);
      Array up = Array::random(random, DType::bf16, {outputs, width}, 0.1);
      Array w_i = Array::random(random, DType::bf16, {kHeads, width}, 0.1);
      Array w_f = Array::random(random, norm_type, {kHeads, width}, 0.1);
      Array bias = Array::random(random, DType::bf16, {kHeads});
      x.set(3, 5, NAN);  // a NaN stays in its token
      const Tensor w[] = {gate.tensor(), up.tensor()};
      struct Results {
        Array y{DType::f32, {kTokens, 2 * 37}, 2}, i{DType::f32, {kTokens, kHeads}, 1},
            log_f{DType::f32, {kTokens, kHeads}}, gated{DType::bf16, {kTokens, 37}, 3};
      } all, alone, parts;
      Context context(test_device());
      const auto run_rows = [&](Results& r, bool fused, std::int64_t first, std::int64_t count) {
        const NormLinearArgs a{.x = x.tensor().rows(first, count),
                               .norm_w = norm.tensor(),
                               .norm_b = {},
                               .activation = DType::bf16,
                               .w = w,
                               .b = {},
                               .y = r.y.tensor().rows(first, count),
                               .w_i = w_i.tensor(),
                               .w_f = w_f.tensor(),
                               .b_i = bias.tensor(),
                               .b_f = bias.tensor(),
                               .i = r.i.tensor().rows(first, count),
                               .log_f = r.log_f.tensor().rows(first, count)};
        const NormLinearSwigluArgs s{.x = a.x,
                                     .norm_w = a.norm_w,
                                     .norm_b = {},
                                     .w = w,
                                     .b = {},
                                     .y = r.gated.tensor().rows(first, count)};
        run(context, fused ? norm_linear : composed::norm_linear, a);
        run(context, fused ? norm_linear_swiglu : composed::norm_linear_swiglu, s);
      };
      run_rows(all, true, 0, kTokens);
      run_rows(parts, false, 0, kTokens);
      for (std::int64_t t = 0; t < kTokens; ++t) run_rows(alone, true, t, 1);
      EXPECT_EQ(all.y.bytes(), alone.y.bytes());
      EXPECT_EQ(all.i.bytes(), alone.i.bytes());
      EXPECT_EQ(all.log_f.bytes(), alone.log_f.bytes());
      EXPECT_EQ(all.gated.bytes(), alone.gated.bytes());
      EXPECT_TRUE(all.y.gaps_untouched());
      EXPECT_TRUE(all.gated.gaps_untouched());
      run_rows(all, true, 0, 7);  // the same once more, fewer
      EXPECT_EQ(all.y.bytes(), alone.y.bytes());
      // The norm of a part; all but the token with the NaN.
      const auto part = [](const Array& array, std::int64_t columns) {
        const std::vector<double> values = array.values();
        return std::vector<double>(values.begin() + 4 * columns, values.end());
      };
      EXPECT_LE(distance(part(all.y, 74), part(parts.y, 74)), 4e-3);
      EXPECT_LE(distance(part(all.i, kHeads), part(parts.i, kHeads)), 2e-6);
      EXPECT_LE(distance(part(all.log_f, kHeads), part(parts.log_f, kHeads)), 2e-6);
      EXPECT_LE(distance(part(all.gated, 37), part(parts.gated, 37)), 1e-2);
    }
}

// Sequences and their states for the cell and its norm.
struct CellProblem {
  std::int64_t heads, dqk, dv, tokens = 0, outputs = 24;
  std::vector<std::int32_t> offsets = {0};
  Array qkv, i, log_f, o, norm, w;
  std::vector<MlstmRecord> records;
  MlstmGate gate = MlstmGate::exponential;

  CellProblem(std::mt19937& random, std::int64_t heads_, std::int64_t dqk_, std::int64_t dv_,
              const std::vector<int>& lengths)
      : heads(heads_),
        dqk(dqk_),
        dv(dv_),
        qkv(DType::f32, {1, 1}),
        i(qkv),
        log_f(qkv),
        o(qkv),
        norm(Array::random(random, DType::bf16, {heads * dv}, 0.3, 1.0)),
        w(Array::random(random, DType::bf16, {outputs, heads * dv}, 0.1)) {
    for (const int length : lengths) offsets.push_back(offsets.back() + length);
    tokens = offsets.back();
    qkv = Array::random(random, DType::f32, {tokens, heads * (2 * dqk + dv)}, 1.0, 0.1, 4);
    i = Array::random(random, DType::f32, {tokens, heads}, 2.0, -1.0, 1);
    log_f = Array::random(random, DType::f32, {tokens, heads}, 0.01, -0.1);
    o = Array::random(random, DType::f32, {tokens, heads * dv});
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      records.emplace_back(MlstmShape{int(heads), int(dqk), int(dv)}, 16);
      records.back().fill(random);
    }
  }
};

struct CellResult {
  std::vector<MlstmRecord> records;
  Array h, y;
  explicit CellResult(const CellProblem& p)
      : records(p.records),
        h(DType::f32, {p.tokens, p.heads * p.dv}),
        y(Array::of(DType::f32, {p.tokens, p.outputs},
                    std::vector<double>(static_cast<std::size_t>(p.tokens * p.outputs), 0.25), 2)) {
  }
};

void run_cell(CellProblem& p, CellResult& r, bool fused, std::size_t first, std::size_t count) {
  std::vector<std::int32_t> offsets;
  std::vector<std::byte*> slots;
  for (std::size_t s = first; s <= first + count; ++s)
    offsets.push_back(p.offsets[s] - p.offsets[first]);
  for (std::size_t s = first; s < first + count; ++s) slots.push_back(r.records[s].data());
  const Batch batch{.offsets = offsets, .slots = slots};
  const auto part = [&](Array& a) { return a.tensor().rows(p.offsets[first], batch.tokens()); };
  const Tensor qkv = part(p.qkv), weight = p.w.tensor();
  const std::int64_t qk = p.heads * p.dqk, v = p.heads * p.dv;
  const MlstmHeadNormLinearArgs a{.cell = {.q = qkv.cols(0, qk),
                                           .k = qkv.cols(qk, qk),
                                           .v = qkv.cols(2 * qk, v),
                                           .i = part(p.i),
                                           .log_f = part(p.log_f),
                                           .batch = batch,
                                           .state = p.records.front().offsets(),
                                           .h = part(r.h),
                                           .gate = p.gate},
                                  .norm = {.h = part(r.h),
                                           .o = part(p.o),
                                           .norm_w = p.norm.tensor(),
                                           .norm_b = {},
                                           .heads = p.heads,
                                           .activation = DType::bf16,
                                           .w = {&weight, 1},
                                           .b = {},
                                           .y = part(r.y)}};
  Context context(test_device());
  context.start_measuring();
  mlstm_head_norm_linear(context, a);
  composed::mlstm_head_norm_linear(context, a);
  context.finish_measuring();
  poison_scratch(context);
  (fused ? mlstm_head_norm_linear : composed::mlstm_head_norm_linear)(context, a);
  context.synchronize();
}

TEST(MlstmHeadNormLinear, IsItsPartsInAnyBatch) {
  std::mt19937 random(23);
  struct Shape {
    std::int64_t heads, dqk, dv;
  };
  for (const Shape s : {Shape{2, 32, 64}, Shape{3, 40, 128}, Shape{1, 256, 512}, Shape{2, 24, 40}})
    for (const std::vector<int>& lengths : {std::vector<int>{1}, std::vector<int>{1, 1, 1},
                                            std::vector<int>{1, 3, 1, 2}, std::vector<int>{2}})
      for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid}) {
        SCOPED_TRACE(testing::Message() << s.dqk << " x " << s.dv << ", " << lengths.size());
        CellProblem p(random, s.heads, s.dqk, s.dv, lengths);
        p.gate = gate;
        CellResult all(p), alone(p), parts(p);
        run_cell(p, all, true, 0, lengths.size());
        run_cell(p, parts, false, 0, lengths.size());
        for (std::size_t i = 0; i < lengths.size(); ++i) run_cell(p, alone, true, i, 1);
        EXPECT_EQ(all.y.bytes(), alone.y.bytes());
        EXPECT_LE(distance(all.y.values(), parts.y.values()), 4e-3);
        EXPECT_TRUE(all.y.gaps_untouched());
        for (std::size_t i = 0; i < lengths.size(); ++i) {
          EXPECT_EQ(all.records[i], alone.records[i]);
          EXPECT_TRUE(all.records[i].gaps_untouched());
          EXPECT_LE(distance(all.records[i].numbers(), parts.records[i].numbers()), 1e-6);
        }
      }
}

// Enough of them that a device may cut heads in another way than those of one sequence.
TEST(MlstmHeadNormLinear, ManySequencesHaveTheBitsOfOne) {
  std::mt19937 random(24);
  struct Shape {
    std::int64_t heads, dqk, dv;
    std::vector<int> lengths;
  };
  const Shape shapes[] = {{6, 40, 256, std::vector<int>(16, 1)},
                          {8, 256, 512, {1, 1, 1, 1, 1}},
                          {8, 24, 512, {1, 2, 1, 1, 1, 1}}};
  for (const Shape& s : shapes) {
    SCOPED_TRACE(testing::Message() << s.dqk << " x " << s.dv << ", " << s.lengths.size());
    CellProblem p(random, s.heads, s.dqk, s.dv, s.lengths);
    CellResult all(p), again(p), alone(p), parts(p);
    run_cell(p, all, true, 0, s.lengths.size());
    run_cell(p, again, true, 0, s.lengths.size());
    run_cell(p, parts, false, 0, s.lengths.size());
    for (std::size_t i = 0; i < s.lengths.size(); ++i) run_cell(p, alone, true, i, 1);
    EXPECT_EQ(all.y.bytes(), again.y.bytes());
    EXPECT_EQ(all.y.bytes(), alone.y.bytes());
    EXPECT_LE(distance(all.y.values(), parts.y.values()), 4e-3);
    for (std::size_t i = 0; i < s.lengths.size(); ++i) {
      EXPECT_EQ(all.records[i], alone.records[i]);
      EXPECT_LE(distance(all.records[i].numbers(), parts.records[i].numbers()), 1e-6);
    }
  }
}

}  // namespace
}  // namespace xlstm::ops::test
