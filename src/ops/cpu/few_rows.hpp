#pragma once
// Products of 1 to 16 rows of x with many rows of W: limited by how fast W comes from memory. Every
// output is one dot product with a summation order that depends on K and the instruction set alone,
// so a row of x gets the same bits in any batch, on any number of threads.

#include <cstdint>

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cpu {

/// The most rows of x that few_rows() takes.
inline constexpr std::int64_t kFewRows = 16;

/// Rows of x must be readable, and zero past K, up to a multiple of this many elements.
inline constexpr std::int64_t kFewRowsPadding = 32;

struct FewRowsArgs {
  Tensor x;         ///< [T, K padded] f32; bf16 if few_rows_takes_bf16()
  Tensor w;         ///< [N, K] f32, bf16 or f16; bf16 if x is bf16
  Tensor y;         ///< [T, N] f32
  bool accumulate;  ///< y += instead of y =
};

/// y = x W^T (+ y) on the calling thread.
void few_rows(const FewRowsArgs& args);

/// Whether this CPU multiplies bf16 x by bf16 w directly; otherwise x has to be widened to f32.
bool few_rows_takes_bf16(DType w);

}  // namespace xlstm::ops::cpu
