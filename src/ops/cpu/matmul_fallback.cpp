// matmul() of a build without oneDNN.

#include "ops/cpu/matmul.hpp"

namespace xlstm::ops::cpu {

void matmul(const MatmulArgs& args, int threads) { matmul_by_sgemm(args, threads); }

bool matmul_takes_bf16() { return false; }

}  // namespace xlstm::ops::cpu
