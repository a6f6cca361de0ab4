#pragma once
// Moves of matrices of 8 x 8 numbers of 2 bytes: four between registers and shared memory, as
// load_matrices() of device/mma.cuh, by shared addresses; and one in registers.

#include "ops/cuda/sm90/device/barrier.cuh"

namespace xlstm::ops::cuda {

__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void store_matrices(SharedAddress row, const unsigned (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}
__device__ __forceinline__ void store_matrices_transposed(SharedAddress row,
                                                          const unsigned (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

/// A matrix as mma has it, transposed: numbers lane / 4, 2 (lane % 4) and the next.
__device__ __forceinline__ unsigned transposed(unsigned pair) {
  unsigned to = 0;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(pair));
  return to;
}

}  // namespace xlstm::ops::cuda
