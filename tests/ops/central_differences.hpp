#pragma once
// Gradients by central differences of the oracle's forward passes, and comparisons with them.

#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/support.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops::test {

using oracle::Vector;

inline double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Gradient of `loss` with respect to x, which it reads.
inline Vector central(Vector& x, const std::function<double()>& loss) {
  Vector result;
  for (double& value : x) {
    const double before = value, step = 1e-5 * std::max(1.0, std::abs(before));
    value = before + step;
    const double up = loss();
    value = before - step;
    result.push_back((up - loss()) / (2 * step));
    value = before;
  }
  return result;
}

inline void near(const Vector& got, const Vector& want, const char* what, double bound = 1e-5) {
  EXPECT_LE(max_error(got, want), bound * max_abs(want)) << what;
}

/// What an accumulated gradient added to `start`.
inline Vector added(const Array& now, const Array& start) {
  Vector result = now.values();
  const Vector before = start.values();
  for (std::size_t i = 0; i < result.size(); ++i) result[i] -= before[i];
  return result;
}

}  // namespace xlstm::ops::test
