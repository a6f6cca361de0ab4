#pragma once
// How far a vector is from another one, by norms.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace xlstm::ops::test {

/// |got - want| / |want| of whole vectors, and the worst such ratio of parts of `row` numbers.
struct NormError {
  double all = 0, worst_row = 0;

  NormError(const std::vector<double>& got, const std::vector<double>& want, std::size_t row) {
    double error = 0, size = 0;
    for (std::size_t at = 0; at < want.size(); at += row) {
      double row_error = 0, row_size = 0;
      for (std::size_t x = at; x < std::min(at + row, want.size()); ++x) {
        const double off = got[x] - want[x];
        row_error += std::isnan(off) ? INFINITY : off * off;
        row_size += want[x] * want[x];
      }
      error += row_error;
      size += row_size;
      // Nothing is left of smaller ones where a norm with its eps of 1e-6 follows.
      constexpr double kLeast = 1e-30;
      if (row_error > kLeast * kLeast)
        worst_row = std::max(worst_row, std::sqrt(row_error / row_size));
    }
    all = error > 0 ? std::sqrt(error / size) : 0;
  }
};

/// |got - want| / |want|
inline double distance(const std::vector<double>& got, const std::vector<double>& want) {
  return NormError(got, want, want.size()).all;
}

}  // namespace xlstm::ops::test
