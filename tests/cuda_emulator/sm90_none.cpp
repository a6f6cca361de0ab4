// The kernels of src/ops/cuda/sm90/, which no emulator runs: Level::base never calls them.

#include "ops/cuda/sm90/few_rows.hpp"
#include "ops/cuda/sm90/matmul.hpp"
#include "ops/cuda/sm90/mlstm_fused.hpp"
#include "ops/cuda/sm90/mlstm_step.hpp"
#include "ops/cuda/sm90/mlstm_steps.hpp"
#include "ops/cuda/sm90/slstm.hpp"

namespace xlstm::ops::cuda {

bool product(Context&, const Product&) { return false; }

namespace sm90 {

bool linear_of_few_tokens(Context&, const LinearArgs&) { return false; }
bool norm_linear(Context&, const NormLinearArgs&) { return false; }
bool norm_linear_swiglu(Context&, const NormLinearSwigluArgs&) { return false; }
bool mlstm_fused(Context&, const MlstmArgs&, bool, std::int64_t) { return false; }
bool serves_mlstm_step(const MlstmHeadNormLinearArgs&) { return false; }
void mlstm_step(Context&, const MlstmHeadNormLinearArgs&, const Tensor&) {}
bool serves_mlstm_steps(const MlstmArgs&) { return false; }
void mlstm_steps(Context&, const MlstmArgs&, const HeadNormArgs*) {}
bool serves_mlstm_ring_steps(const MlstmArgs&) { return false; }
void mlstm_ring_steps(Context&, const MlstmArgs&, const HeadNormArgs*) {}
bool slstm(Context&, const SlstmArgs&) { return false; }

}  // namespace sm90
}  // namespace xlstm::ops::cuda
