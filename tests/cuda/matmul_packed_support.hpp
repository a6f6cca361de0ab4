#pragma once
// Operands of products of packed weights, on cards of capability 9.0.

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <utility>
#include <vector>

#include "core/float_bits.hpp"
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/matmul.hpp"
#include "ops/packed_support.hpp"
#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {

/// Row blocks of W, packed, and x.
struct Operands {
  std::int64_t rows, depth, columns = 0;
  std::vector<Array> x, w, b;
  std::vector<Packed> packed;
  std::vector<Tensor> w_tensors, b_tensors;
  std::vector<PackedWeights> packed_tensors;

  /// @param number  of row n of W, column k
  template <class Number>
  Operands(std::mt19937& random, std::int64_t rows_, const std::vector<std::int64_t>& outputs,
           std::int64_t depth_, const std::vector<double>& xs, const Number& number)
      : rows(rows_), depth(depth_) {
    x.push_back(Array::of(DType::bf16, {rows, depth}, xs, 8 + (8 - depth % 8) % 8));
    std::uniform_int_distribution<int> whole(-4, 4);
    for (const std::int64_t n : outputs) {
      std::vector<double> values(static_cast<std::size_t>(n * depth));
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t k = 0; k < depth; ++k)
          values[static_cast<std::size_t>(i * depth + k)] = number(i, k);
      std::vector<std::uint16_t> bits;
      for (const double value : values) bits.push_back(f32_to_bf16(static_cast<float>(value)));
      packed.emplace_back(std::move(bits), n, depth);
      EXPECT_EQ(packed.back().left_out(), 0);
      w.push_back(Array::of(DType::bf16, {n, depth}, values, 8 + (8 - depth % 8) % 8));
      std::vector<double> biases(static_cast<std::size_t>(n));
      for (double& bias : biases) bias = whole(random);
      b.push_back(Array::of(DType::f32, {n}, biases));
      columns += n;
    }
    for (Array& each : w) w_tensors.push_back(each.tensor());
    for (Array& each : b) b_tensors.push_back(each.tensor());
    for (Packed& each : packed) packed_tensors.push_back(each.weights());
  }

  /// y = x W^T + b, with W as it is and packed.
  cuda::Product product(const Tensor& y) {
    return {.x = x[0].tensor(), .w = w_tensors, .b = b_tensors, .y = y, .packed = packed_tensors};
  }

  /// y before it is added to
  std::vector<double> products() const {
    std::vector<double> y(static_cast<std::size_t>(rows * columns));
    const std::vector<double> xs = x[0].values();
    std::int64_t first = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const auto n = static_cast<std::int64_t>(b[i].values().size());
      const std::vector<double> sums = oracle::linear<double>(
          xs, w[i].values(), b[i].values(), static_cast<int>(depth), static_cast<int>(n));
      for (std::int64_t t = 0; t < rows; ++t)
        for (std::int64_t c = 0; c < n; ++c)
          y[static_cast<std::size_t>(t * columns + first + c)] =
              sums[static_cast<std::size_t>(t * n + c)];
      first += n;
    }
    return y;
  }
};

inline std::vector<double> whole_numbers(std::mt19937& random, std::int64_t count) {
  std::uniform_int_distribution<int> number(-4, 4);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = number(random);
  return values;
}

inline std::vector<double> normal_numbers(std::mt19937& random, std::int64_t count,
                                          double scale = 1) {
  std::normal_distribution<double> number(0, scale);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) value = rounded(DType::bf16, number(random));
  return values;
}

/// Whole numbers, whose sums are exact in any order: a row has one large number, so that either it
/// or the row's ones are listed, and zeros; of all up to 8 in a tile.
inline Operands whole(std::mt19937& random, std::int64_t rows,
                      const std::vector<std::int64_t>& outputs, std::int64_t depth) {
  std::uniform_int_distribution<int> number(2, 4), sign(0, 1), place(0, 127);
  std::map<std::pair<std::int64_t, std::int64_t>, int> listed;
  return Operands(random, rows, outputs, depth, whole_numbers(random, rows * depth),
                  [&](std::int64_t n, std::int64_t k) -> double {
                    if (n == 0 && k == 0) listed.clear();
                    const auto large = [depth](std::int64_t row) { return 17 * row % depth; };
                    if (k == large(n)) return 65536;
                    const int small = place(random);
                    if (small < 2) {
                      int& count = listed[{n / 8, k / 128}];
                      if (count++ == 0)
                        for (std::int64_t row = n / 8 * 8; row < n / 8 * 8 + 8; ++row)
                          count += large(row) / 128 == k / 128 ? 1 : 0;
                      if (count <= PackedTile::kMostPatches) return small;
                    }
                    return number(random) * (sign(random) * 2 - 1);
                  });
}

/// Normal numbers.
inline Operands normal(std::mt19937& random, std::int64_t rows,
                       const std::vector<std::int64_t>& outputs, std::int64_t depth, double scale) {
  const std::vector<double> numbers = normal_numbers(random, 1 << 16, scale);
  std::size_t at = 0;
  return Operands(
      random, rows, outputs, depth, normal_numbers(random, rows * depth),
      [&](std::int64_t, std::int64_t) { return numbers[at++ * 7919 % numbers.size()]; });
}

/// A plan's product of whole numbers, some times, in memory full of NaN: exact, and nothing is
/// written beside it.
/// @param products  of p @param old  what y holds before, if it is added to
/// @param scratch  bytes that the plan takes
template <class Plan>
void expect_exact(Operands& p, const std::vector<double>& products, const std::vector<double>& old,
                  const Plan& plan, DType type, bool accumulate, int times,
                  std::size_t scratch = 0) {
  std::vector<double> want = products;
  if (accumulate)
    for (std::size_t i = 0; i < want.size(); ++i) want[i] += old[i];
  want = rounded(type, want);
  for (int i = 0; i < times; ++i) {
    Array y = accumulate ? Array::of(type, {p.rows, p.columns}, old, 8)
                         : Array(type, {p.rows, p.columns}, 8);
    Context context(test_device());
    context.arena().reserve(scratch);
    cuda::Product product = p.product(y.tensor());
    product.accumulate = accumulate;
    ASSERT_TRUE(cuda::planned_product(context, product, plan));
    context.synchronize();
    ASSERT_EQ(max_error(y.values(), want), 0);
    ASSERT_TRUE(y.gaps_untouched());
  }
}

inline bool no_card() { return cuda::level(test_device()) != cuda::Level::sm90; }

struct Case {
  std::int64_t rows, depth;
  std::vector<std::int64_t> outputs;
};

}  // namespace xlstm::ops::test
