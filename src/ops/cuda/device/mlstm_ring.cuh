#pragma once
// The ring of pending tokens of one head (ops/mlstm_ring.hpp) as kernels see it.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "ops/mlstm_ring.hpp"

namespace xlstm::ops::cuda {

struct HeadRing {
  float *k, *v;    // [tokens, dqk], [tokens, dv]
  float* weights;  // [tokens]
  float* decay;
  std::int32_t* waiting;

  /// @param slot  a record; null: pointers that nobody may follow
  __device__ __forceinline__ HeadRing(const MlstmRing& ring, std::byte* slot, std::size_t pending,
                                      std::int64_t head) {
    auto* const floats = reinterpret_cast<float*>(slot + pending);
    k = floats + ring.k + head * ring.tokens * ring.dqk;
    v = floats + ring.v + head * ring.tokens * ring.dv;
    weights = floats + ring.gates + head * (ring.tokens + 2);
    decay = weights + ring.tokens;
    waiting = reinterpret_cast<std::int32_t*>(decay + 1);
  }
};

}  // namespace xlstm::ops::cuda
