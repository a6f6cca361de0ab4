// What the kernels of rows do and those of the CPU do not: rows too wide for shared memory are read
// again, and a convolution's threads share the windows.

#include <cmath>
#include <cstring>

#include "ops/conv.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/norm.hpp"
#include "ops/support.hpp"
#include "oracle/ops.hpp"
#include "oracle/stack_ops.hpp"

namespace xlstm::ops::test {
namespace {

constexpr float kEps = 1e-6F;
constexpr int kWide = 12345;  // floats: more than the 44 KB that a block keeps

TEST(CudaRows, WideNormsMatchTheOracleInPlace) {
  std::mt19937 random(1);
  Array x = Array::random(random, DType::f32, {2, kWide}, 2.0, 1.0, 3);
  Array o = Array::random(random, DType::f32, {2, kWide}, 2.0);
  Array z = Array::random(random, DType::f32, {2, kWide}, 2.0);
  Array w = Array::random(random, DType::bf16, {kWide}, 0.3, 1.0);
  Array b = Array::random(random, DType::f16, {kWide}, 0.3);
  Context context(test_device(), 1);
  // Of every norm's result only the error counts; x is copied, for each writes onto its input.
  const auto expect_close = [&](auto op, const auto& oracle_of, const char* what) {
    Array y = x;
    op(y.tensor());
    Errors errors;
    errors.add(y.values(), oracle_of(double()), oracle_of(float()));
    errors.expect_at_most_twice_naive(what);
    EXPECT_TRUE(y.gaps_untouched());
  };
  const auto all = [](Array& array, auto real) {
    const std::vector<double> values = array.values();
    return std::vector<decltype(real)>(values.begin(), values.end());
  };
  expect_close(
      [&](const Tensor& y) {
        run<RmsNormArgs>(context, rms_norm,
                         {.x = y, .w = w.tensor(), .b = b.tensor(), .eps = kEps, .y = y});
      },
      [&](auto real) {
        return oracle::rms_norm<decltype(real)>(all(x, real), all(w, real), all(b, real), kWide,
                                                kEps);
      },
      "rms_norm");
  expect_close(
      [&](const Tensor& y) {
        run<HeadNormArgs>(
            context, head_norm,
            {.h = y, .o = o.tensor(), .w = w.tensor(), .b = b.tensor(), .eps = kEps, .y = y});
      },
      [&](auto real) {
        return oracle::head_norm<decltype(real)>(all(x, real), all(o, real), all(w, real),
                                                 all(b, real), 1, kWide, kEps);
      },
      "head_norm");
  expect_close(
      [&](const Tensor& y) {
        run<LayerNormArgs>(context, layer_norm,
                           {.x = y, .w = w.tensor(), .b = b.tensor(), .eps = kEps, .y = y});
      },
      [&](auto real) {
        return oracle::layer_norm<decltype(real)>(all(x, real), all(w, real), all(b, real), kWide,
                                                  1, kEps);
      },
      "layer_norm");
  expect_close(
      [&](const Tensor& y) {
        run<SkipGateArgs>(context, skip_gate,
                          {.h = y,
                           .w = w.tensor(),
                           .skip = b.tensor(),
                           .c = o.tensor(),
                           .z = z.tensor(),
                           .eps = kEps,
                           .y = y});
      },
      [&](auto real) {
        return oracle::skip_gate<decltype(real)>(all(x, real), all(w, real), all(b, real),
                                                 all(o, real), all(z, real), kWide, 1, kEps);
      },
      "skip_gate");
}

// A row that does not fit is normed again for every product, from the same numbers.
TEST(CudaRows, WideGatesAreThoseOfTheUnroundedRow) {
  std::mt19937 random(2);
  constexpr int kRows = 2, kHeads = 3;
  Array x = Array::random(random, DType::f32, {kRows, kWide});
  Array w = Array::random(random, DType::f32, {kWide}, 0.3, 1.0);
  Array w_i = Array::random(random, DType::f16, {kHeads, kWide}, 4 / std::sqrt(kWide), 0.0, 1);
  Array w_f = Array::random(random, DType::bf16, {kHeads, kWide}, 4 / std::sqrt(kWide));
  Array b = Array::random(random, DType::f32, {kHeads});
  Array u(DType::bf16, {kRows, kWide}), i(DType::f32, {kRows, kHeads});
  Array log_f(DType::f32, {kRows, kHeads});
  Context context(test_device(), 1);
  run<RmsNormGatesArgs>(context, rms_norm_gates,
                        {.x = x.tensor(),
                         .w = w.tensor(),
                         .b = {},
                         .w_i = w_i.tensor(),
                         .w_f = w_f.tensor(),
                         .b_i = b.tensor(),
                         .b_f = b.tensor(),
                         .eps = kEps,
                         .u = u.tensor(),
                         .i = i.tensor(),
                         .log_f = log_f.tensor(),
                         .sigmoid_input = true});
  const auto want = oracle::rms_norm<double>(x.values(), w.values(), {}, kWide, kEps);
  EXPECT_LE(max_error(u.values(), rounded(DType::bf16, want)), max_abs(want) / 256);
  for (Array* gate : {&i, &log_f}) {
    auto exact = oracle::soft_cap<double>(
        oracle::linear<double>(want, (gate == &i ? w_i : w_f).values(), b.values(), kWide, kHeads),
        15.0F);
    for (double& value : exact) value = oracle::log_sigmoid(value);
    EXPECT_LE(max_error(gate->values(), exact), 3e-6);
  }
}

// So many rows that blocks take several turns: each has the bits that it has among a few hundred.
TEST(CudaRows, NormsOfManyRowsAreThoseOfFewer) {
  std::mt19937 random(8);
  constexpr std::int64_t kRows = 2100, kFewer = 300, kHeads = 2;
  for (const std::int64_t width : {4096, 3600, 528}) {
    Array x = Array::random(random, DType::f32, {kRows, width});
    Array w = Array::random(random, DType::bf16, {width}, 0.3, 1.0);
    Array w_i = Array::random(random, DType::bf16, {kHeads, width}, 0.05),
          w_f = Array::random(random, DType::bf16, {kHeads, width}, 0.05);
    Array b = Array::random(random, DType::f32, {kHeads});
    struct Results {
      Array u, alone, i, log_f;
      explicit Results(std::int64_t columns)
          : u(DType::bf16, {kRows, columns}),
            alone(DType::f32, {kRows, columns}),
            i(DType::f32, {kRows, kHeads}),
            log_f(DType::f32, {kRows, kHeads}) {}
    };
    Results all(width), parts(width);
    Context context(test_device(), 1);
    const auto run_rows = [&](Results& to, std::int64_t begin, std::int64_t count) {
      const auto part = [&](Array& array) { return array.tensor().rows(begin, count); };
      run<RmsNormGatesArgs>(context, rms_norm_gates,
                            {.x = part(x),
                             .w = w.tensor(),
                             .b = {},
                             .w_i = w_i.tensor(),
                             .w_f = w_f.tensor(),
                             .b_i = b.tensor(),
                             .b_f = b.tensor(),
                             .eps = kEps,
                             .u = part(to.u),
                             .i = part(to.i),
                             .log_f = part(to.log_f)});
      run<RmsNormArgs>(context, rms_norm,
                       {.x = part(x), .w = w.tensor(), .b = {}, .eps = kEps, .y = part(to.alone)});
    };
    run_rows(all, 0, kRows);
    for (std::int64_t begin = 0; begin < kRows; begin += kFewer)
      run_rows(parts, begin, std::min(kFewer, kRows - begin));
    EXPECT_EQ(all.u.bytes(), parts.u.bytes()) << width;
    EXPECT_EQ(all.alone.bytes(), parts.alone.bytes()) << width;
    EXPECT_EQ(all.i.bytes(), parts.i.bytes()) << width;
    EXPECT_EQ(all.log_f.bytes(), parts.log_f.bytes()) << width;
    const auto want = oracle::rms_norm<double>(x.values(), w.values(), {}, width, kEps);
    EXPECT_LE(max_error(all.alone.values(), want), max_abs(want) * 1e-6);
  }
}

// Many sequences, more texts shorter than the window than not: each has the bits that it has alone.
TEST(CudaRows, SequencesOfAConvolutionDoNotDependOnEachOther) {
  std::mt19937 random(3);
  constexpr int kWidth = 140, kKernel = 4, kWindow = (kKernel - 1) * kWidth;
  const std::vector<std::int32_t> offsets{0, 1, 3, 6, 15, 16, 18, 30};
  const std::size_t sequences = offsets.size() - 1;
  Array x = Array::random(random, DType::f32, {offsets.back(), kWidth});
  Array w = Array::random(random, DType::bf16, {kWidth, kKernel});
  const Array before =
      Array::random(random, DType::f32, {static_cast<std::int64_t>(sequences), kWindow});
  Array together = before, alone = before;
  Array y(DType::f32, {offsets.back(), kWidth}), y_alone = y;
  Context context(test_device(), 1);
  const auto convolve = [&](Array& records, Array& result, std::size_t first, std::size_t count) {
    std::vector<std::int32_t> part{0};
    std::vector<std::byte*> slots;
    for (std::size_t s = first; s < first + count; ++s) {
      part.push_back(offsets[s + 1] - offsets[first]);
      // Every third starts from nothing and leaves nothing behind.
      const Tensor record = records.tensor().rows(static_cast<std::int64_t>(s), 1);
      slots.push_back(s % 3 == 2 ? nullptr : static_cast<std::byte*>(record.data));
    }
    const Batch batch{part, slots};
    run<CausalConvArgs>(context, causal_conv,
                        {.x = x.tensor().rows(offsets[first], part.back()),
                         .w = Tensor::dense(w.tensor().data, DType::bf16, {kWidth, 1, kKernel}),
                         .b = {},
                         .batch = batch,
                         .y = result.tensor().rows(offsets[first], part.back())});
  };
  convolve(together, y, 0, sequences);
  for (std::size_t s = 0; s < sequences; ++s) convolve(alone, y_alone, s, 1);
  EXPECT_EQ(y.bytes(), y_alone.bytes());
  EXPECT_EQ(together.bytes(), alone.bytes());
  const std::size_t record = kWindow * sizeof(float);
  const auto now = together.bytes(), old = before.bytes();
  for (std::size_t s = 0; s < sequences; ++s)
    EXPECT_EQ(std::memcmp(&now[s * record], &old[s * record], record) == 0, s % 3 == 2) << s;
}

TEST(CudaRows, TokensOfBlocksDoNotDependOnEachOther) {
  std::mt19937 random(4);
  for (int size : {4, 40}) {
    constexpr int kTokens = 70, kBlocks = 3;
    const int width = kBlocks * size;
    Array x = Array::random(random, DType::f32, {kTokens, width});
    Array w = Array::random(random, DType::f16, {kBlocks, size * size});
    Array y(DType::f32, {kTokens, width}), one(DType::f32, {1, width});
    const Tensor blocks = Tensor::dense(w.tensor().data, DType::f16, {kBlocks, size, size});
    Context context(test_device(), 1);
    run<HeadwiseLinearArgs>(context, headwise_linear,
                            {.x = x.tensor(), .w = blocks, .b = {}, .y = y.tensor()});
    const std::vector<double> all = y.values();
    for (int t : {0, 31, 32, kTokens - 1}) {
      run<HeadwiseLinearArgs>(
          context, headwise_linear,
          {.x = x.tensor().rows(t, 1), .w = blocks, .b = {}, .y = one.tensor()});
      EXPECT_EQ(one.values(),
                std::vector<double>(all.begin() + t * width, all.begin() + (t + 1) * width));
    }
  }
}

}  // namespace
}  // namespace xlstm::ops::test
