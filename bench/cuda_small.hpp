#pragma once
// Parts of bench_cuda: ops beside products and cells, and loading.

#include <filesystem>

#include "cuda_timing.hpp"

namespace xlstm::bench {

/// What the blocks of the first xLSTM have beside their cells.
void stack_ops(Bench& bench);
/// Norms, SwiGLU and rounding, row by row.
void row_ops(Bench& bench);
/// A model of a file in the machine's memory, with weights as they are and packed: their way to the
/// card, beside that of as many bytes of pinned memory.
/// @param part       of the names, as Bench has it
/// @param directory  of the model; empty: one of random weights, 2 GB
void loading(const std::string& part, const std::filesystem::path& directory);
/// From ids to vectors and from logits to ids.
void token_ops(Bench& bench);

}  // namespace xlstm::bench
