#pragma once
// Parts of bench_cuda: ops beside products and cells, and loading.

#include "cuda_timing.hpp"

namespace xlstm::bench {

/// What the blocks of the first xLSTM have beside their cells.
void stack_ops(Bench& bench);
/// Norms, SwiGLU and rounding, row by row.
void row_ops(Bench& bench);
/// A model of a file in the machine's memory: its weights' way to the card, beside that of as many
/// bytes of pinned memory. @param part  of the names, as Bench has it
void loading(const std::string& part);
/// From ids to vectors and from logits to ids.
void token_ops(Bench& bench);

}  // namespace xlstm::bench
