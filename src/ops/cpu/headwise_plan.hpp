#pragma once
// How a block-diagonal product runs on the CPU, and how much scratch memory that takes.

#include <cstddef>

#include "ops/headwise.hpp"

namespace xlstm::ops::cpu {

/// Blocks of 4 x 4 are worked on side by side in one vector; larger ones are products of their own.
inline bool headwise_by_vectors(const Tensor& w) { return w.dim(1) == 4 && w.dim(2) == 4; }
std::size_t headwise_workspace_bytes(const Context& context, const HeadwiseLinearArgs& a);
std::size_t headwise_backward_workspace_bytes(const Context& context,
                                              const HeadwiseLinearBackwardArgs& a);

}  // namespace xlstm::ops::cpu
