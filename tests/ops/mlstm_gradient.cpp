#include "ops/mlstm_gradient.hpp"

#include <cmath>

namespace xlstm::ops::test {
namespace {

/// One head; what a token leaves for the way back.
template <class Real>
struct Token {
  std::vector<Real> c, n, h;  ///< after the token
  Real m, forget, input, l, denominator;
  bool opened;  ///< m came from i
};

template <class Real>
class Head {
 public:
  Head(const oracle::MlstmInputsOf<Real>& in, int head, const CellKind& kind)
      : in_(in), head_(head), kind_(kind), scale_(1 / std::sqrt(Real(in.dqk))) {}

  Real q(int t, int a) const { return scale_ * in_.q[qk(t, a)]; }
  Real k(int t, int a) const { return in_.k[qk(t, a)]; }
  Real v(int t, int x) const { return in_.v[dv(t, x)]; }
  std::size_t qk(int t, int a) const {
    return static_cast<std::size_t>((t * in_.heads + head_) * in_.dqk + a);
  }
  std::size_t dv(int t, int x) const {
    return static_cast<std::size_t>((t * in_.heads + head_) * in_.dv + x);
  }
  std::size_t gate(int t) const { return static_cast<std::size_t>(t * in_.heads + head_); }
  std::size_t c(int a, int x) const { return static_cast<std::size_t>(a * in_.dv + x); }

  Token<Real> begin(const oracle::MlstmStateOf<Real>& state) const {
    const auto from = [&](const std::vector<Real>& all, int size) {
      const auto first = all.begin() + head_ * size;
      return std::vector<Real>(first, first + size);
    };
    Token<Real> token{};
    token.c = from(state.c, in_.dqk * in_.dv);
    token.n = from(state.n, in_.dqk);
    token.m = kind_.gate == MlstmGate::sigmoid ? Real(0) : state.m[std::size_t(head_)];
    return token;
  }

  Token<Real> step(const Token<Real>& before, int t) const {
    Token<Real> now{};
    const Real decayed = in_.log_f[gate(t)] + before.m, i = in_.i[gate(t)];
    now.opened = i > decayed;
    now.m = kind_.gate == MlstmGate::sigmoid ? Real(0) : now.opened ? i : decayed;
    now.forget = std::exp(decayed - now.m);
    now.input = std::exp(i - now.m);
    now.c.resize(before.c.size());
    now.h.resize(static_cast<std::size_t>(in_.dv));
    for (int a = 0; a < in_.dqk; ++a) {
      now.n.push_back(now.forget * before.n[std::size_t(a)] + now.input * k(t, a));
      now.l += now.n.back() * q(t, a);
      for (int x = 0; x < in_.dv; ++x) {
        now.c[c(a, x)] = now.forget * before.c[c(a, x)] + now.input * k(t, a) * v(t, x);
        now.h[std::size_t(x)] += now.c[c(a, x)] * q(t, a);
      }
    }
    const Real floor = std::exp(-now.m), size = std::abs(now.l);
    now.denominator = kind_.normalise ? (size > floor ? size : floor) + in_.eps : Real(1);
    for (Real& h : now.h) h /= now.denominator;
    return now;
  }

  void backward(const oracle::MlstmStateOf<Real>& initial, const std::vector<Real>& d_h,
                const oracle::MlstmStateOf<Real>& d_last, MlstmGradients<Real>& out) const {
    std::vector<Token<Real>> tokens{begin(initial)};
    for (int t = 0; t < in_.tokens(); ++t) tokens.push_back(step(tokens.back(), t));
    Token<Real> d = begin(d_last);
    const bool through_m = kind_.exact && kind_.gate == MlstmGate::exponential;
    if (!through_m) d.m = 0;
    if (!kind_.exact) d.n.assign(d.n.size(), Real(0));
    for (int t = in_.tokens() - 1; t >= 0; --t) {
      const Token<Real>& now = tokens[std::size_t(t) + 1];
      const Token<Real>& before = tokens[std::size_t(t)];
      // h = num / N
      std::vector<Real> d_num;
      Real d_denominator = 0, d_l = 0;
      for (int x = 0; x < in_.dv; ++x) {
        d_num.push_back(d_h[dv(t, x)] / now.denominator);
        d_denominator -= d_num.back() * now.h[std::size_t(x)];
      }
      if (kind_.normalise && kind_.exact) {
        const Real floor = std::exp(-now.m);
        if (std::abs(now.l) > floor)
          d_l = now.l < 0 ? -d_denominator : d_denominator;
        else if (through_m)
          d.m -= d_denominator * floor;
      }
      // num = C^T q, l = n q, and the sums of C and n
      Real d_forget = 0, d_input = 0;
      for (int a = 0; a < in_.dqk; ++a) {
        Real d_q = d_l * now.n[std::size_t(a)];
        Real& d_n = d.n[std::size_t(a)];
        d_n += d_l * q(t, a);
        Real d_k = now.input * d_n;
        d_forget += d_n * before.n[std::size_t(a)];
        d_input += d_n * k(t, a);
        d_n *= now.forget;
        for (int x = 0; x < in_.dv; ++x) {
          d_q += now.c[c(a, x)] * d_num[std::size_t(x)];
          Real& d_c = d.c[c(a, x)];
          d_c += d_num[std::size_t(x)] * q(t, a);
          d_k += now.input * d_c * v(t, x);
          out.v[dv(t, x)] += now.input * d_c * k(t, a);
          d_forget += d_c * before.c[c(a, x)];
          d_input += d_c * k(t, a) * v(t, x);
          d_c *= now.forget;
        }
        out.q[qk(t, a)] = scale_ * d_q;
        out.k[qk(t, a)] = d_k;
      }
      // F = e^(log f + m_before - m), I = e^(i - m), m = max(log f + m_before, i)
      const Real by_forget = d_forget * now.forget, by_input = d_input * now.input;
      out.i[gate(t)] = by_input;
      out.log_f[gate(t)] = by_forget;
      if (!through_m) continue;
      const Real d_m = d.m - by_forget - by_input;
      d.m = by_forget;
      if (now.opened) {
        out.i[gate(t)] += d_m;
      } else {
        out.log_f[gate(t)] += d_m;
        d.m += d_m;
      }
    }
    std::copy(d.c.begin(), d.c.end(), out.state.c.begin() + head_ * in_.dqk * in_.dv);
    if (kind_.exact) std::copy(d.n.begin(), d.n.end(), out.state.n.begin() + head_ * in_.dqk);
    if (through_m) out.state.m[std::size_t(head_)] = d.m;
  }

 private:
  const oracle::MlstmInputsOf<Real>& in_;
  int head_;
  CellKind kind_;
  Real scale_;
};

}  // namespace

template <class Real>
std::vector<Real> mlstm_cell(const oracle::MlstmInputsOf<Real>& in,
                             oracle::MlstmStateOf<Real>& state, const CellKind& kind) {
  std::vector<Real> h(in.v.size());
  for (int head = 0; head < in.heads; ++head) {
    const Head<Real> cell(in, head, kind);
    Token<Real> token = cell.begin(state);
    for (int t = 0; t < in.tokens(); ++t) {
      token = cell.step(token, t);
      for (int x = 0; x < in.dv; ++x) h[cell.dv(t, x)] = token.h[std::size_t(x)];
    }
    std::copy(token.c.begin(), token.c.end(), state.c.begin() + head * in.dqk * in.dv);
    std::copy(token.n.begin(), token.n.end(), state.n.begin() + head * in.dqk);
    state.m[std::size_t(head)] = token.m;
  }
  return h;
}

template <class Real>
MlstmGradients<Real> mlstm_gradients(const oracle::MlstmInputsOf<Real>& in,
                                     const oracle::MlstmStateOf<Real>& initial,
                                     const std::vector<Real>& d_h,
                                     const oracle::MlstmStateOf<Real>& d_last,
                                     const CellKind& kind) {
  MlstmGradients<Real> out;
  out.q.resize(in.q.size());
  out.k.resize(in.k.size());
  out.v.resize(in.v.size());
  out.i.resize(in.i.size());
  out.log_f.resize(in.log_f.size());
  out.state = oracle::MlstmStateOf<Real>(in.heads, in.dqk, in.dv);
  for (int head = 0; head < in.heads; ++head)
    Head<Real>(in, head, kind).backward(initial, d_h, d_last, out);
  return out;
}

#define XLSTM_INSTANTIATE(Real)                                                        \
  template std::vector<Real> mlstm_cell(const oracle::MlstmInputsOf<Real>&,            \
                                        oracle::MlstmStateOf<Real>&, const CellKind&); \
  template MlstmGradients<Real> mlstm_gradients(                                       \
      const oracle::MlstmInputsOf<Real>&, const oracle::MlstmStateOf<Real>&,           \
      const std::vector<Real>&, const oracle::MlstmStateOf<Real>&, const CellKind&);
XLSTM_INSTANTIATE(float)
XLSTM_INSTANTIATE(double)

}  // namespace xlstm::ops::test
