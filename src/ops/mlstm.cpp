#include "ops/mlstm.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/mlstm_backward_plan.hpp"
#include "ops/cpu/mlstm_plan.hpp"
#include "ops/cuda/mlstm_plan.hpp"
#include "ops/cuda/mlstm_wide.hpp"
#include "ops/cuda/sm90/mlstm_fused_plan.hpp"
#include "ops/mlstm_ring.hpp"

namespace xlstm::ops {
namespace {

void check_state(const char* op, const MlstmStateOffsets& state) {
  XLSTM_CHECK(
      state.c % 4 == 0 && state.pending % 4 == 0 && state.n % 8 == 0 && state.m % 8 == 0,
      invalid_argument,
      "{}: state offsets must be multiples of 4 (C, pending tokens) and of 8 (n, m), found {}, {}, "
      "{} and {}",
      op, state.c, state.pending, state.n, state.m);
  XLSTM_CHECK(state.c_type == DType::f32 || (state.c_type == DType::bf16 && state.pending != 0),
              invalid_argument,
              "{}: expected C in f32, or bf16 with room for pending tokens, "
              "found {}",
              op, to_string(state.c_type));
}

void check_saved(const char* op, const MlstmArgs& a, std::int64_t dqk, std::int64_t dv) {
  const MlstmSaved& saved = a.saved;
  if (!saved) return;
  const std::int64_t tokens = a.batch.tokens(), heads = a.i.dim(1);
  XLSTM_CHECK(saved.border > 0 && saved.border % MlstmSaved::kUnit == 0, invalid_argument,
              "{}: saved.border must be a multiple of {}, found {}", op, MlstmSaved::kUnit,
              saved.border);
  XLSTM_CHECK(a.state.pending == 0, invalid_argument,
              "{}: nothing is saved of states with pending tokens", op);
  const std::int64_t states = MlstmSaved::states(a.batch, saved.border);
  check_tensor(op, "saved.l", saved.l, Types::f32, {tokens, heads});
  check_tensor(op, "saved.m", saved.m, Types::f32, {tokens, heads});
  check_tensor(op, "saved.c", saved.c, Types::f32, {states, heads, dqk, dv});
  check_tensor(op, "saved.n", saved.n, Types::f32, {states, heads, dqk});
  check_tensor(op, "saved.state_m", saved.state_m, Types::f32, {states, heads});
  XLSTM_CHECK(saved.c.is_dense() && saved.n.is_dense() && saved.state_m.is_dense(),
              invalid_argument, "{}: saved states must be dense", op);
}

}  // namespace

void check_mlstm(const MlstmArgs& a) {
  constexpr const char* kOp = "mlstm";
  const Batch& batch = a.batch;
  check_batch(kOp, batch);
  const std::int64_t tokens = batch.tokens(), heads = a.i.dim(1);
  check_at_least(kOp, "the number of heads", heads, 1);
  check_at_least(kOp, "chunk", a.chunk, 1);
  check_tensor(kOp, "i", a.i, Types::f32, {tokens, heads});
  check_tensor(kOp, "log_f", a.log_f, Types::f32, {tokens, heads});
  const std::int64_t qk_width = a.q.dim(1), v_width = a.v.dim(1);
  XLSTM_CHECK(
      qk_width >= heads && qk_width % heads == 0 && v_width >= heads && v_width % heads == 0,
      invalid_argument, "{}: the widths {} of q and {} of v must be multiples of {} heads", kOp,
      qk_width, v_width, heads);
  check_tensor(kOp, "q", a.q, Types::f32_bf16, {tokens, qk_width});
  check_tensor(kOp, "k", a.k, Types::f32_bf16, {tokens, qk_width});
  check_tensor(kOp, "v", a.v, Types::f32_bf16, {tokens, v_width});
  check_tensor(kOp, "h", a.h, Types::f32_bf16, {tokens, v_width});
  XLSTM_CHECK(a.q.dtype == a.k.dtype && a.q.dtype == a.v.dtype, invalid_argument,
              "{}: q, k and v must have one type, found {}, {} and {}", kOp, to_string(a.q.dtype),
              to_string(a.k.dtype), to_string(a.v.dtype));
  check_state(kOp, a.state);
  XLSTM_CHECK(a.normalise || a.gate == MlstmGate::sigmoid, invalid_argument,
              "{}: the exponential gate needs the denominator", kOp);
  check_saved(kOp, a, qk_width / heads, v_width / heads);
}

std::size_t mlstm_workspace(const Context& context, const MlstmArgs& a) {
  if (context.device().is_cpu()) return cpu::MlstmPlan(a, context.threads()).bytes();
  // Which of the two runs depends on the device.
  std::size_t bytes = cuda::MlstmPlan(a).bytes();
  using Fused = cuda::sm90::MlstmFusedPlan;
  if (Fused::serves(a)) bytes = std::max(bytes, Fused(a).bytes());
  if (a.state.c_type == DType::bf16) bytes += cuda::MlstmWidePlan(a).bytes();
  if (a.state.pending != 0)
    bytes = std::max(bytes, MlstmRing::step_bytes(a.batch.sequences(), a.i.dim(1)));
  return bytes;
}

void check_mlstm_fold(const MlstmFoldArgs& a) {
  constexpr const char* kOp = "mlstm_fold";
  check_batch(kOp, a.batch);
  check_at_least(kOp, "the number of heads", a.heads, 1);
  check_at_least(kOp, "dqk", a.dqk, 1);
  check_at_least(kOp, "dv", a.dv, 1);
  check_state(kOp, a.state);
  XLSTM_CHECK(a.state.pending != 0, invalid_argument, "{}: expected room for pending tokens", kOp);
}

std::size_t mlstm_fold_workspace(const Context&, const MlstmFoldArgs&) { return 0; }

void check_mlstm_backward(const MlstmBackwardArgs& a) {
  constexpr const char* kOp = "mlstm_backward";
  // The arguments that both passes have, and the chunk; the backward pass reads h.
  check_mlstm({.q = a.q,
               .k = a.k,
               .v = a.v,
               .i = a.i,
               .log_f = a.log_f,
               .batch = a.batch,
               .state = a.state,
               .chunk = a.chunk,
               .h = a.h,
               .gate = a.gate,
               .normalise = a.normalise});
  const std::int64_t tokens = a.batch.tokens(), heads = a.i.dim(1);
  check_tensor(kOp, "q", a.q, Types::f32, {tokens, a.q.dim(1)});
  check_tensor(kOp, "h", a.h, Types::f32, {tokens, a.v.dim(1)});
  check_tensor(kOp, "d_h", a.d_h, Types::f32, {tokens, a.v.dim(1)});
  check_tensor(kOp, "d_q", a.d_q, Types::f32, {tokens, a.q.dim(1)});
  check_tensor(kOp, "d_k", a.d_k, Types::f32, {tokens, a.k.dim(1)});
  check_tensor(kOp, "d_v", a.d_v, Types::f32, {tokens, a.v.dim(1)});
  check_tensor(kOp, "d_i", a.d_i, Types::f32, {tokens, heads});
  check_tensor(kOp, "d_log_f", a.d_log_f, Types::f32, {tokens, heads});
  XLSTM_CHECK(a.d_slots.empty() || a.d_slots.size() == a.batch.slots.size(), invalid_argument,
              "{}: expected no gradient records or one for each of {} sequences, found {}", kOp,
              a.batch.slots.size(), a.d_slots.size());
}

std::size_t mlstm_backward_workspace(const Context& context, const MlstmBackwardArgs& a) {
  return cpu::MlstmBackwardPlan(a, context.threads()).bytes();
}

}  // namespace xlstm::ops
