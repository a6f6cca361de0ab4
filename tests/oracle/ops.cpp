#include "oracle/ops.hpp"

#include <algorithm>
#include <cmath>

namespace oracle {

double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }
double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

Vector embed(std::span<const std::int32_t> ids, const Vector& table, int width) {
  Vector y;
  for (std::int32_t id : ids) {
    const auto row = table.begin() + static_cast<std::ptrdiff_t>(id) * width;
    y.insert(y.end(), row, row + width);
  }
  return y;
}

Vector linear(const Vector& x, const Vector& w, const Vector& b, int in, int out) {
  const std::size_t tokens = x.size() / in;
  Vector y(tokens * out);
  for (std::size_t t = 0; t < tokens; ++t)
    for (int n = 0; n < out; ++n) {
      double sum = b.empty() ? 0.0 : b[n];
      for (int k = 0; k < in; ++k) sum += x[t * in + k] * w[static_cast<std::size_t>(n) * in + k];
      y[t * out + n] = sum;
    }
  return y;
}

Vector rms_norm(const Vector& x, const Vector& w, const Vector& b, int width, double eps) {
  Vector y(x.size());
  for (std::size_t row = 0; row < x.size(); row += width) {
    double squares = 0;
    for (int d = 0; d < width; ++d) squares += x[row + d] * x[row + d];
    const double scale = 1.0 / std::sqrt(squares / width + eps);
    for (int d = 0; d < width; ++d)
      y[row + d] = x[row + d] * scale * (w.empty() ? 1.0 : w[d]) + (b.empty() ? 0.0 : b[d]);
  }
  return y;
}

Vector soft_cap(const Vector& x, double cap) {
  Vector y = x;
  if (cap != 0)
    for (double& value : y) value = cap * std::tanh(value / cap);
  return y;
}

Vector swiglu(const Vector& gate, const Vector& up) {
  Vector y(gate.size());
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
  return y;
}

Vector head_norm(const Vector& h, const Vector& o, const Vector& w, const Vector& b, int heads,
                 int head_width, double eps) {
  const int width = heads * head_width;
  Vector y(h.size());
  for (std::size_t begin = 0; begin < h.size(); begin += head_width) {
    double mean = 0, variance = 0;
    for (int d = 0; d < head_width; ++d) mean += h[begin + d] / head_width;
    for (int d = 0; d < head_width; ++d)
      variance += (h[begin + d] - mean) * (h[begin + d] - mean) / head_width;
    for (int d = 0; d < head_width; ++d) {
      const std::size_t at = begin + d, feature = at % width;
      const double normed = (h[at] - mean) / std::sqrt(variance + eps);
      y[at] = sigmoid(o[at]) * (normed * w[feature] + (b.empty() ? 0.0 : b[feature]));
    }
  }
  return y;
}

namespace {

/// Pointers to one head of one token.
struct Token {
  const double *q, *k, *v;
  double i, log_f;
};

Token token(const MlstmInputs& in, int t, int head) {
  const std::size_t at = static_cast<std::size_t>(t) * in.heads + head;
  return {&in.q[at * in.dqk], &in.k[at * in.dqk], &in.v[at * in.dv], in.i[at], in.log_f[at]};
}

double dot(const double* a, const double* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

Vector mlstm_recurrent(const MlstmInputs& in, MlstmState& state) {
  const double s = 1.0 / std::sqrt(in.dqk);
  Vector h(in.v.size());
  for (int head = 0; head < in.heads; ++head) {
    double* c = &state.c[static_cast<std::size_t>(head) * in.dqk * in.dv];
    double* n = &state.n[static_cast<std::size_t>(head) * in.dqk];
    double& m = state.m[head];
    for (int t = 0; t < in.tokens(); ++t) {
      const Token x = token(in, t, head);
      const double m_new = std::max(x.log_f + m, x.i);
      const double forget = std::exp(x.log_f + m - m_new), input = std::exp(x.i - m_new);
      m = m_new;
      for (int a = 0; a < in.dqk; ++a) {
        n[a] = forget * n[a] + input * x.k[a];
        for (int y = 0; y < in.dv; ++y)
          c[a * in.dv + y] = forget * c[a * in.dv + y] + input * x.k[a] * x.v[y];
      }
      const double l = s * dot(n, x.q, in.dqk);
      const double denominator = std::max(std::abs(l), std::exp(-m)) + in.eps;
      double* out = &h[(static_cast<std::size_t>(t) * in.heads + head) * in.dv];
      for (int y = 0; y < in.dv; ++y) {
        double numerator = 0;
        for (int a = 0; a < in.dqk; ++a) numerator += c[a * in.dv + y] * s * x.q[a];
        out[y] = numerator / denominator;
      }
    }
  }
  return h;
}

Vector mlstm_chunkwise(const MlstmInputs& in, MlstmState& state, int chunk) {
  const double s = 1.0 / std::sqrt(in.dqk);
  Vector h(in.v.size());
  for (int head = 0; head < in.heads; ++head) {
    double* c = &state.c[static_cast<std::size_t>(head) * in.dqk * in.dv];
    double* n = &state.n[static_cast<std::size_t>(head) * in.dqk];
    double& m = state.m[head];
    for (int t0 = 0; t0 < in.tokens(); t0 += chunk) {
      const int length = std::min(chunk, in.tokens() - t0);
      Vector b(length);  // inclusive sums of log f, from the chunk's beginning
      for (int t = 0; t < length; ++t)
        b[t] = (t > 0 ? b[t - 1] : 0.0) + token(in, t0 + t, head).log_f;

      for (int t = 0; t < length; ++t) {
        const Token x = token(in, t0 + t, head);
        double m_t = b[t] + m;
        for (int j = 0; j <= t; ++j) m_t = std::max(m_t, b[t] - b[j] + token(in, t0 + j, head).i);
        const double carried = s * std::exp(b[t] + m - m_t);
        Vector numerator(in.dv);
        for (int a = 0; a < in.dqk; ++a)
          for (int y = 0; y < in.dv; ++y) numerator[y] += carried * x.q[a] * c[a * in.dv + y];
        double l = carried * dot(n, x.q, in.dqk);
        for (int j = 0; j <= t; ++j) {
          const Token past = token(in, t0 + j, head);
          const double weight = s * dot(x.q, past.k, in.dqk) * std::exp(b[t] - b[j] + past.i - m_t);
          l += weight;
          for (int y = 0; y < in.dv; ++y) numerator[y] += weight * past.v[y];
        }
        double* out = &h[(static_cast<std::size_t>(t0 + t) * in.heads + head) * in.dv];
        for (int y = 0; y < in.dv; ++y)
          out[y] = numerator[y] / (std::max(std::abs(l), std::exp(-m_t)) + in.eps);
      }

      const double g = b[length - 1];
      double m_new = g + m;
      for (int j = 0; j < length; ++j)
        m_new = std::max(m_new, g - b[j] + token(in, t0 + j, head).i);
      const double decay = std::exp(g + m - m_new);
      for (int a = 0; a < in.dqk; ++a) n[a] *= decay;
      for (int a = 0; a < in.dqk * in.dv; ++a) c[a] *= decay;
      for (int j = 0; j < length; ++j) {
        const Token past = token(in, t0 + j, head);
        const double weight = std::exp(g - b[j] + past.i - m_new);
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
      const Token x = token(in, t, head);
      m = std::max(x.log_f + m, x.i);  // matters through eps only
      Vector numerator(in.dv);
      double l = 0, decay = 0;  // decay = sum of log f after token j
      for (int j = t; j >= 0; --j) {
        const Token past = token(in, j, head);
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

}  // namespace oracle
