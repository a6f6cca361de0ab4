#include "ops/linear.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "ops/activation.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/linear_plan.hpp"
#include "ops/cuda/sm90/matmul_packed_tiled_plan.hpp"

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
  check_packed("linear", args.packed, args.w);
  const bool cpu = y.device.is_cpu();
  XLSTM_CHECK(y.rank == 2 && (y.dtype == DType::f32 || (!cpu && y.dtype == DType::bf16)) &&
                  y.dim(0) == x.dim(0) && y.dim(1) == outputs,
              invalid_argument, "linear: expected y {}[{}, {}], found {}",
              cpu ? "f32" : "f32 or bf16", x.dim(0), outputs, to_string(y));
}

std::size_t linear_workspace(const Context& context, const LinearArgs& args) {
  if (context.device().is_cpu()) return cpu::linear_workspace_bytes(args);
  const bool may_share = !args.packed.empty() && args.x.dim(0) >= cuda::kStreamKFewest;
  return may_share ? cuda::kPackedTiledPartials : 0;
}

void check_linear_swiglu(const LinearSwigluArgs& a) {
  constexpr const char* kOp = "linear_swiglu";
  const std::int64_t tokens = a.x.dim(0), inputs = a.x.dim(1), f = a.y.dim(1);
  check_tensor(kOp, "x", a.x, Types::f32_bf16, {tokens, inputs});
  XLSTM_CHECK(a.w.size() == 2 && (a.b.empty() || a.b.size() == 2), invalid_argument,
              "{}: expected 2 weights and no or 2 biases, found {} and {}", kOp, a.w.size(),
              a.b.size());
  check_weights(kOp, a.w, f, inputs, a.packed);
  for (const Tensor& b : a.b) check_tensor(kOp, "b", b, Types::weight, {f});
  check_tensor(kOp, "y", a.y, Types::f32_bf16, {tokens, f});
}

std::size_t linear_swiglu_workspace(const Context& context, const LinearSwigluArgs& args) {
  Context measuring(context.device(), context.threads());
  measuring.start_measuring();
  composed::linear_swiglu(measuring, args);
  return measuring.stop_measuring();
}

void composed::linear_swiglu(Context& c, const LinearSwigluArgs& a) {
  constexpr std::int64_t kMostRows = 1024;  // bounds the scratch memory
  const std::int64_t tokens = a.x.dim(0), f = a.y.dim(1);
  const ArenaScope scope(c.arena());
  const Tensor gate_up = c.arena().tensor(DType::f32, {std::min(tokens, kMostRows), 2 * f});
  for (std::int64_t t = 0; t < tokens; t += kMostRows) {
    const std::int64_t rows = std::min(tokens - t, kMostRows);
    const Tensor both = gate_up.rows(0, rows);
    linear(c, {.x = a.x.rows(t, rows), .w = a.w, .b = a.b, .y = both, .packed = a.packed});
    swiglu(c, {.gate = both.cols(0, f), .up = both.cols(f, f), .y = a.y.rows(t, rows)});
  }
}

void cpu::linear_swiglu(Context& c, const LinearSwigluArgs& a) { composed::linear_swiglu(c, a); }

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
