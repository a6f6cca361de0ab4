#pragma once
// The executable specification: every op in scalar double, straight from the equations, with no
// regard for speed. Matrices are row-major vectors. The same code in float is the naive run whose
// error bounds that of the engine, and in the Var of tape.hpp it gives gradients; all three are
// instantiated in ops.cpp.

#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

namespace oracle {

using Vector = std::vector<double>;

/// log sigmoid(x) = -softplus(-x)
template <class Real>
Real log_sigmoid(Real x);
template <class Real>
Real sigmoid(Real x);

/// y[t] = table[ids[t]], table [V, width]
template <class Real>
std::vector<Real> embed(std::span<const std::int32_t> ids, const std::vector<Real>& table,
                        int width);

/// y = x W^T + b, x [T, in], w [out, in], b [out] or empty
template <class Real>
std::vector<Real> linear(const std::vector<Real>& x, const std::vector<Real>& w,
                         const std::vector<Real>& b, int in, int out);

/// y = x rsqrt(mean(x^2) + eps) w + b per row of `width`; w and b may be empty (factor 1, no sum)
template <class Real>
std::vector<Real> rms_norm(const std::vector<Real>& x, const std::vector<Real>& w,
                           const std::vector<Real>& b, int width, std::type_identity_t<Real> eps);

/// cap tanh(x / cap); cap 0 = no cap
template <class Real>
std::vector<Real> soft_cap(const std::vector<Real>& x, std::type_identity_t<Real> cap);

/// silu(gate) up
template <class Real>
std::vector<Real> swiglu(const std::vector<Real>& gate, const std::vector<Real>& up);

/// sigmoid(o) (LayerNorm over each head of h, w and b per feature); b may be empty
template <class Real>
std::vector<Real> head_norm(const std::vector<Real>& h, const std::vector<Real>& o,
                            const std::vector<Real>& w, const std::vector<Real>& b, int heads,
                            int head_width, std::type_identity_t<Real> eps);

/// State of all heads of one sequence: C [H, dqk, dv], n [H, dqk], m [H]; zero at the beginning.
template <class Real>
struct MlstmStateOf {
  std::vector<Real> c, n, m;
  MlstmStateOf() = default;
  MlstmStateOf(int heads, int dqk, int dv)
      : c(static_cast<std::size_t>(heads) * dqk * dv),
        n(static_cast<std::size_t>(heads) * dqk),
        m(static_cast<std::size_t>(heads)) {}
};
using MlstmState = MlstmStateOf<double>;

/// Inputs of the cell for one sequence of T tokens.
template <class Real>
struct MlstmInputsOf {
  int heads = 1, dqk = 1, dv = 1;
  std::vector<Real> q, k;      ///< [T, H dqk]
  std::vector<Real> v;         ///< [T, H dv]
  std::vector<Real> i, log_f;  ///< [T, H], after the caps
  /// mLSTMsig (D.2): i is log sigmoid of the gate, m stays 0; h divided by max(|l|, 1) + eps or
  /// not. The recurrent form only.
  bool sigmoid = false, normalise = true;
  Real eps = Real(1e-6);

  int tokens() const { return static_cast<int>(i.size()) / heads; }
};
using MlstmInputs = MlstmInputsOf<double>;

/// The recurrent form, specification A.4 (1). Returns h [T, H dv] and moves `state` on.
template <class Real>
std::vector<Real> mlstm_recurrent(const MlstmInputsOf<Real>& inputs, MlstmStateOf<Real>& state);
/// The chunkwise form, A.4 (3), with a short last chunk.
template <class Real>
std::vector<Real> mlstm_chunkwise(const MlstmInputsOf<Real>& inputs, MlstmStateOf<Real>& state,
                                  int chunk);
/// The sum that both compute, without a stabiliser, from the empty state (A.4, last form).
Vector mlstm_unstabilised(const MlstmInputs& inputs);

}  // namespace oracle
