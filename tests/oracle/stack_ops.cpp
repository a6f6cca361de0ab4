#include "oracle/stack_ops.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "oracle/tape.hpp"

namespace oracle {

// Of numbers; of a Var, tape.hpp's.
using std::abs, std::erfc, std::exp, std::sqrt, std::tanh;

template <class Real>
std::vector<Real> causal_conv(const std::vector<Real>& x, const std::vector<Real>& w,
                              const std::vector<Real>& b, int width, bool silu,
                              std::vector<Real>& window) {
  const std::size_t kernel = w.size() / width;
  std::vector<Real> inputs = window;  // [K - 1 + T, width]
  inputs.insert(inputs.end(), x.begin(), x.end());
  std::vector<Real> y(x.size());
  for (std::size_t t = 0; t < x.size() / width; ++t)
    for (int c = 0; c < width; ++c) {
      Real sum = b.empty() ? Real(0) : b[c];
      for (std::size_t r = 0; r < kernel; ++r)
        sum += w[c * kernel + r] * inputs[(t + r) * width + c];
      y[t * width + c] = silu ? sum * sigmoid(sum) : sum;
    }
  window.assign(inputs.end() - static_cast<std::ptrdiff_t>(window.size()), inputs.end());
  return y;
}

template <class Real>
std::vector<Real> headwise_linear(const std::vector<Real>& x, const std::vector<Real>& w,
                                  const std::vector<Real>& b, int blocks, int in, int out) {
  const std::size_t tokens = x.size() / (blocks * in);
  std::vector<Real> y(tokens * blocks * out);
  for (std::size_t t = 0; t < tokens; ++t)
    for (int block = 0; block < blocks; ++block)
      for (int o = 0; o < out; ++o) {
        Real sum = b.empty() ? Real(0) : b[block * out + o];
        for (int i = 0; i < in; ++i)
          sum += w[(static_cast<std::size_t>(block) * out + o) * in + i] *
                 x[(t * blocks + block) * in + i];
        y[(t * blocks + block) * out + o] = sum;
      }
  return y;
}

template <class Real>
std::vector<Real> layer_norm(const std::vector<Real>& x, const std::vector<Real>& w,
                             const std::vector<Real>& b, int width, int heads,
                             std::type_identity_t<Real> eps, std::type_identity_t<Real> offset) {
  const int share = width / heads;
  std::vector<Real> y(x.size());
  for (std::size_t begin = 0; begin < x.size(); begin += share) {
    Real mean = 0, variance = 0;
    for (int d = 0; d < share; ++d) mean += x[begin + d] / share;
    for (int d = 0; d < share; ++d)
      variance += (x[begin + d] - mean) * (x[begin + d] - mean) / share;
    for (int d = 0; d < share; ++d) {
      const std::size_t at = begin + d, feature = at % width;
      y[at] = (x[at] - mean) / sqrt(variance + eps);
      if (!w.empty()) y[at] *= offset + w[feature];
      if (!b.empty()) y[at] += b[feature];
    }
  }
  return y;
}

template <class Real>
std::vector<Real> skip_gate(const std::vector<Real>& h, const std::vector<Real>& w,
                            const std::vector<Real>& skip, const std::vector<Real>& c,
                            const std::vector<Real>& z, int width, int heads,
                            std::type_identity_t<Real> eps) {
  std::vector<Real> y = layer_norm<Real>(h, w, {}, width, heads, eps);
  for (std::size_t i = 0; i < y.size(); ++i)
    y[i] = (y[i] + skip[i % width] * c[i]) * z[i] * sigmoid(z[i]);
  return y;
}

template <class Real>
std::vector<Real> gated_activation(const std::vector<Real>& gate, const std::vector<Real>& up,
                                   const char* act) {
  const std::string name = act;
  const auto apply = [&](Real x) {
    if (name == "gelu") return x * erfc(-x * Real(0.70710678118654752440)) / 2;
    if (name == "relu") return std::max(x, Real(0));
    if (name == "relu^2") return std::max(x, Real(0)) * std::max(x, Real(0));
    if (name == "sigmoid") return sigmoid(x);
    if (name == "swish") return x * sigmoid(x);
    throw std::runtime_error("oracle: no activation " + name);
  };
  std::vector<Real> y(gate.size());
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = apply(gate[i]) * up[i];
  return y;
}

template <class Real>
std::vector<Real> slstm(const std::vector<Real>& wx, const std::vector<Real>& r,
                        const std::vector<Real>& b, int heads, int head_width,
                        SlstmStateOf<Real>& state) {
  const int width = heads * head_width;
  const std::size_t tokens = wx.size() / (4 * width);
  std::vector<Real> result;
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::vector<Real> before = state.h;
    for (int j = 0; j < width; ++j) {
      const int head = j / head_width, row = j % head_width;
      Real raw[4];
      for (int gate = 0; gate < 4; ++gate) {
        raw[gate] = wx[t * 4 * width + gate * width + j] + b[gate * width + j];
        for (int k = 0; k < head_width; ++k)
          raw[gate] +=
              r[((static_cast<std::size_t>(head) * 4 + gate) * head_width + row) * head_width + k] *
              before[head * head_width + k];
      }
      const Real lf = state.m[j] + log_sigmoid(raw[1]);
      const Real m = state.n[j] == 0 ? raw[0] : std::max(raw[0], lf);
      const Real i = std::min(exp(raw[0] - m), Real(1));
      const Real f = std::min(exp(lf - m), Real(1));
      state.c[j] = f * state.c[j] + i * tanh(raw[2]);
      state.n[j] = f * state.n[j] + i;
      state.m[j] = m;
      state.h[j] = sigmoid(raw[3]) * state.c[j] / state.n[j];
    }
    result.insert(result.end(), state.h.begin(), state.h.end());
  }
  return result;
}

template <class Real>
std::vector<Real> mlstm_parallel(const MlstmInputsOf<Real>& in) {
  const int heads = in.heads, tokens = in.tokens();
  const Real scale = 1 / sqrt(static_cast<Real>(in.dqk));
  const auto at = [heads](int t, int head) { return static_cast<std::size_t>(t) * heads + head; };
  std::vector<Real> h(static_cast<std::size_t>(tokens) * heads * in.dv);
  for (int head = 0; head < heads; ++head) {
    for (int t = 0; t < tokens; ++t) {
      std::vector<Real> d(static_cast<std::size_t>(t) +
                          1);  // D of A.4: sums of log f after j, plus i of j
      Real decay = 0, m = -INFINITY;
      for (int j = t; j >= 0; --j) {
        d[j] = decay + in.i[at(j, head)];
        decay += in.log_f[at(j, head)];
        m = std::max(m, d[j]);
      }
      Real sum = 0;
      Real* out = &h[at(t, head) * in.dv];
      for (int j = 0; j <= t; ++j) {
        Real weight = 0;
        for (int k = 0; k < in.dqk; ++k)
          weight += in.q[at(t, head) * in.dqk + k] * in.k[at(j, head) * in.dqk + k];
        weight *= scale * exp(d[j] - m);
        sum += weight;
        for (int x = 0; x < in.dv; ++x) out[x] += weight * in.v[at(j, head) * in.dv + x];
      }
      const Real norm = std::max(abs(sum), exp(-m)) + in.eps;
      for (int x = 0; x < in.dv; ++x) out[x] /= norm;
    }
  }
  return h;
}

#define ORACLE_INSTANTIATE(Real)                                                                   \
  template std::vector<Real> causal_conv(const std::vector<Real>&, const std::vector<Real>&,       \
                                         const std::vector<Real>&, int, bool, std::vector<Real>&); \
  template std::vector<Real> headwise_linear(const std::vector<Real>&, const std::vector<Real>&,   \
                                             const std::vector<Real>&, int, int, int);             \
  template std::vector<Real> layer_norm(const std::vector<Real>&, const std::vector<Real>&,        \
                                        const std::vector<Real>&, int, int, Real, Real);           \
  template std::vector<Real> skip_gate(const std::vector<Real>&, const std::vector<Real>&,         \
                                       const std::vector<Real>&, const std::vector<Real>&,         \
                                       const std::vector<Real>&, int, int, Real);                  \
  template std::vector<Real> gated_activation(const std::vector<Real>&, const std::vector<Real>&,  \
                                              const char*);                                        \
  template std::vector<Real> slstm(const std::vector<Real>&, const std::vector<Real>&,             \
                                   const std::vector<Real>&, int, int, SlstmStateOf<Real>&);       \
  template std::vector<Real> mlstm_parallel(const MlstmInputsOf<Real>&);
ORACLE_INSTANTIATE(double)
ORACLE_INSTANTIATE(float)
ORACLE_INSTANTIATE(Var)

}  // namespace oracle
