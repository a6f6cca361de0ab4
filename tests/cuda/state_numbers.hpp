#pragma once
// What models' states on a device hold, as numbers to compare.

#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <vector>

#include "xlstm/state.hpp"

namespace xlstm::testing {

/// Of all cells of a state: C, n and m, or h, and windows.
inline std::vector<float> all_numbers(const State& s) {
  std::vector<float> all;
  for (std::int64_t i = 0; i < s.blocks(); ++i)
    for (const Tensor& t : {s.c(i), s.n(i), s.m(i), s.h(i), s.window(i)})
      if (t) all.insert(all.end(), t.as<float>(), t.as<float>() + t.count());
  return all;
}

/// |a - b| / |b|
inline double distance(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(a[i] - b[i], 2);
    size += std::pow(b[i], 2);
  }
  return std::sqrt(difference / size);
}

}  // namespace xlstm::testing
