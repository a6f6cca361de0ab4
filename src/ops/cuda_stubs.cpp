// The CUDA bodies of the forward ops, in a build without CUDA.

#include "core/check.hpp"
#include "ops/activation.hpp"
#include "ops/best.hpp"
#include "ops/conv.hpp"
#include "ops/device_peaks.hpp"
#include "ops/draw.hpp"
#include "ops/e4m3.hpp"
#include "ops/embed.hpp"
#include "ops/fused.hpp"
#include "ops/gates.hpp"
#include "ops/headwise.hpp"
#include "ops/layer_norm.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm.hpp"
#include "ops/norm.hpp"
#include "ops/packed.hpp"
#include "ops/slstm.hpp"

#define XLSTM_CUDA_STUB(name, Args)                                              \
  void name(Context&, const Args&) {                                             \
    fail(ErrorCode::unsupported, #name ": this build has no CUDA; use the CPU"); \
  }

namespace xlstm::ops::cuda {

XLSTM_CUDA_STUB(best_logits, BestLogitsArgs)
XLSTM_CUDA_STUB(draw_tokens, DrawTokensArgs)
XLSTM_CUDA_STUB(embed, EmbedArgs)
XLSTM_CUDA_STUB(rms_norm, RmsNormArgs)
XLSTM_CUDA_STUB(rms_norm_gates, RmsNormGatesArgs)
XLSTM_CUDA_STUB(head_norm, HeadNormArgs)
XLSTM_CUDA_STUB(norm_linear, NormLinearArgs)
XLSTM_CUDA_STUB(head_norm_linear, HeadNormLinearArgs)
XLSTM_CUDA_STUB(mlstm_head_norm_linear, MlstmHeadNormLinearArgs)
XLSTM_CUDA_STUB(mlstm_head_norm, MlstmHeadNormArgs)
XLSTM_CUDA_STUB(norm_linear_swiglu, NormLinearSwigluArgs)
XLSTM_CUDA_STUB(linear, LinearArgs)
XLSTM_CUDA_STUB(linear_swiglu, LinearSwigluArgs)
XLSTM_CUDA_STUB(quantise_e4m3, QuantiseE4m3Args)
XLSTM_CUDA_STUB(linear_e4m3, LinearE4m3Args)
XLSTM_CUDA_STUB(linear_swiglu_e4m3, LinearSwigluE4m3Args)
XLSTM_CUDA_STUB(pack_weights, PackWeightsArgs)
XLSTM_CUDA_STUB(swiglu, SwigluArgs)
XLSTM_CUDA_STUB(soft_cap, SoftCapArgs)
XLSTM_CUDA_STUB(mlstm, MlstmArgs)
XLSTM_CUDA_STUB(mlstm_fold, MlstmFoldArgs)
XLSTM_CUDA_STUB(slstm, SlstmArgs)
XLSTM_CUDA_STUB(gates, GatesArgs)
XLSTM_CUDA_STUB(causal_conv, CausalConvArgs)
XLSTM_CUDA_STUB(headwise_linear, HeadwiseLinearArgs)
XLSTM_CUDA_STUB(layer_norm, LayerNormArgs)
XLSTM_CUDA_STUB(skip_gate, SkipGateArgs)
XLSTM_CUDA_STUB(gated_activation, GatedActivationArgs)

}  // namespace xlstm::ops::cuda

bool xlstm::ops::reads_packed(Device) { return false; }
bool xlstm::ops::pends_few(Device) { return false; }

namespace xlstm {
namespace {

[[noreturn]] void refuse(Device device) {
  fail(ErrorCode::unsupported, "device {}: this build has no CUDA", to_string(device));
}

}  // namespace

double measure_device_read_bandwidth(Device device, double, std::size_t) { refuse(device); }
double measure_device_bf16_peak(Device device, double, int) { refuse(device); }
double measure_device_f32_peak(Device device, double, int) { refuse(device); }

}  // namespace xlstm
