#pragma once
// Products of few tokens with bf16 weights at the rate of memory, on capability 9.0. Each function
// is what its op is, and does nothing but return false where it does not serve the shapes and
// types; how many tokens there are does not decide.

#include "ops/fused.hpp"
#include "ops/linear.hpp"

namespace xlstm::ops::cuda::sm90 {

bool linear_of_few_tokens(Context& context, const LinearArgs& args);
bool norm_linear(Context& context, const NormLinearArgs& args);
bool norm_linear_swiglu(Context& context, const NormLinearSwigluArgs& args);

}  // namespace xlstm::ops::cuda::sm90
