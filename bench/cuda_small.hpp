#pragma once
// Parts of bench_cuda: ops beside products and cells.

#include "cuda_timing.hpp"

namespace xlstm::bench {

/// What the blocks of the first xLSTM have beside their cells.
void stack_ops(Bench& bench);
/// Norms, SwiGLU and rounding, row by row.
void row_ops(Bench& bench);
/// From ids to vectors and from logits to ids.
void token_ops(Bench& bench);

}  // namespace xlstm::bench
