#pragma once
// What a block does to few tokens, in as few kernels as a CUDA device can: each op is what the
// named ones give one after the other, but for the order of sums in the norms. The CPU runs just
// those.

#include <span>

#include "ops/mlstm.hpp"
#include "ops/norm.hpp"
#include "ops/op.hpp"
#include "ops/packed.hpp"

namespace xlstm::ops {

/// The most tokens of a pass that these ops serve unless they say otherwise. As in linear(), a
/// token's result does not depend on how many there are.
inline constexpr std::int64_t kFusedTokens = 16;

/// Whether a pass of so many tokens is faster with these ops than with those they stand for.
inline bool fuses(const Context& context, std::int64_t tokens) {
  return !context.device().is_cpu() && tokens <= kFusedTokens;
}

/// Where a sequence alone is to have the bits that it has beside a few others, and on devices
/// without kernels for fewer, steps of one token leave C of their mLSTM cells to a later one from
/// so many sequences on: passes that fuse() do not.
inline constexpr std::int64_t kExactPendsFrom = kFusedTokens + 1;

/// Whether this CUDA device has kernels with which fewer sequences gain.
bool pends_few(Device device);

/// The fewest that gain there. What is left to later costs a kernel more in every layer, 3.5 us, in
/// which an H100 writes so much of C.
/// @param c_bytes  of a sequence in one layer
constexpr std::int64_t few_that_pend(std::int64_t c_bytes) {
  constexpr std::int64_t kLeast = 12'000'000;
  if (c_bytes * kExactPendsFrom <= kLeast) return kExactPendsFrom;
  const std::int64_t sequences = (kLeast + c_bytes - 1) / c_bytes;
  return sequences < 2 ? 2 : sequences;
}

/// Whether steps of one token of such a pass leave C to a later one. With C in bf16 all do, so that
/// it is rounded seldom.
inline bool pends(const Context& context, const Batch& batch, std::int64_t from, DType c_type) {
  return !context.device().is_cpu() && (batch.sequences() >= from || c_type == DType::bf16);
}

/// rms_norm_gates(), or rms_norm() where there are no gates, and linear(). On a CUDA device the
/// gates of more than kFusedTokens tokens are made while the products are.
struct NormLinearArgs {
  Tensor x;               ///< [T, D] f32, of any number of tokens
  Tensor norm_w, norm_b;  ///< [D]; norm_b may be empty
  float eps = 1e-6F;
  DType activation;           ///< f32 or bf16, to which the normed row is rounded for the products
  std::span<const Tensor> w;  ///< each [N_i, D]
  std::span<const Tensor> b;  ///< empty, or one [N_i] each
  Tensor y;                   ///< [T, sum N_i] f32; with T > kFusedTokens as linear() takes it
  Tensor w_i = {}, w_f = {};  ///< [H, D] each, or empty: no gates
  Tensor b_i = {}, b_f = {};  ///< [H] each
  float cap = 15.0F;
  bool sigmoid_input = false;
  Tensor i = {}, log_f = {};                   ///< [T, H] f32
  std::span<const PackedWeights> packed = {};  ///< as in LinearArgs
};
XLSTM_OP(norm_linear, NormLinearArgs)
/// The norm and the gates of it, where it has gates. @param u  the normed x
RmsNormGatesArgs norm_gates_of(const NormLinearArgs& a, const Tensor& u);

/// head_norm() and linear(), added to y.
struct HeadNormLinearArgs {
  Tensor h, o;            ///< [T, H dv] f32, T <= kFusedTokens
  Tensor norm_w, norm_b;  ///< [H dv]; norm_b may be empty
  std::int64_t heads = 1;
  float eps = 1e-6F;
  DType activation;                            ///< f32 or bf16
  std::span<const Tensor> w;                   ///< one [N, H dv]
  std::span<const Tensor> b;                   ///< empty, or one [N]
  Tensor y;                                    ///< [T, N] f32, +=
  std::span<const PackedWeights> packed = {};  ///< as in LinearArgs
};
XLSTM_OP(head_norm_linear, HeadNormLinearArgs)

/// mlstm() and head_norm_linear() of its h.
struct MlstmHeadNormLinearArgs {
  /// At most kFusedTokens tokens, no pending ones, nothing saved; what h holds afterwards is
  /// undefined.
  MlstmArgs cell;
  HeadNormLinearArgs norm;  ///< of cell.h
};
XLSTM_OP(mlstm_head_norm_linear, MlstmHeadNormLinearArgs)

/// mlstm() and head_norm() of its h, for any number of tokens. A CUDA device reads states and gates
/// before the op before this one is done: between two calls with one state lies another op, and
/// gates are those of norm_linear() or of an op before the last.
struct MlstmHeadNormArgs {
  MlstmArgs cell;     ///< what h holds afterwards is undefined, unless it is norm.y
  HeadNormArgs norm;  ///< of cell.h
};
XLSTM_OP(mlstm_head_norm, MlstmHeadNormArgs)

/// rms_norm(), linear() and swiglu().
struct NormLinearSwigluArgs {
  Tensor x;               ///< [T, D] f32, T <= kFusedTokens
  Tensor norm_w, norm_b;  ///< [D]; norm_b may be empty
  float eps = 1e-6F;
  std::span<const Tensor> w;                   ///< of the gate and of what it gates, [F, D] each
  std::span<const Tensor> b;                   ///< empty, or two [F]
  Tensor y;                                    ///< [T, F] f32 or bf16, the type of the activations
  std::span<const PackedWeights> packed = {};  ///< as in LinearArgs
};
XLSTM_OP(norm_linear_swiglu, NormLinearSwigluArgs)

/// The ops that each stands for, on any device; scratch for them is what the workspace functions
/// count.
namespace composed {
void norm_linear(Context& context, const NormLinearArgs& a);
void head_norm_linear(Context& context, const HeadNormLinearArgs& a);
void mlstm_head_norm_linear(Context& context, const MlstmHeadNormLinearArgs& a);
void mlstm_head_norm(Context& context, const MlstmHeadNormArgs& a);
void norm_linear_swiglu(Context& context, const NormLinearSwigluArgs& a);
}  // namespace composed

}  // namespace xlstm::ops
