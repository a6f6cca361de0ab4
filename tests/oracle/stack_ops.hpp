#pragma once
// The operations of the first xLSTM in scalar code, straight from specification B.2 to B.4. As in
// ops.hpp, `Real` is double for the oracle, float for the naive run beside it, Var for gradients.

#include <vector>

#include "oracle/ops.hpp"

namespace oracle {

/// y_t = act(b + sum_r w[:, r] x_{t - (K - 1) + r}), x [T, width], w [width, K], b [width] or
/// empty; `window` [K - 1, width] holds the inputs before x and moves on.
template <class Real>
std::vector<Real> causal_conv(const std::vector<Real>& x, const std::vector<Real>& w,
                              const std::vector<Real>& b, int width, bool silu,
                              std::vector<Real>& window);

/// y_b = W_b x_b + b_b for every block, x [T, blocks in], w [blocks, out, in], b [blocks out] or
/// empty
template <class Real>
std::vector<Real> headwise_linear(const std::vector<Real>& x, const std::vector<Real>& w,
                                  const std::vector<Real>& b, int blocks, int in, int out);

/// (x - mean) / sqrt(var + eps) (offset + w) + b over each head's share of a row of `width`; w and
/// b may be empty (factor 1, no sum)
template <class Real>
std::vector<Real> layer_norm(const std::vector<Real>& x, const std::vector<Real>& w,
                             const std::vector<Real>& b, int width, int heads,
                             std::type_identity_t<Real> eps, std::type_identity_t<Real> offset = 1);

/// (layer_norm(h) + skip c) silu(z)
template <class Real>
std::vector<Real> skip_gate(const std::vector<Real>& h, const std::vector<Real>& w,
                            const std::vector<Real>& skip, const std::vector<Real>& c,
                            const std::vector<Real>& z, int width, int heads,
                            std::type_identity_t<Real> eps);

/// act(gate) up, act by NX-AI's name: gelu, relu, relu^2, sigmoid, swish
template <class Real>
std::vector<Real> gated_activation(const std::vector<Real>& gate, const std::vector<Real>& up,
                                   const char* act);

/// The mLSTM cell's quadratic form from the empty state, A.4 (2): the first xLSTM's own. It differs
/// from the recurrent form by its stabiliser, which only the eps of the denominator shows.
template <class Real>
std::vector<Real> mlstm_parallel(const MlstmInputsOf<Real>& inputs);

/// State of an sLSTM cell, [D] each, zero at the beginning.
template <class Real>
struct SlstmStateOf {
  std::vector<Real> h, c, n, m;
  SlstmStateOf() = default;
  explicit SlstmStateOf(int width) : h(static_cast<std::size_t>(width)), c(h), n(h), m(h) {}
};
using SlstmState = SlstmStateOf<double>;

/// B.4: wx [T, 4 D] gate by gate (i, f, z, o), r [H, 4, DH, DH], b [4 D]. Returns h [T, D].
template <class Real>
std::vector<Real> slstm(const std::vector<Real>& wx, const std::vector<Real>& r,
                        const std::vector<Real>& b, int heads, int head_width,
                        SlstmStateOf<Real>& state);

}  // namespace oracle
