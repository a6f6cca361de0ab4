#pragma once
// One token of a sequence through the mLSTM cell and the norm of its heads, in one kernel on
// capability 9.0.

#include "ops/fused.hpp"

namespace xlstm::ops::cuda::sm90 {

/// Whether mlstm_step() takes the shapes and types of `args`; not a matter of the batch's lengths.
bool serves_mlstm_step(const MlstmHeadNormLinearArgs& args);

/// For every sequence of one token: C, n and m of its state, and y [T, H dv] bf16, what head_norm()
/// makes of its h. Longer sequences are left alone.
void mlstm_step(Context& context, const MlstmHeadNormLinearArgs& args, const Tensor& y);

}  // namespace xlstm::ops::cuda::sm90
