#include "ops/e4m3.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "ops/activation.hpp"
#include "ops/check_args.hpp"

namespace xlstm::ops {
namespace {

void check_matrix(const char* op, const char* argument, const E4m3Matrix& m, E4m3Scales kind,
                  std::int64_t rows, std::int64_t columns) {
  XLSTM_CHECK(m.codes && m.codes.rank == 2 && m.codes.dtype == DType::u8 &&
                  m.codes.dim(0) == rows && m.codes.dim(1) == columns,
              invalid_argument, "{}: codes of {} must be u8[{}, {}], found {}", op, argument, rows,
              columns, m.codes ? to_string(m.codes) : "no tensor");
  XLSTM_CHECK(m.kind == kind, invalid_argument, "{}: {} has scales of another kind", op, argument);
  const auto [first, second] = e4m3_scales_shape(kind, rows, columns);
  if (kind == E4m3Scales::rows)
    check_tensor(op, "scales", m.scales, Types::f32, {first});
  else
    check_tensor(op, "scales", m.scales, Types::f32, {first, second});
}

E4m3Scales of_activations(E4m3Scales of_weights) {
  return of_weights == E4m3Scales::blocks ? E4m3Scales::runs : E4m3Scales::rows;
}
E4m3Scales of_weights(E4m3Scales of_activations) {
  return of_activations == E4m3Scales::rows ? E4m3Scales::rows : E4m3Scales::blocks;
}

}  // namespace

std::array<std::int64_t, 2> e4m3_scales_shape(E4m3Scales kind, std::int64_t rows,
                                              std::int64_t columns) {
  const auto runs = [](std::int64_t n) { return (n + kE4m3Run - 1) / kE4m3Run; };
  switch (kind) {
    case E4m3Scales::rows: return {rows, 0};
    case E4m3Scales::runs: return {runs(columns), rows};
    case E4m3Scales::blocks: return {runs(rows), runs(columns)};
  }
  return {};
}

void check_quantise_e4m3(const QuantiseE4m3Args& a) {
  constexpr const char* kOp = "quantise_e4m3";
  check_tensor(kOp, "x", a.x, Types::weight, {a.y.codes.dim(0), a.y.codes.dim(1)});
  check_matrix(kOp, "y", a.y, a.y.kind, a.x.dim(0), a.x.dim(1));
}

std::size_t quantise_e4m3_workspace(const Context&, const QuantiseE4m3Args&) { return 0; }

void check_linear_e4m3(const LinearE4m3Args& a) {
  constexpr const char* kOp = "linear_e4m3";
  const std::int64_t rows = a.x.codes.dim(0), depth = a.x.codes.dim(1);
  XLSTM_CHECK(!a.w.empty() && a.w.size() <= kMostE4m3Weights, invalid_argument,
              "{}: expected 1 to {} weights, found {}", kOp, kMostE4m3Weights, a.w.size());
  check_matrix(kOp, "x", a.x, of_activations(a.w[0].kind), rows, depth);
  XLSTM_CHECK(a.b.empty() || a.b.size() == a.w.size(), invalid_argument,
              "{}: expected no bias or one for each of {} weights, found {}", kOp, a.w.size(),
              a.b.size());
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < a.w.size(); ++i) {
    const std::int64_t n = a.w[i].codes.dim(0);
    check_matrix(kOp, "w", a.w[i], of_weights(a.x.kind), n, depth);
    if (!a.b.empty()) check_tensor(kOp, "b", a.b[i], Types::weight, {n});
    outputs += n;
  }
  check_tensor(kOp, "y", a.y, a.y.device.is_cpu() ? Types::f32 : Types::f32_bf16, {rows, outputs});
}

std::size_t linear_e4m3_workspace(const Context&, const LinearE4m3Args&) { return 0; }

void check_linear_swiglu_e4m3(const LinearSwigluE4m3Args& a) {
  constexpr const char* kOp = "linear_swiglu_e4m3";
  const std::int64_t rows = a.x.codes.dim(0), depth = a.x.codes.dim(1);
  const std::int64_t f = a.y ? a.y.dim(1) : a.coded.codes.dim(1);
  XLSTM_CHECK(a.w.size() == 2 && (a.b.empty() || a.b.size() == 2), invalid_argument,
              "{}: expected 2 weights and no or 2 biases, found {} and {}", kOp, a.w.size(),
              a.b.size());
  XLSTM_CHECK(!a.y || !a.coded.codes, invalid_argument, "{}: expected either y or coded", kOp);
  check_matrix(kOp, "x", a.x, of_activations(a.w[0].kind), rows, depth);
  for (const E4m3Matrix& w : a.w) check_matrix(kOp, "w", w, of_weights(a.x.kind), f, depth);
  for (const Tensor& b : a.b) check_tensor(kOp, "b", b, Types::weight, {f});
  if (a.y)
    check_tensor(kOp, "y", a.y, Types::f32_bf16, {rows, f});
  else
    check_matrix(kOp, "coded", a.coded, E4m3Scales::runs, rows, f);
}

std::size_t linear_swiglu_e4m3_workspace(const Context& context, const LinearSwigluE4m3Args& args) {
  Context measuring(context.device(), context.threads());
  measuring.start_measuring();
  composed::linear_swiglu_e4m3(measuring, args);
  return measuring.stop_measuring();
}

void composed::linear_swiglu_e4m3(Context& c, const LinearSwigluE4m3Args& a) {
  constexpr std::int64_t kMostRows = 1024;  // bounds the scratch memory
  const std::int64_t tokens = a.x.codes.dim(0), f = a.w[0].codes.dim(0);
  const ArenaScope scope(c.arena());
  const Tensor gate_up = c.arena().tensor(DType::f32, {std::min(tokens, kMostRows), 2 * f});
  const Tensor gated = gate_up.cols(0, f);  // where it is not y
  for (std::int64_t t = 0; t < tokens; t += kMostRows) {
    const std::int64_t rows = std::min(tokens - t, kMostRows);
    const Tensor both = gate_up.rows(0, rows);
    linear_e4m3(c, {.x = a.x.rows(t, rows), .w = a.w, .b = a.b, .y = both});
    const Tensor y = a.y ? a.y.rows(t, rows) : gated.rows(0, rows);
    swiglu(c, {.gate = both.cols(0, f), .up = both.cols(f, f), .y = y});
    if (!a.y) quantise_e4m3(c, {.x = y, .y = a.coded.rows(t, rows)});
  }
}

void cpu::linear_swiglu_e4m3(Context& c, const LinearSwigluE4m3Args& a) {
  composed::linear_swiglu_e4m3(c, a);
}

}  // namespace xlstm::ops
