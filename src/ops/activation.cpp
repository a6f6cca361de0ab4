#include "ops/activation.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"

namespace xlstm::ops {

void check_swiglu(const SwigluArgs& a) {
  const std::int64_t tokens = a.gate.dim(0), width = a.gate.dim(1);
  check_tensor("swiglu", "gate", a.gate, Types::f32, {tokens, width});
  check_tensor("swiglu", "up", a.up, Types::f32, {tokens, width});
  check_tensor("swiglu", "y", a.y, Types::f32_bf16, {tokens, width});
}

std::size_t swiglu_workspace(const Context&, const SwigluArgs&) { return 0; }

void check_swiglu_backward(const SwigluBackwardArgs& a) {
  constexpr const char* kOp = "swiglu_backward";
  const std::int64_t tokens = a.gate.dim(0), width = a.gate.dim(1);
  check_tensor(kOp, "gate", a.gate, Types::f32, {tokens, width});
  check_tensor(kOp, "up", a.up, Types::f32, {tokens, width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  check_tensor(kOp, "d_gate", a.d_gate, Types::f32, {tokens, width});
  check_tensor(kOp, "d_up", a.d_up, Types::f32, {tokens, width});
}

std::size_t swiglu_backward_workspace(const Context&, const SwigluBackwardArgs&) { return 0; }

void check_gated_activation(const GatedActivationArgs& a) {
  constexpr const char* kOp = "gated_activation";
  const std::int64_t tokens = a.gate.dim(0), width = a.gate.dim(1);
  check_tensor(kOp, "gate", a.gate, Types::f32, {tokens, width});
  check_tensor(kOp, "up", a.up, Types::f32, {tokens, width});
  check_tensor(kOp, "y", a.y, Types::f32_bf16, {tokens, width});
}

std::size_t gated_activation_workspace(const Context&, const GatedActivationArgs&) { return 0; }

void check_gated_activation_backward(const GatedActivationBackwardArgs& a) {
  constexpr const char* kOp = "gated_activation_backward";
  const std::int64_t tokens = a.gate.dim(0), width = a.gate.dim(1);
  check_tensor(kOp, "gate", a.gate, Types::f32, {tokens, width});
  check_tensor(kOp, "up", a.up, Types::f32, {tokens, width});
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, width});
  check_tensor(kOp, "d_gate", a.d_gate, Types::f32, {tokens, width});
  check_tensor(kOp, "d_up", a.d_up, Types::f32, {tokens, width});
}

std::size_t gated_activation_backward_workspace(const Context&,
                                                const GatedActivationBackwardArgs&) {
  return 0;
}

void check_dropout(const DropoutArgs& a) {
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  check_tensor("dropout", "x", a.x, Types::f32, {tokens, width});
  check_tensor("dropout", "y", a.y, Types::f32, {tokens, width});
  XLSTM_CHECK(a.p >= 0 && a.p < 1, invalid_argument,
              "dropout: p must be at least 0 and below 1, found {}", a.p);
}

std::size_t dropout_workspace(const Context&, const DropoutArgs&) { return 0; }

void check_soft_cap(const SoftCapArgs& a) {
  check_tensor("soft_cap", "x", a.x, Types::f32, {a.x.dim(0), a.x.dim(1)});
  XLSTM_CHECK(a.cap > 0, invalid_argument, "soft_cap: cap must be positive, found {}", a.cap);
}

std::size_t soft_cap_workspace(const Context&, const SoftCapArgs&) { return 0; }

}  // namespace xlstm::ops
