// The CUDA bodies of the ops of training, in every build: training runs on the CPU.

#include "core/check.hpp"
#include "ops/activation.hpp"
#include "ops/conv.hpp"
#include "ops/embed.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/loss.hpp"
#include "ops/mlstm.hpp"
#include "ops/norm.hpp"
#include "ops/optim.hpp"
#include "ops/slstm.hpp"

#define XLSTM_CUDA_STUB(name, Args)                                                \
  void name(Context&, const Args&) {                                               \
    fail(ErrorCode::unsupported, #name ": training runs on the CPU, not on CUDA"); \
  }

namespace xlstm::ops::cuda {

XLSTM_CUDA_STUB(slstm_backward, SlstmBackwardArgs)
XLSTM_CUDA_STUB(embed_backward, EmbedBackwardArgs)
XLSTM_CUDA_STUB(rms_norm_backward, RmsNormBackwardArgs)
XLSTM_CUDA_STUB(rms_norm_gates_backward, RmsNormGatesBackwardArgs)
XLSTM_CUDA_STUB(head_norm_backward, HeadNormBackwardArgs)
XLSTM_CUDA_STUB(linear_backward, LinearBackwardArgs)
XLSTM_CUDA_STUB(swiglu_backward, SwigluBackwardArgs)
XLSTM_CUDA_STUB(mlstm_backward, MlstmBackwardArgs)
XLSTM_CUDA_STUB(causal_conv_backward, CausalConvBackwardArgs)
XLSTM_CUDA_STUB(headwise_linear_backward, HeadwiseLinearBackwardArgs)
XLSTM_CUDA_STUB(layer_norm_backward, LayerNormBackwardArgs)
XLSTM_CUDA_STUB(skip_gate_backward, SkipGateBackwardArgs)
XLSTM_CUDA_STUB(gates_backward, GatesBackwardArgs)
XLSTM_CUDA_STUB(gated_activation_backward, GatedActivationBackwardArgs)
XLSTM_CUDA_STUB(dropout, DropoutArgs)
XLSTM_CUDA_STUB(cross_entropy, CrossEntropyArgs)
XLSTM_CUDA_STUB(adamw, AdamwArgs)
XLSTM_CUDA_STUB(squared_norm, SquaredNormArgs)
XLSTM_CUDA_STUB(scale, ScaleArgs)

}  // namespace xlstm::ops::cuda
