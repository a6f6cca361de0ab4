#pragma once
// How the best of a row of logits are found on CUDA.

#include <cstddef>
#include <cstdint>

namespace xlstm::ops::cuda {

/// A block takes the best K of a span; what all blocks took is a shorter row, and so on until one
/// span is left.
struct BestPlan {
  static constexpr std::int64_t kSpan = 2048;

  BestPlan(std::int64_t rows_, std::int64_t width, std::int64_t count_)
      : rows(rows_), count(count_), first(spans(width) * count), second(spans(first) * count) {}

  static constexpr std::int64_t spans(std::int64_t width) { return (width + kSpan - 1) / kSpan; }

  std::int64_t rows, count;
  std::int64_t first, second;  ///< keys of a row after the first pass and after the second

  /// Scratch for the keys of two passes, which take turns.
  std::size_t bytes() const { return static_cast<std::size_t>(rows * (first + second)) * 8; }
};

}  // namespace xlstm::ops::cuda
