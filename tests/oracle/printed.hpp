#pragma once
// The inputs for which the specification (section G) prints results, and how far others are.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "oracle/ops.hpp"

namespace oracle {

/// The largest |got - want|; infinite where a number is NaN or the sizes differ.
inline double largest_error(const Vector& got, const Vector& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = got.size() == want.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    error = std::max(error, std::isnan(got[i]) ? INFINITY : std::abs(got[i] - want[i]));
  return error;
}

/// An mLSTM cell of one head, dqk 2, dv 3, and 4 tokens; f is the forget gate before its sigmoid.
struct PrintedMlstm {
  MlstmInputs in;
  Vector f;
};
inline PrintedMlstm printed_mlstm() {
  PrintedMlstm p;
  p.in.dqk = 2;
  p.in.dv = 3;
  for (int t = 0; t < 4; ++t) {
    for (int a = 0; a < 2; ++a) p.in.q.push_back(std::sin(1 + t + 2 * a));
    for (int a = 0; a < 2; ++a) p.in.k.push_back(std::cos(2 + t + 3 * a));
    for (int x = 0; x < 3; ++x) p.in.v.push_back(std::sin(3 + 2 * t + x));
    p.in.i.push_back(1.5 * std::cos(t));
    p.f.push_back(2 + std::sin(t));
    p.in.log_f.push_back(log_sigmoid(p.f.back()));
  }
  return p;
}

/// An sLSTM cell of one head of 2 features, and 3 tokens.
struct PrintedSlstm {
  Vector wx, r = Vector(16), b = Vector(8);
};
inline PrintedSlstm printed_slstm() {
  PrintedSlstm p;
  for (int t = 0; t < 3; ++t)
    for (int g = 0; g < 4; ++g)
      for (int j = 0; j < 2; ++j) p.wx.push_back(0.5 * std::sin(1 + t + 2 * g + 3 * j));
  for (int g = 0; g < 4; ++g)
    for (int a = 0; a < 2; ++a)
      for (int k = 0; k < 2; ++k)
        p.r[static_cast<std::size_t>((g * 2 + a) * 2 + k)] = 0.3 * std::cos(1 + g + 2 * a + 3 * k);
  p.b[2] = 1;
  p.b[3] = 2;
  return p;
}

}  // namespace oracle
