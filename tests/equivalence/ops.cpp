// Deviations of single ops and of the cell from the oracle.

#include <algorithm>
#include <cmath>

#include "cuda/mlstm_call.hpp"
#include "cuda/norm_error.hpp"
#include "equivalence/report.hpp"
#include "ops/activation.hpp"
#include "ops/embed.hpp"
#include "ops/linear.hpp"
#include "ops/mlstm_problem.hpp"
#include "ops/norm.hpp"
#include "oracle/ops.hpp"

namespace xlstm::equivalence {
namespace {

namespace ops = xlstm::ops;
using ops::test::Array;
using ops::test::max_abs;
using ops::test::max_error;
using ops::test::MlstmProblem;
using ops::test::Regime;

constexpr DType kTypes[] = {DType::f32, DType::bf16};
constexpr float kEps = 1e-6F;

double relative(const std::vector<double>& got, const std::vector<double>& want) {
  return max_error(got, want) / std::max(max_abs(want), 1e-300);
}

/// Reports one op's deviation and that of a plain float run, whose results are rounded alike.
void compare(const std::string& op, DType dtype, const std::vector<double>& got,
             const std::vector<double>& want, const std::vector<float>& plain) {
  const std::string row = op + " → " + to_string(dtype);
  report(kOps, row, relative(got, want));
  report(kOps, row, relative(ops::test::rounded(dtype, {plain.begin(), plain.end()}), want), true);
}

void measure_element_wise(DType dtype, int tokens) {
  const int width = 1030, heads = 5, head_width = width / heads;
  std::mt19937 random(1);
  Context context(test_device(), 2);
  Array x = Array::random(random, DType::f32, {tokens, width}, 2.0);
  Array other = Array::random(random, DType::f32, {tokens, width}, 3.0);
  Array w = Array::random(random, dtype, {width}, 0.3, 1.0);
  Array b = Array::random(random, dtype, {width}, 0.3);
  Array y(dtype, {tokens, width});

  ops::test::run<ops::RmsNormArgs>(
      context, ops::rms_norm,
      {.x = x.tensor(), .w = w.tensor(), .b = b.tensor(), .eps = kEps, .y = y.tensor()});
  const auto u = oracle::rms_norm<double>(x.values(), w.values(), b.values(), width, kEps);
  const auto plain_u = oracle::rms_norm<float>(x.floats(), w.floats(), b.floats(), width, kEps);
  compare("rms_norm", dtype, y.values(), u, plain_u);

  Array w_i = Array::random(random, dtype, {heads, width}, 0.1);
  Array b_i = Array::random(random, dtype, {heads}, 1.0, -2.0);
  Array i(DType::f32, {tokens, heads}), log_f(DType::f32, {tokens, heads});
  ops::test::run<ops::RmsNormGatesArgs>(context, ops::rms_norm_gates,
                                        {.x = x.tensor(),
                                         .w = w.tensor(),
                                         .b = b.tensor(),
                                         .w_i = w_i.tensor(),
                                         .w_f = w_i.tensor(),
                                         .b_i = b_i.tensor(),
                                         .b_f = b_i.tensor(),
                                         .eps = kEps,
                                         .cap = 15.0F,
                                         .u = y.tensor(),
                                         .i = i.tensor(),
                                         .log_f = log_f.tensor()});
  auto gate = oracle::soft_cap<double>(
      oracle::linear<double>(u, w_i.values(), b_i.values(), width, heads), 15.0);
  auto plain_gate = oracle::soft_cap<float>(
      oracle::linear<float>(plain_u, w_i.floats(), b_i.floats(), width, heads), 15.0F);
  if (dtype == DType::f32) compare("rms_norm_gates: i", dtype, i.values(), gate, plain_gate);
  for (double& value : gate) value = oracle::log_sigmoid(value);
  for (float& value : plain_gate) value = oracle::log_sigmoid(value);
  if (dtype == DType::f32)
    compare("rms_norm_gates: log f", dtype, log_f.values(), gate, plain_gate);

  ops::test::run<ops::HeadNormArgs>(context, ops::head_norm,
                                    {.h = x.tensor(),
                                     .o = other.tensor(),
                                     .w = w.tensor(),
                                     .b = b.tensor(),
                                     .heads = heads,
                                     .eps = kEps,
                                     .y = y.tensor()});
  compare("head_norm", dtype, y.values(),
          oracle::head_norm<double>(x.values(), other.values(), w.values(), b.values(), heads,
                                    head_width, kEps),
          oracle::head_norm<float>(x.floats(), other.floats(), w.floats(), b.floats(), heads,
                                   head_width, kEps));

  ops::test::run<ops::SwigluArgs>(context, ops::swiglu,
                                  {.gate = other.tensor(), .up = x.tensor(), .y = y.tensor()});
  compare("swiglu", dtype, y.values(), oracle::swiglu(other.values(), x.values()),
          oracle::swiglu(other.floats(), x.floats()));

  if (dtype != DType::f32) return;
  Array capped = Array::of(DType::f32, {tokens, width}, x.values());
  const auto want = oracle::soft_cap(capped.values(), 3.0);
  const auto plain = oracle::soft_cap(capped.floats(), 3.0F);
  ops::soft_cap(context, {.x = capped.tensor(), .cap = 3.0F});
  context.synchronize();
  compare("soft_cap", dtype, capped.values(), want, plain);
}

/// Products of x in `dtype` with weights of each type; the results are f32.
void measure_linear(DType dtype, int tokens) {
  const int in = 515, out = 70;
  std::mt19937 random(2);
  Context context(test_device(), 2);
  for (DType weights : {DType::f32, DType::bf16, DType::f16}) {
    Array x = Array::random(random, dtype, {tokens, in});
    Array w = Array::random(random, weights, {out, in}), y(DType::f32, {tokens, out});
    const Tensor rows = w.tensor();
    ops::test::run<ops::LinearArgs>(context, ops::linear,
                                    {.x = x.tensor(), .w = {&rows, 1}, .b = {}, .y = y.tensor()});
    compare(std::string("linear, ") + to_string(dtype) + " x " + to_string(weights) + ", " +
                std::to_string(tokens) + (tokens == 1 ? " token" : " tokens"),
            DType::f32, y.values(), oracle::linear<double>(x.values(), w.values(), {}, in, out),
            oracle::linear<float>(x.floats(), w.floats(), {}, in, out));
  }
}

/// The worse of h, C and n, each relative to its largest value.
void measure_cell(const std::string& table, const std::string& row, Regime regime, int length,
                  int chunk) {
  MlstmProblem problem({2, 48, 96}, {length}, regime, 7);
  problem.run(2, chunk);
  oracle::MlstmState exact = problem.state(0);
  const oracle::Vector want = oracle::mlstm_recurrent(problem.inputs(0), exact);
  const auto worst = [&](const std::vector<double>& h, const std::vector<double>& c,
                         const std::vector<double>& n) {
    return std::max({relative(h, want), relative(c, exact.c), relative(n, exact.n)});
  };
  report(table, row, worst(problem.h(0), problem.c(0), problem.n(0)));
  auto state = problem.float_state(0);
  const auto plain = oracle::mlstm_recurrent(problem.float_inputs(0), state);
  report(table, row,
         worst({plain.begin(), plain.end()}, {state.c.begin(), state.c.end()},
               {state.n.begin(), state.n.end()}),
         true);
}

/// What the kernels of prompts make of bf16.
void measure_cell_bf16(Regime regime) {
  constexpr int kLength = 300;
  ops::test::MlstmCall call({1, 256, 512}, {kLength}, ops::MlstmGate::exponential, 1, DType::bf16,
                            regime, true);
  call.run();
  oracle::MlstmState exact = call.state<double>(0);
  const oracle::Vector want = oracle::mlstm_recurrent(call.inputs<double>(0), exact);
  const ops::test::NormError h(call.h(0), want, static_cast<std::size_t>(call.shape.dv));
  const std::string row = to_string(regime);
  report(kCellBf16, row + ": h", h.all);
  report(kCellBf16, row + ": worst row of h", h.worst_row);
  report(kCellBf16, row + ": C", ops::test::distance(call.records[0].state<double>().c, exact.c));
}

}  // namespace

void measure_ops(bool quick) {
  for (DType dtype : kTypes) {
    measure_element_wise(dtype, quick ? 3 : 33);
    for (int tokens : {1, 64}) measure_linear(dtype, tokens);
  }
  const std::vector<int> lengths =
      quick ? std::vector<int>{1, 77} : std::vector<int>{1, 77, 512, 2048};
  for (int length : lengths)
    for (int chunk : {1, 7, 16, 64, 77}) {
      if (length == 1 && chunk > 1) continue;
      const std::string row = std::to_string(length) +
                              (length == 1 ? " token" : " tokens, chunk " + std::to_string(chunk));
      measure_cell(kCell, row, Regime::typical, length, chunk);
    }
  for (Regime regime : ops::test::kRegimes)
    for (int chunk : {1, 64})
      measure_cell(kGates, std::string(to_string(regime)) + ", chunk " + std::to_string(chunk),
                   regime, 200, chunk);
  if (test_device().is_cpu()) return;
  for (Regime regime : ops::test::kRegimes) measure_cell_bf16(regime);
}

}  // namespace xlstm::equivalence
