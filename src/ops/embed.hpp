#pragma once
// Embedding.

#include <cstdint>
#include <span>

#include "ops/op.hpp"

namespace xlstm::ops {

/// y[t] = table[ids[t]]
struct EmbedArgs {
  std::span<const std::int32_t> ids;  ///< [T], each in [0, V)
  /// A copy for the kernels of a CUDA device; null where that reads the host's memory.
  const std::int32_t* device_ids = nullptr;
  Tensor table;  ///< [V, D] f32, bf16 or f16
  Tensor y;      ///< [T, D] f32
};
XLSTM_OP(embed, EmbedArgs)

/// d_table[ids[t]] += d_y[t], in the order of the tokens whatever the number of threads
struct EmbedBackwardArgs {
  std::span<const std::int32_t> ids;  ///< [T], each in [0, V)
  Tensor d_y;                         ///< [T, D] f32
  Tensor d_table;                     ///< [V, D] f32, +=
};
XLSTM_OP(embed_backward, EmbedBackwardArgs)

}  // namespace xlstm::ops
