#pragma once
// The size of a pass through the network and what it reads beside weights and states.

#include <array>
#include <cstddef>
#include <cstdint>

namespace xlstm::model {

/// Tokens of one pass. Bounds the activations (about 210 kB per token at 7B); at this many tokens
/// the matrix products have reached their peak rate. A multiple of the usual chunk sizes.
inline constexpr std::int64_t kSliceTokens = 512;

/// Products of up to so many rows have one summation order, so sequences may share a pass without
/// changing each other's bits (ops/linear.hpp). A longer sequence has passes of its own.
inline constexpr std::int64_t kSharedTokens = 16;

/// Where a pass's tokens lie and whose they are, and the rows of two tables. A CUDA device gets a
/// copy of all in one piece.
struct StepInputs {
  std::array<std::byte*, kSharedTokens> slots;          // NOLINT: filled as far as it is read
  std::array<std::int32_t, kSharedTokens + 1> offsets;  // NOLINT
  std::array<std::int32_t, kSliceTokens> ids;           // NOLINT
  std::array<std::int32_t, kSliceTokens> rows;          // NOLINT
};

}  // namespace xlstm::model
