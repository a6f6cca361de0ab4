#include "ops/gates.hpp"

#include "ops/check_args.hpp"

namespace xlstm::ops {

void check_gates(const GatesArgs& a) {
  const std::int64_t tokens = a.z.dim(0), heads = a.i.dim(1);
  check_tensor("gates", "z", a.z, Types::f32, {tokens, 2 * heads});
  check_tensor("gates", "i", a.i, Types::f32, {tokens, heads});
  check_tensor("gates", "log_f", a.log_f, Types::f32, {tokens, heads});
}

std::size_t gates_workspace(const Context&, const GatesArgs&) { return 0; }

void check_gates_backward(const GatesBackwardArgs& a) {
  const std::int64_t tokens = a.log_f.dim(0), heads = a.log_f.dim(1);
  check_tensor("gates_backward", "log_f", a.log_f, Types::f32, {tokens, heads});
  check_tensor("gates_backward", "d_i", a.d_i, Types::f32, {tokens, heads});
  check_tensor("gates_backward", "d_log_f", a.d_log_f, Types::f32, {tokens, heads});
  check_tensor("gates_backward", "d_z", a.d_z, Types::f32, {tokens, 2 * heads});
}

std::size_t gates_backward_workspace(const Context&, const GatesBackwardArgs&) { return 0; }

}  // namespace xlstm::ops
