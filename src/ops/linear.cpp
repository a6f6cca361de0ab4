#include "ops/linear.hpp"

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/linear_plan.hpp"

namespace xlstm::ops {

void check_linear(const LinearArgs& args) {
  const Tensor& x = args.x;
  const Tensor& y = args.y;
  XLSTM_CHECK(x.rank == 2 && x.dim(1) >= 1 && (x.dtype == DType::f32 || x.dtype == DType::bf16),
              invalid_argument, "linear: expected x [T, K >= 1] in f32 or bf16, found {}",
              to_string(x));
  XLSTM_CHECK(!args.w.empty(), invalid_argument, "linear: expected at least one weight");
  XLSTM_CHECK(args.b.empty() || args.b.size() == args.w.size(), invalid_argument,
              "linear: expected no bias or one for each of {} weights, found {}", args.w.size(),
              args.b.size());
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < args.w.size(); ++i) {
    const Tensor& w = args.w[i];
    XLSTM_CHECK(w.rank == 2 && w.dim(1) == x.dim(1) && is_weight_dtype(w.dtype), invalid_argument,
                "linear: expected weight {} [N, {}] in f32, bf16 or f16, found {}", i, x.dim(1),
                to_string(w));
    XLSTM_CHECK(w.device == x.device, invalid_argument,
                "linear: expected weight {} on {}, found it on {}", i, to_string(x.device),
                to_string(w.device));
    if (!args.b.empty()) {
      const Tensor& b = args.b[i];
      XLSTM_CHECK(b.rank == 1 && b.dim(0) == w.dim(0) && is_weight_dtype(b.dtype), invalid_argument,
                  "linear: expected bias {} [{}], found {}", i, w.dim(0), to_string(b));
    }
    outputs += w.dim(0);
  }
  XLSTM_CHECK(y.rank == 2 && y.dtype == DType::f32 && y.dim(0) == x.dim(0) && y.dim(1) == outputs,
              invalid_argument, "linear: expected y f32[{}, {}], found {}", x.dim(0), outputs,
              to_string(y));
}

std::size_t linear_workspace(const Context& context, const LinearArgs& args) {
  if (!context.device().is_cpu()) return 0;
  return cpu::linear_workspace_bytes(args);
}

void check_linear_backward(const LinearBackwardArgs& a) {
  constexpr const char* kOp = "linear_backward";
  XLSTM_CHECK(!a.w.empty(), invalid_argument, "{}: expected at least one weight", kOp);
  XLSTM_CHECK((a.d_w.empty() || a.d_w.size() == a.w.size()) &&
                  (a.d_b.empty() || a.d_b.size() == a.w.size()),
              invalid_argument,
              "{}: expected no gradients or one for each of {} weights, found {} "
              "of weights and {} of biases",
              kOp, a.w.size(), a.d_w.size(), a.d_b.size());
  const std::int64_t tokens = a.d_y.dim(0), inputs = a.w[0].dim(1);
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < a.w.size(); ++i) {
    const std::int64_t rows = a.w[i].dim(0);
    check_tensor(kOp, "w", a.w[i], Types::weight, {rows, inputs});
    if (!a.d_w.empty()) check_tensor(kOp, "d_w", a.d_w[i], Types::f32, {rows, inputs});
    if (!a.d_b.empty()) check_tensor(kOp, "d_b", a.d_b[i], Types::f32, {rows});
    outputs += rows;
  }
  check_tensor(kOp, "d_y", a.d_y, Types::f32, {tokens, outputs});
  if (!a.d_w.empty()) check_tensor(kOp, "x", a.x, Types::f32_bf16, {tokens, inputs});
  if (a.d_x) check_tensor(kOp, "d_x", a.d_x, Types::f32, {tokens, inputs});
}

std::size_t linear_backward_workspace(const Context& context, const LinearBackwardArgs& args) {
  if (!context.device().is_cpu()) return 0;
  return cpu::LinearBackwardPlan(args).bytes();
}

}  // namespace xlstm::ops
