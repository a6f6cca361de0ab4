#pragma once
// Norms with a block for each row, and the gates of few rows.

#include <cstdint>

#include "core/context.hpp"
#include "ops/norm.hpp"

namespace xlstm::ops::cuda {

/// The most rows whose gates are made apart from their norm.
inline constexpr std::int64_t kFewNormRows = 256;

/// rms_norm() of any number of rows. False, and nothing done, where it does not serve.
bool rms_norm_by_rows(Context& context, const RmsNormArgs& args);

/// Whether these two serve; with the second rms_norm_by_rows() makes u.
bool serves_gates_of_few_rows(const RmsNormGatesArgs& args);

/// rms_norm_gates().
void rms_norm_gates_of_few_rows(Context& context, const RmsNormGatesArgs& args);

/// Of rms_norm_gates() the gates alone. It does not wait for the op before it, which must be
/// linear(): the gates are made while products are, and memory is busy with their weights. x, i and
/// log_f are not that op's. The kernel after it finds them without grid_wait().
void gates_of_few_rows(Context& context, const RmsNormGatesArgs& args);

/// head_norm().
/// @param few  the op before it is a cell that leaves multiprocessors idle: the op after this one
///             then begins there
void head_norm_of_cell(Context& context, const HeadNormArgs& args, bool few);

}  // namespace xlstm::ops::cuda
