#pragma once
// What models' states hold, as numbers to compare.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "xlstm/state.hpp"

namespace xlstm::testing {

/// Of a view of a state; none if it is empty.
inline std::vector<double> numbers(const Tensor& t) {
  if (!t) return {};
  if (t.dtype == DType::f64) return {t.as<double>(), t.as<double>() + t.count()};
  return {t.as<float>(), t.as<float>() + t.count()};
}

/// Of all cells of a state: C, n and m, or h, and windows.
inline std::vector<double> all_numbers(const State& s) {
  std::vector<double> all;
  for (std::int64_t i = 0; i < s.blocks(); ++i)
    for (const Tensor& t : {s.c(i), s.n(i), s.m(i), s.h(i), s.window(i)}) {
      const std::vector<double> part = numbers(t);
      all.insert(all.end(), part.begin(), part.end());
    }
  return all;
}

/// What a sequence has read: its last logits, and all that its cells hold.
inline std::vector<double> outcome(const State& s) {
  std::vector<double> all(s.last_logits().begin(), s.last_logits().end());
  const std::vector<double> cells = all_numbers(s);
  all.insert(all.end(), cells.begin(), cells.end());
  return all;
}

/// |a - b| / |b|
template <class A, class B>
double distance(const A& a, const B& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - b[i], 2);
    size += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / size);
}

}  // namespace xlstm::testing
