#pragma once
// Matrix products of the CPU backend. sgemm() is ours (sgemm.cpp): the small products of the cells.
// matmul() is oneDNN's (matmul_onednn.cpp), or made of sgemm() for platforms and sanitizers without
// it (matmul_fallback.cpp). Nothing else includes oneDNN.

#include <cstdint>

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cpu {

/// C[M, N] = alpha op(A) op(B) + beta C, all row-major float32 with row strides lda, ldb, ldc;
/// op(A) is A[M, K], or the transpose of A[K, M] when `ta`; op(B) likewise. C is not read if beta
/// is 0. Runs on the calling thread and allocates nothing: ops spread their tasks over threads
/// themselves.
void sgemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
           const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
           std::int64_t ldc);

struct MatmulArgs {
  Tensor x;         ///< [M, K] f32, or bf16 where matmul_takes_bf16()
  Tensor w;         ///< [N, K] of x's dtype
  Tensor y;         ///< [M, N] f32
  bool accumulate;  ///< y += instead of y =
};

/// y = x W^T (+ y) for many rows of x, on `threads` threads.
void matmul(const MatmulArgs& args, int threads);

/// Whether bf16 operands are multiplied as they are; otherwise they have to be widened to f32.
bool matmul_takes_bf16();

/// matmul() by sgemm(), whatever the build.
void matmul_by_sgemm(const MatmulArgs& args, int threads);

}  // namespace xlstm::ops::cpu
