// The oracle's gradients of the cells and of the ops around them: against the printed vectors of
// the specification (section G), the reference's golden cells, and central differences.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "oracle/golden.hpp"
#include "oracle/printed.hpp"
#include "oracle/stack_ops.hpp"
#include "oracle/tape.hpp"

namespace oracle {
namespace {

/// The largest |got - want| / max(1, |want|).
double worst(const Vector& got, const Vector& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = got.size() == want.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    error = std::max(error, std::isnan(got[i])
                                ? INFINITY
                                : std::abs(got[i] - want[i]) / std::max(1.0, std::abs(want[i])));
  return error;
}

/// Sum of weights x.
template <class Real>
Real weighted(const std::vector<Real>& x, const Vector& weights) {
  Real sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += weights.at(i) * x[i];
  return sum;
}

template <class Real>
void log_sigmoid_of(std::vector<Real>& x) {
  for (Real& value : x) value = log_sigmoid(value);
}

/// The inputs of an mLSTM cell as variables.
struct MlstmVariables {
  MlstmInputsOf<Var> in;
  std::vector<Var> i, f;  ///< before the log sigmoids
  MlstmStateOf<Var> initial;
};

MlstmVariables variables(Tape& tape, const MlstmInputs& inputs, const Vector& f,
                         const MlstmState& initial) {
  MlstmVariables x;
  x.in.heads = inputs.heads;
  x.in.dqk = inputs.dqk;
  x.in.dv = inputs.dv;
  x.in.sigmoid = inputs.sigmoid;
  x.in.normalise = inputs.normalise;
  x.in.q = tape.variables(inputs.q);
  x.in.k = tape.variables(inputs.k);
  x.in.v = tape.variables(inputs.v);
  x.in.i = x.i = tape.variables(inputs.i);
  if (inputs.sigmoid) log_sigmoid_of(x.in.i);
  x.in.log_f = x.f = tape.variables(f);
  log_sigmoid_of(x.in.log_f);
  x.initial.c = tape.variables(initial.c);
  x.initial.n = tape.variables(initial.n);
  x.initial.m = tape.variables(initial.m);
  return x;
}

TEST(GradientOracle, PrintedMlstm) {
  const auto [in, f] = printed_mlstm();
  Vector d_h;
  for (int t = 0; t < 4; ++t)
    for (double d : {1.0, -1.0, 0.5}) d_h.push_back(d);
  const Vector d_i{-0.5679521, 0.1696820, -0.0033216, -0.0096925};
  const Vector d_f{0, -0.0086361, 0.0006728, 0.0010193};
  const Vector d_q{-0.5518559, 0.3761669,  -0.0172983, -0.0207840,
                   -0.0533789, -0.0078556, 0.0540054,  -0.1462746};
  constexpr double kPrinted = 0.51e-7;
  for (int chunk : {0, 1, 3, 4}) {
    Tape tape;
    MlstmVariables x = variables(tape, in, f, MlstmState(1, 2, 3));
    const std::vector<Var> h =
        chunk == 0 ? mlstm_recurrent(x.in, x.initial) : mlstm_chunkwise(x.in, x.initial, chunk);
    tape.run_backwards(weighted(h, d_h));
    EXPECT_LE(worst(tape.gradient(x.i), d_i), kPrinted) << chunk;
    EXPECT_LE(worst(tape.gradient(x.f), d_f), kPrinted) << chunk;
    EXPECT_LE(worst(tape.gradient(x.in.q), d_q), kPrinted) << chunk;
  }
}

TEST(GradientOracle, PrintedSlstm) {
  const auto [wx, r, b] = printed_slstm();
  Tape tape;
  const std::vector<Var> x = tape.variables(wx), kernel = tape.variables(r);
  const std::vector<Var> bias = tape.variables(b);
  SlstmStateOf<Var> state(2);
  const Var loss = weighted(slstm(x, kernel, bias, 1, 2, state), {1, -0.5, 0.25, 0.75, -1, 0.5});
  tape.run_backwards(loss);
  EXPECT_NEAR(loss.value(), -0.3174179936, 0.51e-10);
  constexpr double kPrinted = 0.51e-9;
  EXPECT_LE(worst(tape.gradient(bias), {0, 0, 0.043309733, 0.005420612, 0.174459414, 0.213005887,
                                        -0.137733652, -0.006985289}),
            kPrinted);
  EXPECT_LE(worst(tape.gradient(kernel),
                  {0.001299667, -0.002168337, 0.006108697, -0.005132362, -0.007343882, 0.006041948,
                   -0.001099498, 0.000873931, 0.044302700, -0.036833928, -0.057976252, 0.045571700,
                   0.004543511, -0.003614761, -0.013394271, 0.010338411}),
            kPrinted);
}

void expect_golden_cell(const char* name, bool sigmoid, bool normalise) {
  SCOPED_TRACE(name);
  for (CellCase& cell : read_cell(golden_folder() / (std::string(name) + ".safetensors"))) {
    cell.inputs.sigmoid = sigmoid;
    cell.inputs.normalise = normalise;
    for (int chunk : {0, 16, 21}) {
      if (sigmoid && chunk > 0) continue;
      SCOPED_TRACE(chunk);
      Tape tape;
      MlstmVariables x = variables(tape, cell.inputs, cell.f, cell.initial);
      MlstmStateOf<Var> state = x.initial;
      const std::vector<Var> h =
          chunk == 0 ? mlstm_recurrent(x.in, state) : mlstm_chunkwise(x.in, state, chunk);
      tape.run_backwards(weighted(h, cell.dh));
      constexpr double kBound = 1e-9;
      EXPECT_LE(worst(tape.gradient(x.in.q), cell.gradients.q), kBound);
      EXPECT_LE(worst(tape.gradient(x.in.k), cell.gradients.k), kBound);
      EXPECT_LE(worst(tape.gradient(x.in.v), cell.gradients.v), kBound);
      EXPECT_LE(worst(tape.gradient(x.i), cell.gradients.i), kBound);
      EXPECT_LE(worst(tape.gradient(x.f), cell.gradients.log_f), kBound);
      if (cell.initial_gradients.c.empty()) continue;
      EXPECT_LE(worst(tape.gradient(x.initial.c), cell.initial_gradients.c), kBound);
      EXPECT_LE(worst(tape.gradient(x.initial.n), cell.initial_gradients.n), kBound);
      EXPECT_LE(worst(tape.gradient(x.initial.m), cell.initial_gradients.m), kBound);
    }
  }
}

TEST(GradientOracle, GoldenMlstmCells) {
  expect_golden_cell("cell_mlstm_exp", false, true);
  expect_golden_cell("cell_mlstm_exp_extreme_gates", false, true);
  expect_golden_cell("cell_mlstm_sig_norm0", true, false);
  expect_golden_cell("cell_mlstm_sig_norm1", true, true);
}

TEST(GradientOracle, GoldenSlstmCell) {
  const SlstmCellCases cases = read_slstm_cell(golden_folder() / "cell_slstm.safetensors");
  ASSERT_FALSE(cases.entries.empty());
  Tape tape;
  const std::vector<Var> r = tape.variables(cases.entries[0].r);
  const std::vector<Var> b = tape.variables(cases.entries[0].b);
  std::vector<std::vector<Var>> wx;
  Var loss = 0;
  constexpr double kBound = 1e-6;  // the file is in float32
  for (const SlstmCellCase& cell : cases.entries) {
    wx.push_back(tape.variables(cell.wx));
    SlstmStateOf<Var> state(cell.heads * cell.head_width);
    const std::vector<Var> h = slstm(wx.back(), r, b, cell.heads, cell.head_width, state);
    loss += weighted(h, cell.dh);
    SlstmState plain(cell.heads * cell.head_width);
    EXPECT_LE(worst(slstm(cell.wx, cell.r, cell.b, cell.heads, cell.head_width, plain), cell.h),
              kBound);
    EXPECT_LE(worst(plain.h, cell.last.h), kBound);
    EXPECT_LE(worst(plain.c, cell.last.c), kBound);
    EXPECT_LE(worst(plain.n, cell.last.n), kBound);
    EXPECT_LE(worst(plain.m, cell.last.m), kBound);
  }
  tape.run_backwards(loss);
  for (std::size_t i = 0; i < wx.size(); ++i)
    EXPECT_LE(worst(tape.gradient(wx[i]), cases.entries[i].d_wx), kBound);
  EXPECT_LE(worst(tape.gradient(r), cases.d_r), kBound);
  EXPECT_LE(worst(tape.gradient(b), cases.d_b), kBound);
}

/// Numbers in [-1, 1), the same ones everywhere.
class Draw {
 public:
  explicit Draw(std::uint32_t seed) : generator_(seed) {}
  Vector operator()(std::size_t count, double scale = 1, double shift = 0) {
    Vector x(count);
    for (double& value : x) value = shift + scale * (generator_() * 0x1p-31 - 1);
    return x;
  }

 private:
  std::mt19937 generator_;
};

template <class Real>
using Inputs = std::vector<std::vector<Real>>;

/// A template `function` of vectors over the number type: the tape's gradient by each of `inputs`
/// against central differences, relative to the largest of that vector's.
template <class Function>
void expect_central_differences(const Function& function, Inputs<double> inputs) {
  Tape tape;
  Inputs<Var> variables;
  for (const Vector& input : inputs) variables.push_back(tape.variables(input));
  tape.run_backwards(function(variables));
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const Vector got = tape.gradient(variables[k]);
    double error = 0, largest = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      constexpr double kStep = 1e-5;
      const double value = inputs[k][i];
      inputs[k][i] = value + kStep;
      const double above = function(inputs);
      inputs[k][i] = value - kStep;
      const double below = function(inputs);
      inputs[k][i] = value;
      const double want = (above - below) / (2 * kStep);
      largest = std::max(largest, std::abs(want));
      error = std::max(error, std::isnan(got[i]) ? INFINITY : std::abs(got[i] - want));
    }
    EXPECT_GT(largest, 0) << "input " << k;
    EXPECT_LT(error, 1e-6 * largest) << "input " << k;
  }
}

enum class Form { recurrent, chunkwise, parallel, sigmoid, sigmoid_not_normalised };

TEST(GradientOracle, MlstmCellsMatchCentralDifferences) {
  const int heads = 3, dqk = 5, dv = 7, tokens = 11;
  const std::size_t n = heads, t = tokens;
  // With small queries exp(-m) is the denominator of most tokens, with large ones |l|.
  for (double scale : {0.3, 4.0})
    for (Form form : {Form::recurrent, Form::chunkwise, Form::parallel, Form::sigmoid,
                      Form::sigmoid_not_normalised}) {
      SCOPED_TRACE(testing::Message() << "form " << static_cast<int>(form) << ", " << scale);
      const bool sigmoid = form == Form::sigmoid || form == Form::sigmoid_not_normalised;
      Draw draw(7);
      Inputs<double> inputs = {draw(t * n * dqk, scale), draw(t * n * dqk), draw(t * n * dv),
                               draw(t * n, 3), draw(t * n, 3, 1)};
      // The quadratic form begins with the empty state.
      if (form != Form::parallel) {
        inputs.push_back(draw(n * dqk * dv));
        inputs.push_back(draw(n * dqk));
        if (!sigmoid) inputs.push_back(draw(n));
      }
      const Vector d_h = draw(t * n * dv), d_c = draw(n * dqk * dv), d_n = draw(n * dqk);
      const Vector d_m = draw(n);
      const auto cell = [&]<class Real>(const Inputs<Real>& x) -> Real {
        MlstmInputsOf<Real> in;
        in.heads = heads;
        in.dqk = dqk;
        in.dv = dv;
        in.sigmoid = sigmoid;
        in.normalise = form != Form::sigmoid_not_normalised;
        in.q = x[0];
        in.k = x[1];
        in.v = x[2];
        in.i = x[3];
        if (sigmoid) log_sigmoid_of(in.i);
        in.log_f = x[4];
        log_sigmoid_of(in.log_f);
        if (form == Form::parallel) return weighted(mlstm_parallel(in), d_h);
        MlstmStateOf<Real> state(heads, dqk, dv);
        state.c = x[5];
        state.n = x[6];
        if (!sigmoid) state.m = x[7];
        const std::vector<Real> h =
            form == Form::chunkwise ? mlstm_chunkwise(in, state, 4) : mlstm_recurrent(in, state);
        return weighted(h, d_h) + weighted(state.c, d_c) + weighted(state.n, d_n) +
               weighted(state.m, d_m);
      };
      expect_central_differences(cell, inputs);
    }
}

TEST(GradientOracle, SlstmCellMatchesCentralDifferences) {
  const int heads = 3, head_width = 5, tokens = 9;
  const std::size_t width = heads * head_width;
  for (bool empty : {false, true}) {
    SCOPED_TRACE(empty ? "from the empty state" : "from a state");
    Draw draw(11);
    Inputs<double> inputs = {draw(tokens * 4 * width, 2), draw(4 * width * head_width),
                             draw(4 * width)};
    if (!empty)
      inputs.insert(inputs.end(), {draw(width), draw(width), draw(width, 0.5, 1), draw(width)});
    const Vector d_h = draw(tokens * width);
    const Inputs<double> d_last = {draw(width), draw(width), draw(width), draw(width)};
    const auto cell = [&]<class Real>(const Inputs<Real>& x) -> Real {
      SlstmStateOf<Real> state(static_cast<int>(width));
      if (!empty) {
        state.h = x[3];
        state.c = x[4];
        state.n = x[5];
        state.m = x[6];
      }
      const std::vector<Real> h = slstm(x[0], x[1], x[2], heads, head_width, state);
      return weighted(h, d_h) + weighted(state.h, d_last[0]) + weighted(state.c, d_last[1]) +
             weighted(state.n, d_last[2]) + weighted(state.m, d_last[3]);
    };
    expect_central_differences(cell, inputs);
  }
}

TEST(GradientOracle, OpsMatchCentralDifferences) {
  Draw draw(5);
  const Vector d_y = draw(70);
  // Every op on 5 rows of 14 features, 2 heads; the first input is x.
  const auto check = [&](const char* name, const auto& op, const Inputs<double>& inputs) {
    SCOPED_TRACE(name);
    expect_central_differences(
        [&]<class Real>(const Inputs<Real>& x) -> Real { return weighted(op(x), d_y); }, inputs);
  };
  check("embed",
        []<class Real>(const Inputs<Real>& x) {
          const std::int32_t ids[] = {2, 0, 2, 1, 2};
          return embed(ids, x[0], 14);
        },
        {draw(42)});
  check("linear", []<class Real>(const Inputs<Real>& x) { return linear(x[0], x[1], x[2], 3, 14); },
        {draw(15), draw(42), draw(14)});
  check("linear, number by number",
        []<class Real>(const Inputs<Real>& x) { return linear<Real>(x[0], x[1], {}, 3, 14); },
        {draw(15), draw(42)});
  check(
      "headwise_linear",
      []<class Real>(const Inputs<Real>& x) { return headwise_linear(x[0], x[1], x[2], 2, 3, 7); },
      {draw(30), draw(42), draw(14)});
  check("rms_norm",
        []<class Real>(const Inputs<Real>& x) { return rms_norm(x[0], x[1], x[2], 14, 1e-6); },
        {draw(70), draw(14), draw(14)});
  check("layer_norm",
        []<class Real>(const Inputs<Real>& x) { return layer_norm(x[0], x[1], x[2], 14, 2, 1e-5); },
        {draw(70), draw(14), draw(14)});
  check("head_norm",
        []<class Real>(const Inputs<Real>& x) {
          return head_norm(x[0], x[1], x[2], x[3], 2, 7, 1e-6);
        },
        {draw(70), draw(70), draw(14), draw(14)});
  check("skip_gate",
        []<class Real>(const Inputs<Real>& x) {
          return skip_gate(x[0], x[1], x[2], x[3], x[4], 14, 2, 1e-5);
        },
        {draw(70), draw(14), draw(14), draw(70), draw(70)});
  check("soft_cap", []<class Real>(const Inputs<Real>& x) { return soft_cap(x[0], 3); },
        {draw(70, 5)});
  check("swiglu", []<class Real>(const Inputs<Real>& x) { return swiglu(x[0], x[1]); },
        {draw(70, 3), draw(70)});
  for (const char* act : {"gelu", "relu", "relu^2", "sigmoid", "swish"})
    check(act, [&]<class Real>(const Inputs<Real>& x) { return gated_activation(x[0], x[1], act); },
          {draw(70, 3), draw(70)});
  check("causal_conv",
        []<class Real>(const Inputs<Real>& x) {
          std::vector<Real> window = x[3];
          return causal_conv(x[0], x[1], x[2], 14, true, window);
        },
        {draw(70), draw(56), draw(14), draw(42)});
}

}  // namespace
}  // namespace oracle
