#pragma once
// The size of a pass through the network and what it reads beside weights and states.

#include <array>
#include <cstddef>
#include <cstdint>

#include "xlstm/device.hpp"

namespace xlstm::model {

/// Tokens of one pass. Bounds the activations (about 210 kB per token at 7B); at this many tokens
/// the matrix products have reached their peak rate. A multiple of the usual chunk sizes.
inline constexpr std::int64_t kSliceTokens = 512;

/// Tokens of sequences that share a pass; a longer sequence has passes of its own. Products of up
/// to 16 rows have one summation order, so such sequences do not change each other's bits
/// (ops/linear.hpp). On a CUDA device more may share one, unless LoadOptions::exact says otherwise.
inline std::int64_t shared_tokens(Device device, bool exact) {
  return device.is_cpu() || exact ? 16 : 256;
}
inline constexpr std::size_t kMostShared = 256;

/// Where a pass's tokens lie and whose they are, and the rows of two tables. A CUDA device gets a
/// copy of all in one piece.
struct StepInputs {
  std::array<std::byte*, kMostShared> slots;          // NOLINT: filled as far as it is read
  std::array<std::int32_t, kMostShared + 1> offsets;  // NOLINT
  std::array<std::int32_t, kSliceTokens> ids;         // NOLINT
  std::array<std::int32_t, kSliceTokens> rows;        // NOLINT
};

}  // namespace xlstm::model
