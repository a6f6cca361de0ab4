#pragma once
// The chunkwise form of the mLSTM cell on tensor cores, for bf16 q, k and v (specification A.4
// (3)): the states before all chunks of a window, then the outputs of all its chunks.
//
// The state is kept transposed, C^T [dv, dqk], in the accumulators of the products that update it:
// what a lane has of a tile of 16 x 16 is then, rounded to bf16, what the same lane needs of C as
// the right factor of q C. States go through memory in this form, 16 bytes a lane:
//   [a / 16, x / 16, lane, 4 words] of C[a][x], for each state and head,
// and again behind that, where one token is most of C, what rounding to bf16 has left out.
//
// The products see bf16 numbers: e^(beta_j - mu_L) v_j, C before the chunk and the weighed scores.
// Scores, what is added to l, n and q.n are float32.

#include <cstdint>

#include "ops/cuda/device/async.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mlstm_cell.cuh"
#include "ops/cuda/mlstm_plan.hpp"

namespace xlstm::ops::cuda {

constexpr int kSpan = MlstmPlan::kTensorChunk;
constexpr int kFragmentWords = kWarp * 4;  // of a tile of 16 x 16

/// Of C in memory.
struct Fragments {
  unsigned* words;
  std::int64_t columns;  // tiles of dv

  /// @param part  0: C rounded; 1: what that leaves out, rounded
  __device__ Fragments(const Cell& cell, std::int64_t state, std::int64_t head, int part)
      : columns((cell.dv + 15) / 16) {
    const std::int64_t rows = (cell.dqk + 15) / 16;
    words = static_cast<unsigned*>(cell.c) +
            ((state * cell.heads + head) * 2 + part) * rows * columns * kFragmentWords;
  }
  __device__ unsigned* at(std::int64_t row, std::int64_t column) const {
    return words + (row * columns + column) * kFragmentWords;
  }
};

__device__ inline void store_pack(void* to, const unsigned (&words)[4]) {
  *static_cast<Pack<unsigned, 4>*>(to) = {{words[0], words[1], words[2], words[3]}};
}

inline int device_attribute(const Context& context, cudaDeviceAttr which) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, which, context.device().index) != cudaSuccess)
    throw Error(ErrorCode::internal, "cudaDeviceGetAttribute of " + to_string(context.device()));
  return value;
}
/// Bytes of shared memory that a block may ask for.
inline std::size_t most_shared(const Context& context) {
  return static_cast<std::size_t>(
      device_attribute(context, cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

/// C and n before every chunk of `window`, and after the sequences that end in it
/// (mlstm_tensor_states.cu).
void mlstm_tensor_states(Context& context, const Cell& cell, const MlstmPlan& plan,
                         const Window& window);
/// h of every chunk of `window` (mlstm_tensor_outputs.cu).
void mlstm_tensor_outputs(Context& context, const Cell& cell, const MlstmPlan& plan,
                          const Window& window, DType h);

}  // namespace xlstm::ops::cuda
