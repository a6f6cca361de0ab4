#pragma once
// What the tests of the ops share: typed arrays with guarded gaps, runs with poisoned memory, and
// the error bound.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "core/context.hpp"
#include "core/cpu_features.hpp"
#include "test_device.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::ops::test {

/// The nearest value that `dtype` (f32, bf16, f16) can hold, ties to even.
double rounded(DType dtype, double value);
std::vector<double> rounded(DType dtype, std::vector<double> values);

/// A vector [N] or matrix [rows, N] with a gap after every row. All bytes start as poison (NaN).
class Array {
 public:
  Array(DType dtype, std::vector<std::int64_t> shape, std::int64_t gap = 0);
  /// Normal values of this scale around `mean`, rounded to `dtype`.
  static Array random(std::mt19937& random, DType dtype, std::vector<std::int64_t> shape,
                      double scale = 1.0, double mean = 0.0, std::int64_t gap = 0);
  static Array of(DType dtype, std::vector<std::int64_t> shape, const std::vector<double>& values,
                  std::int64_t gap = 0);

  Tensor tensor();
  /// Without the gaps.
  std::vector<double> values() const;
  std::vector<float> floats() const;
  std::vector<std::byte> bytes() const;  ///< of the values, for comparisons to the bit
  void set(std::int64_t row, std::int64_t column, double value);
  void poison();
  /// True while nobody wrote between the rows.
  bool gaps_untouched() const;

 private:
  std::size_t offset(std::int64_t row, std::int64_t column) const;

  DType dtype_;
  std::vector<std::int64_t> shape_;
  std::int64_t rows_, columns_, stride_;
  std::vector<std::byte> data_;
};

/// Fills all scratch memory of a context with NaN.
void poison_scratch(Context& context);

/// Runs an op as a forward pass does, measured first, in scratch memory full of NaN.
template <class Args>
void run(Context& context, void (*op)(Context&, const Args&), const Args& args) {
  context.start_measuring();
  op(context, args);
  context.finish_measuring();
  poison_scratch(context);
  op(context, args);
  context.synchronize();
}

/// Runs `body` on every instruction set of this machine, or once on a test device of another kind.
void for_each_isa(const std::function<void()>& body);

/// Largest |got - want|; infinite if only one of a pair is NaN or the sizes differ.
double max_error(const std::vector<double>& got, const std::vector<double>& want);
double max_abs(const std::vector<double>& values);

/// The error of the engine beside that of a naive run, the same equations in plain float, over a
/// group of cases; both relative to the largest value of a case. One case alone may catch the naive
/// run in a lucky moment, a group does not.
class Errors {
 public:
  /// @param dtype  type of the results, to which the naive ones are rounded
  void add(const std::vector<double>& got, const std::vector<double>& want,
           const std::vector<float>& naive, DType dtype = DType::f32);
  /// Expects the engine's worst error to be at most twice the naive one's.
  void expect_at_most_twice_naive(const char* what) const;

 private:
  double engine_ = 0, naive_ = 0;
  int cases_ = 0;
};

/// Expects Error(invalid_argument) whose message holds `text`.
void expect_refused(const std::function<void()>& call, const std::string& text);

}  // namespace xlstm::ops::test
