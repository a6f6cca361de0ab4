#pragma once
// The matrix product of the CPU backend: oneDNN (matmul_onednn.cpp), or a plain loop for platforms
// and sanitizers without it (matmul_fallback.cpp). Nothing else includes oneDNN.

#include <cstdint>

namespace xlstm::ops::cpu {

/// C[M, N] = alpha op(A) op(B) + beta C, all row-major float32 with row strides lda, ldb, ldc;
/// op(A) is A[M, K], or the transpose of A[K, M] when `ta`; op(B) likewise. Runs on the calling
/// thread: ops spread their tasks over threads themselves.
void sgemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
           const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
           std::int64_t ldc);

}  // namespace xlstm::ops::cpu
