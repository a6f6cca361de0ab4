#pragma once
// How a linear layer runs on the CPU, and how much scratch memory that takes.

#include <cstddef>

#include "ops/linear.hpp"

namespace xlstm::ops::cpu {

/// Bytes that cpu::linear takes from the arena.
std::size_t linear_workspace_bytes(const LinearArgs& args);

/// The copies that cpu::linear_backward takes from the arena, in another type than they came in.
struct LinearBackwardPlan {
  explicit LinearBackwardPlan(const LinearBackwardArgs& args);

  bool bf16;  ///< all products in bf16, of d_y rounded; else all in f32
  std::size_t d_y_bytes = 0, x_bytes = 0, w_bytes = 0;  ///< 0: no copy; w: the largest block
  std::size_t bytes() const;
};

}  // namespace xlstm::ops::cpu
