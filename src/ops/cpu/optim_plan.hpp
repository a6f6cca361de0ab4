#pragma once
// How squared_norm() cuts a tensor, so that its sum has one order.

#include <cstdint>

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cpu {

inline constexpr std::int64_t kSquaredNormBlock = 4096;
inline std::int64_t squared_norm_blocks(const Tensor& x) {
  return (x.count() + kSquaredNormBlock - 1) / kSquaredNormBlock;
}

}  // namespace xlstm::ops::cpu
