#pragma once
// Products on tensor cores, by a whole warp: mma.sync.m16n8k16 of the PTX ISA, bf16 with float32
// sums. Lane l holds, with g = l / 4 and t = l % 4, two numbers in each register of
//   A [16 rows, 16 deep]     a[0]: row g, depth 2t, 2t + 1     a[1]: the same of row g + 8
//                            a[2]: row g, depth 2t + 8, + 9    a[3]: the same of row g + 8
//   B [16 deep, 8 columns]   b[0]: depth 2t, 2t + 1, column g  b[1]: depth 2t + 8, + 9, column g
// and one float in each of
//   C [16 rows, 8 columns]   c[0], c[1]: row g, columns 2t, 2t + 1    c[2], c[3]: of row g + 8

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/device/numbers.cuh"

namespace xlstm::ops::cuda {

/// Row and column of c[i] of a lane.
__device__ inline int c_row(int lane, int i) { return i / 2 * 8 + lane / 4; }
__device__ inline int c_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

/// C += A B
__device__ inline void mma_bf16([[maybe_unused]] float (&c)[4],
                                [[maybe_unused]] const unsigned (&a)[4],
                                [[maybe_unused]] const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm volatile(  // all lanes at once: it must not move into a branch
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(XLSTM_CUDA_EMULATED)
  cuda_emulator::mma_m16n8k16_bf16(c, a, b);
#endif
}

/// The row of A, and which 8 of its 16 numbers, that a lane names to load_matrices() for a[0 .. 3].
__device__ inline int a_row_of(int lane) { return lane % 16; }
__device__ inline int a_half_of(int lane) { return lane / 16; }
/// The column of two neighbouring B, and which 8 of its 16 numbers, that a lane names for b[0],
/// b[1] of the one and then of the other.
__device__ inline int b_column_of(int lane) { return lane / 16 * 8 + lane % 8; }
__device__ inline int b_half_of(int lane) { return lane / 8 % 2; }

/// The same of a factor that lies transposed in memory, for load_matrices_transposed(): which row
/// of 16 (the depth), and which 8 of the 16 rows of A, or of the columns of two neighbouring B.
__device__ inline int a_depth_of(int lane) { return lane / 16 * 8 + lane % 8; }
__device__ inline int a_eight_of(int lane) { return lane / 8 % 2; }
__device__ inline int b_depth_of(int lane) { return lane / 8 % 2 * 8 + lane % 8; }
__device__ inline int b_eight_of(int lane) { return lane / 16; }

/// Four matrices of 8 rows of 16 bytes in shared memory: lane l says in `row` where row l % 8 of
/// matrix l / 8 is, at a multiple of 16 bytes, and gets in to[i] the bytes [4t, 4t + 4) of row g of
/// matrix i (ldmatrix).
__device__ inline void load_matrices([[maybe_unused]] unsigned (&to)[4],
                                     [[maybe_unused]] const void* row) {
#if defined(__CUDA_ARCH__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#elif defined(XLSTM_CUDA_EMULATED)
  cuda_emulator::load_matrices(to, row);
#endif
}

/// The same of the transposed matrices of 8 x 8 numbers of 2 bytes: to[i] holds numbers g of the
/// rows 2t and 2t + 1 of matrix i.
__device__ inline void load_matrices_transposed([[maybe_unused]] unsigned (&to)[4],
                                                [[maybe_unused]] const void* row) {
#if defined(__CUDA_ARCH__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#elif defined(XLSTM_CUDA_EMULATED)
  cuda_emulator::load_matrices_transposed(to, row);
#endif
}

/// Two numbers rounded to bf16, the first in the lower half.
__device__ inline unsigned pack_bf16(float first, float second) {
#if defined(__CUDA_ARCH__)
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return f32_to_bf16(first) | static_cast<unsigned>(f32_to_bf16(second)) << 16;
#endif
}
__device__ inline float first_of(unsigned pair) {
  return to_float(Bf16{static_cast<std::uint16_t>(pair & 0xFFFF)});
}
__device__ inline float second_of(unsigned pair) {
  return to_float(Bf16{static_cast<std::uint16_t>(pair >> 16)});
}
/// a b + c of two numbers in bf16, each rounded once.
__device__ inline unsigned fma_bf16(unsigned a, unsigned b, unsigned c) {
#if defined(__CUDA_ARCH__)
  unsigned pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
  return pair;
#else
  return pack_bf16(fmaf(first_of(a), first_of(b), first_of(c)),
                   fmaf(second_of(a), second_of(b), second_of(c)));
#endif
}

/// Two numbers as sums of three of bf16 each, to the last bit.
struct ThreeParts {
  unsigned pairs[3];
  __device__ ThreeParts(float first, float second)  // no loop: the compiler must keep registers
      : pairs{take(first, second), take(first, second), take(first, second)} {}

 private:
  __device__ static unsigned take(float& first, float& second) {
    const unsigned pair = pack_bf16(first, second);
    first -= first_of(pair);
    second -= second_of(pair);
    return pair;
  }
};

}  // namespace xlstm::ops::cuda
