#pragma once
// Products of 1 to 16 rows of x with many rows of W: limited by how fast W comes from memory. Every
// output is one dot product with a summation order that depends on K and the instruction set alone,
// so a row of x gets the same bits in any batch, on any number of threads.

#include <cstdint>

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cpu {

/// Elements to which few_rows() needs rows of x padded with zeros.
inline constexpr std::int64_t kFewRowsPadding = 32;

struct FewRowsArgs {
  const float* x;         ///< [t, K padded]
  std::int64_t x_stride;  ///< elements between rows of x
  std::int64_t t;         ///< rows of x, 1 to 16
  Tensor w;               ///< [n, K] f32, bf16 or f16
  float* y;               ///< [t, n]
  std::int64_t y_stride;  ///< elements between rows of y
  bool accumulate;        ///< y += instead of y =
};

/// y = x W^T (+ y) on the calling thread.
void few_rows(const FewRowsArgs& args);

}  // namespace xlstm::ops::cpu
