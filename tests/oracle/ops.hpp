#pragma once
// The executable specification: every op in scalar double, straight from the equations, with no
// regard for speed. Matrices are row-major vectors.

#include <cstdint>
#include <span>
#include <vector>

namespace oracle {

using Vector = std::vector<double>;

/// log sigmoid(x) = -softplus(-x)
double log_sigmoid(double x);
double sigmoid(double x);

/// y[t] = table[ids[t]], table [V, width]
Vector embed(std::span<const std::int32_t> ids, const Vector& table, int width);

/// y = x W^T + b, x [T, in], w [out, in], b [out] or empty
Vector linear(const Vector& x, const Vector& w, const Vector& b, int in, int out);

/// y = x rsqrt(mean(x^2) + eps) w + b per row of `width`; w and b may be empty (factor 1, no sum)
Vector rms_norm(const Vector& x, const Vector& w, const Vector& b, int width, double eps);

/// cap tanh(x / cap); cap 0 = no cap
Vector soft_cap(const Vector& x, double cap);

/// silu(gate) up
Vector swiglu(const Vector& gate, const Vector& up);

/// sigmoid(o) (LayerNorm over each head of h, w and b per feature); b may be empty
Vector head_norm(const Vector& h, const Vector& o, const Vector& w, const Vector& b, int heads,
                 int head_width, double eps);

/// State of all heads of one sequence: C [H, dqk, dv], n [H, dqk], m [H]; zero at the beginning.
struct MlstmState {
  Vector c, n, m;
  MlstmState() = default;
  MlstmState(int heads, int dqk, int dv)
      : c(static_cast<std::size_t>(heads) * dqk * dv),
        n(static_cast<std::size_t>(heads) * dqk),
        m(static_cast<std::size_t>(heads)) {}
};

/// Inputs of the cell for one sequence of T tokens.
struct MlstmInputs {
  int heads = 1, dqk = 1, dv = 1;
  Vector q, k;      ///< [T, H dqk]
  Vector v;         ///< [T, H dv]
  Vector i, log_f;  ///< [T, H], after the caps
  double eps = 1e-6;

  int tokens() const { return static_cast<int>(i.size()) / heads; }
};

/// The recurrent form, specification A.4 (1). Returns h [T, H dv] and moves `state` on.
Vector mlstm_recurrent(const MlstmInputs& inputs, MlstmState& state);
/// The chunkwise form, A.4 (3), with a short last chunk.
Vector mlstm_chunkwise(const MlstmInputs& inputs, MlstmState& state, int chunk);
/// The sum that both compute, without a stabiliser, from the empty state (A.4, last form).
Vector mlstm_unstabilised(const MlstmInputs& inputs);

}  // namespace oracle
