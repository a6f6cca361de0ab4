#pragma once
// The ring of pending tokens of one head (ops/mlstm_ring.hpp) as kernels see it.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "ops/cuda/device/numbers.cuh"
#include "ops/mlstm_ring.hpp"
#include "ops/random_rounding.hpp"

namespace xlstm::ops::cuda {

struct HeadRing {
  float *k, *v;    // [tokens, dqk], [tokens, dv]
  float* weights;  // [tokens]
  float* decay;
  std::int32_t* waiting;
  std::uint32_t* position;  // of C in bf16

  /// @param slot  a record; null: pointers that nobody may follow
  __device__ __forceinline__ HeadRing(const MlstmRing& ring, std::byte* slot, std::size_t pending,
                                      std::int64_t head) {
    auto* const floats = reinterpret_cast<float*>(slot + pending);
    k = floats + ring.k + head * ring.tokens * ring.dqk;
    v = floats + ring.v + head * ring.tokens * ring.dv;
    weights = floats + ring.gates + head * (ring.tokens + 2);
    decay = weights + ring.tokens;
    waiting = reinterpret_cast<std::int32_t*>(decay + 1);
    position = reinterpret_cast<std::uint32_t*>(floats + ring.positions) + head;
  }
};

/// Writes an element of C of a head.
__device__ __forceinline__ void store_state(float* to, float x, RoundingKey, std::uint32_t) {
  *to = x;
}
__device__ __forceinline__ void store_state(Bf16* to, float x, RoundingKey key,
                                            std::uint32_t element) {
  to->bits = random_bf16(x, key, element);
}

}  // namespace xlstm::ops::cuda
