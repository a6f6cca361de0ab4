#pragma once
// How a linear layer runs on the CPU, and how much scratch memory that takes.

#include <cstddef>

#include "ops/linear.hpp"

namespace xlstm::ops::cpu {

/// Bytes that cpu::linear takes from the arena.
std::size_t linear_workspace_bytes(const LinearArgs& args);

}  // namespace xlstm::ops::cpu
