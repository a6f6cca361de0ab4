#include "oracle/ops.hpp"

#include <algorithm>
#include <cmath>

#include "oracle/tape.hpp"

namespace oracle {

// Of numbers; of a Var, tape.hpp's.
using std::abs, std::exp, std::log1p, std::sqrt, std::tanh;

template <class Real>
Real log_sigmoid(Real x) {
  return x < Real(0) ? x - log1p(exp(x)) : -log1p(exp(-x));
}

template <class Real>
Real sigmoid(Real x) {
  return 1 / (1 + exp(-x));
}

template <class Real>
std::vector<Real> embed(std::span<const std::int32_t> ids, const std::vector<Real>& table,
                        int width) {
  std::vector<Real> y;
  for (std::int32_t id : ids) {
    const auto row = table.begin() + static_cast<std::ptrdiff_t>(id) * width;
    y.insert(y.end(), row, row + width);
  }
  return y;
}

template <class Real>
std::vector<Real> linear(const std::vector<Real>& x, const std::vector<Real>& w,
                         const std::vector<Real>& b, int in, int out) {
  const std::size_t tokens = x.size() / in;
  std::vector<Real> y(tokens * out);
  for (std::size_t t = 0; t < tokens; ++t)
    for (int n = 0; n < out; ++n) {
      Real sum = b.empty() ? Real(0) : b[n];
      for (int k = 0; k < in; ++k) sum += x[t * in + k] * w[static_cast<std::size_t>(n) * in + k];
      y[t * out + n] = sum;
    }
  return y;
}

template <class Real>
std::vector<Real> rms_norm(const std::vector<Real>& x, const std::vector<Real>& w,
                           const std::vector<Real>& b, int width, std::type_identity_t<Real> eps) {
  std::vector<Real> y(x.size());
  for (std::size_t row = 0; row < x.size(); row += width) {
    Real squares = 0;
    for (int d = 0; d < width; ++d) squares += x[row + d] * x[row + d];
    const Real scale = 1 / sqrt(squares / width + eps);
    for (int d = 0; d < width; ++d)
      y[row + d] = x[row + d] * scale * (w.empty() ? Real(1) : w[d]) + (b.empty() ? Real(0) : b[d]);
  }
  return y;
}

template <class Real>
std::vector<Real> soft_cap(const std::vector<Real>& x, std::type_identity_t<Real> cap) {
  std::vector<Real> y = x;
  if (cap != 0)
    for (Real& value : y) value = cap * tanh(value / cap);
  return y;
}

template <class Real>
std::vector<Real> swiglu(const std::vector<Real>& gate, const std::vector<Real>& up) {
  std::vector<Real> y(gate.size());
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
  return y;
}

template <class Real>
std::vector<Real> head_norm(const std::vector<Real>& h, const std::vector<Real>& o,
                            const std::vector<Real>& w, const std::vector<Real>& b, int heads,
                            int head_width, std::type_identity_t<Real> eps) {
  const int width = heads * head_width;
  std::vector<Real> y(h.size());
  for (std::size_t begin = 0; begin < h.size(); begin += head_width) {
    Real mean = 0, variance = 0;
    for (int d = 0; d < head_width; ++d) mean += h[begin + d] / head_width;
    for (int d = 0; d < head_width; ++d)
      variance += (h[begin + d] - mean) * (h[begin + d] - mean) / head_width;
    for (int d = 0; d < head_width; ++d) {
      const std::size_t at = begin + d, feature = at % width;
      const Real normed = (h[at] - mean) / sqrt(variance + eps);
      y[at] = sigmoid(o[at]) * (normed * w[feature] + (b.empty() ? Real(0) : b[feature]));
    }
  }
  return y;
}

namespace {

/// Pointers to one head of one token.
template <class Real>
struct Token {
  const Real *q, *k, *v;
  Real i, log_f;
};

template <class Real>
Token<Real> token(const MlstmInputsOf<Real>& in, int t, int head) {
  const std::size_t at = static_cast<std::size_t>(t) * in.heads + head;
  return {&in.q[at * in.dqk], &in.k[at * in.dqk], &in.v[at * in.dv], in.i[at], in.log_f[at]};
}

template <class Real>
Real dot(const Real* a, const Real* b, int count) {
  Real sum = 0;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

template <class Real>
std::vector<Real> mlstm_recurrent(const MlstmInputsOf<Real>& in, MlstmStateOf<Real>& state) {
  const Real s = 1 / sqrt(static_cast<Real>(in.dqk));
  std::vector<Real> h(in.v.size());
  for (int head = 0; head < in.heads; ++head) {
    Real* c = &state.c[static_cast<std::size_t>(head) * in.dqk * in.dv];
    Real* n = &state.n[static_cast<std::size_t>(head) * in.dqk];
    Real& m = state.m[head];
    for (int t = 0; t < in.tokens(); ++t) {
      const auto x = token(in, t, head);
      const Real m_new = in.sigmoid ? Real(0) : std::max(x.log_f + m, x.i);
      const Real forget = exp(x.log_f + m - m_new), input = exp(x.i - m_new);
      m = m_new;
      for (int a = 0; a < in.dqk; ++a) {
        n[a] = forget * n[a] + input * x.k[a];
        for (int y = 0; y < in.dv; ++y)
          c[a * in.dv + y] = forget * c[a * in.dv + y] + input * x.k[a] * x.v[y];
      }
      const Real l = s * dot(n, x.q, in.dqk);
      const Real denominator = in.normalise ? std::max(abs(l), exp(-m)) + in.eps : Real(1);
      Real* out = &h[(static_cast<std::size_t>(t) * in.heads + head) * in.dv];
      for (int y = 0; y < in.dv; ++y) {
        Real numerator = 0;
        for (int a = 0; a < in.dqk; ++a) numerator += c[a * in.dv + y] * s * x.q[a];
        out[y] = numerator / denominator;
      }
    }
  }
  return h;
}

template <class Real>
std::vector<Real> mlstm_chunkwise(const MlstmInputsOf<Real>& in, MlstmStateOf<Real>& state,
                                  int chunk) {
  const Real s = 1 / sqrt(static_cast<Real>(in.dqk));
  std::vector<Real> h(in.v.size());
  for (int head = 0; head < in.heads; ++head) {
    Real* c = &state.c[static_cast<std::size_t>(head) * in.dqk * in.dv];
    Real* n = &state.n[static_cast<std::size_t>(head) * in.dqk];
    Real& m = state.m[head];
    for (int t0 = 0; t0 < in.tokens(); t0 += chunk) {
      const int length = std::min(chunk, in.tokens() - t0);
      std::vector<Real> b(length);  // inclusive sums of log f, from the chunk's beginning
      for (int t = 0; t < length; ++t)
        b[t] = (t > 0 ? b[t - 1] : Real(0)) + token(in, t0 + t, head).log_f;

      for (int t = 0; t < length; ++t) {
        const auto x = token(in, t0 + t, head);
        Real m_t = b[t] + m;
        for (int j = 0; j <= t; ++j) m_t = std::max(m_t, b[t] - b[j] + token(in, t0 + j, head).i);
        const Real carried = s * exp(b[t] + m - m_t);
        std::vector<Real> numerator(in.dv);
        for (int a = 0; a < in.dqk; ++a)
          for (int y = 0; y < in.dv; ++y) numerator[y] += carried * x.q[a] * c[a * in.dv + y];
        Real l = carried * dot(n, x.q, in.dqk);
        for (int j = 0; j <= t; ++j) {
          const auto past = token(in, t0 + j, head);
          const Real weight = s * dot(x.q, past.k, in.dqk) * exp(b[t] - b[j] + past.i - m_t);
          l += weight;
          for (int y = 0; y < in.dv; ++y) numerator[y] += weight * past.v[y];
        }
        Real* out = &h[(static_cast<std::size_t>(t0 + t) * in.heads + head) * in.dv];
        for (int y = 0; y < in.dv; ++y)
          out[y] = numerator[y] / (std::max(abs(l), exp(-m_t)) + in.eps);
      }

      const Real g = b[length - 1];
      Real m_new = g + m;
      for (int j = 0; j < length; ++j)
        m_new = std::max(m_new, g - b[j] + token(in, t0 + j, head).i);
      const Real decay = exp(g + m - m_new);
      for (int a = 0; a < in.dqk; ++a) n[a] *= decay;
      for (int a = 0; a < in.dqk * in.dv; ++a) c[a] *= decay;
      for (int j = 0; j < length; ++j) {
        const auto past = token(in, t0 + j, head);
        const Real weight = exp(g - b[j] + past.i - m_new);
        for (int a = 0; a < in.dqk; ++a) {
          n[a] += weight * past.k[a];
          for (int y = 0; y < in.dv; ++y) c[a * in.dv + y] += weight * past.k[a] * past.v[y];
        }
      }
      m = m_new;
    }
  }
  return h;
}

Vector mlstm_unstabilised(const MlstmInputs& in) {
  const double s = 1.0 / std::sqrt(in.dqk);
  Vector h(in.v.size());
  for (int head = 0; head < in.heads; ++head) {
    double m = 0;
    for (int t = 0; t < in.tokens(); ++t) {
      const auto x = token(in, t, head);
      m = std::max(x.log_f + m, x.i);  // matters through eps only
      Vector numerator(in.dv);
      double l = 0, decay = 0;  // decay = sum of log f after token j
      for (int j = t; j >= 0; --j) {
        const auto past = token(in, j, head);
        const double weight = std::exp(past.i + decay) * s * dot(x.q, past.k, in.dqk);
        decay += past.log_f;
        l += weight;
        for (int y = 0; y < in.dv; ++y) numerator[y] += weight * past.v[y];
      }
      double* out = &h[(static_cast<std::size_t>(t) * in.heads + head) * in.dv];
      for (int y = 0; y < in.dv; ++y)
        out[y] = numerator[y] / (std::max(std::abs(l), 1.0) + in.eps * std::exp(m));
    }
  }
  return h;
}

#define INSTANTIATE(Real)                                                                         \
  template Real log_sigmoid(Real);                                                                \
  template Real sigmoid(Real);                                                                    \
  template std::vector<Real> embed(std::span<const std::int32_t>, const std::vector<Real>&, int); \
  template std::vector<Real> linear(const std::vector<Real>&, const std::vector<Real>&,           \
                                    const std::vector<Real>&, int, int);                          \
  template std::vector<Real> rms_norm(const std::vector<Real>&, const std::vector<Real>&,         \
                                      const std::vector<Real>&, int, Real);                       \
  template std::vector<Real> soft_cap(const std::vector<Real>&, Real);                            \
  template std::vector<Real> swiglu(const std::vector<Real>&, const std::vector<Real>&);          \
  template std::vector<Real> head_norm(const std::vector<Real>&, const std::vector<Real>&,        \
                                       const std::vector<Real>&, const std::vector<Real>&, int,   \
                                       int, Real);                                                \
  template std::vector<Real> mlstm_recurrent(const MlstmInputsOf<Real>&, MlstmStateOf<Real>&);    \
  template std::vector<Real> mlstm_chunkwise(const MlstmInputsOf<Real>&, MlstmStateOf<Real>&, int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Var)
#undef INSTANTIATE

}  // namespace oracle
