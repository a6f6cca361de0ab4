// A build without oneDNN: all products are ours.

#include "core/check.hpp"
#include "ops/cpu/matmul.hpp"

namespace xlstm::ops::cpu {

bool library_has(DType, DType) { return false; }

void library_matmul(const MatmulArgs&, int) {
  fail(ErrorCode::internal, "internal error: library_matmul without a library");
}

void library_gemm(const GemmArgs&, int) {
  fail(ErrorCode::internal, "internal error: library_gemm without a library");
}

}  // namespace xlstm::ops::cpu
