#pragma once
// Scratch memory of the backward norms on the CPU.

#include <cstddef>
#include <cstdint>

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cpu {

/// Rows are worked on in blocks of a fixed number. Each block sums its share of the gradients of
/// the weight and the bias, and the shares are added in the order of the blocks: whatever the
/// number of threads, the order of a sum is the same.
struct NormBackwardPlan {
  static constexpr std::int64_t kRows = 32;

  NormBackwardPlan(std::int64_t rows, std::int64_t width)
      : blocks((rows + kRows - 1) / kRows), stride((width + 15) / 16 * 16), tokens(rows) {}

  std::int64_t blocks, stride, tokens;
  /// Two rows per block, then one number per token.
  std::size_t bytes() const {
    return sizeof(float) * static_cast<std::size_t>(2 * blocks * stride + tokens);
  }
};

/// to += the sum of the shares of all blocks, in their order; does nothing if `to` is empty.
void add_shares(int threads, const NormBackwardPlan& plan, const float* shares, const Tensor& to);

}  // namespace xlstm::ops::cpu
