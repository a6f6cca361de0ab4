#pragma once
// Matrix products of the CPU backend: ours (sgemm.cpp), and oneDNN's (matmul_onednn.cpp), which
// nothing else includes.

#include <cstddef>
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
/// The same with beta times `from`, whose rows are as far apart as those of C, instead of C.
void sgemm_from(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
                const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                const float* from, float* c, std::int64_t ldc);

struct MatmulArgs {
  Tensor x;         ///< [M, K] f32 or bf16
  Tensor w;         ///< [N, K] f32, bf16 or f16
  Tensor y;         ///< [M, N] f32
  bool accumulate;  ///< y += instead of y =
};

/// Whether library_matmul() can multiply these dtypes with the active instruction set.
bool library_has(DType x, DType w);

/// y = x W^T (+ y) for many rows of x on `threads` threads, by oneDNN (matmul_onednn.cpp). A build
/// without it (matmul_fallback.cpp) has nothing here: library_has() is always false.
void library_matmul(const MatmulArgs& args, int threads);

struct GemmArgs {
  Tensor a;          ///< [M, K], or [K, M] when transpose_a; f32 or bf16
  Tensor b;          ///< [K, N], as a
  Tensor c;          ///< [M, N] f32
  bool transpose_a;  ///< c = a^T b instead of c = a b
  bool accumulate;   ///< c += instead of c =
};

/// The products of a backward pass by oneDNN, for dtypes that library_has().
void library_gemm(const GemmArgs& args, int threads);
/// The same in f32 by sgemm(); the result does not depend on the number of threads.
void threaded_gemm(const GemmArgs& args, int threads);

/// library_matmul() for any dtypes, by our own kernels (sgemm.cpp). x is packed into `workspace`.
void packed_matmul(const MatmulArgs& args, int threads, std::byte* workspace);
/// Bytes of its workspace for m rows of k.
std::size_t packed_matmul_workspace(std::int64_t m, std::int64_t k);

/// Whether packed_bf16_matmul() is the fastest way to multiply these dtypes here: bf16 dot products
/// and no matrix unit (AMX), which oneDNN uses better (docs/performance.md).
bool packed_bf16_is_fastest(DType x, DType w);
/// bf16 x bf16 by our own kernel (packed_bf16.cpp), in two steps, so that several W share one
/// copy of x: pack_bf16() writes it, packed_bf16_matmul() reads it beside args.w.
void pack_bf16(const Tensor& x, int threads, std::byte* workspace);
void packed_bf16_matmul(const MatmulArgs& args, int threads, const std::byte* packed_x);
/// Bytes of the copy for m rows of k.
std::size_t packed_bf16_workspace(std::int64_t m, std::int64_t k);

}  // namespace xlstm::ops::cpu
