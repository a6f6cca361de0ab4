#pragma once
// Rows of f32, bf16 or f16 numbers as float32.

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cpu {

/// to[r][i] = from[r][i], zero for i past from's width; to is f32 with at least as many rows and
/// columns. Runs on the calling thread.
void widen(const Tensor& from, const Tensor& to);

}  // namespace xlstm::ops::cpu
