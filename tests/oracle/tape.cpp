#include "oracle/tape.hpp"

#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>

#include "oracle/ops.hpp"

namespace oracle {

thread_local Tape* Tape::current_ = nullptr;

Var Tape::push(double value, const Node& node) {
  if (nodes_.size() >= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    throw std::length_error("oracle: the tape is full");
  nodes_.push_back(node);
  return {value, static_cast<std::int32_t>(nodes_.size() - 1)};
}

std::vector<Var> Tape::variables(const std::vector<double>& values) {
  std::vector<Var> result;
  result.reserve(values.size());
  for (double value : values) result.push_back(push(value, {-1, -1, 0, 0}));
  return result;
}

Var Tape::record(double value, Var a, double by_a, Var b, double by_b) {
  if (a.node_ < 0 && b.node_ < 0) return value;
  return current_->push(value, {a.node_, b.node_, by_a, by_b});
}

std::vector<Var> Tape::record(const std::vector<double>& values, PassOn pass_on) {
  const std::size_t begin = current_->nodes_.size();
  std::vector<Var> results = current_->variables(values);
  current_->operations_.push_back({begin, current_->nodes_.size(), std::move(pass_on)});
  return results;
}

void Tape::run_backwards(Var result) {
  gradients_.assign(nodes_.size(), 0);
  add(result, 1);
  auto operation = operations_.rbegin();
  for (std::size_t i = nodes_.size(); i-- > 0;) {
    const Node& node = nodes_[i];
    const double gradient = gradients_[i];
    // Zeros go no further: an infinite derivative beside a branch not taken must not make a NaN.
    if (gradient != 0) {
      if (node.a >= 0) gradients_[static_cast<std::size_t>(node.a)] += gradient * node.by_a;
      if (node.b >= 0) gradients_[static_cast<std::size_t>(node.b)] += gradient * node.by_b;
    }
    // At the first of its results all of them have their gradients.
    if (operation != operations_.rend() && operation->begin == i) {
      const auto first = gradients_.begin() + static_cast<std::ptrdiff_t>(i);
      const auto count = static_cast<std::ptrdiff_t>(operation->end - operation->begin);
      operation->pass_on(*this, std::vector<double>(first, first + count));
      ++operation;
    }
  }
}

void Tape::add(Var x, double gradient) {
  if (x.node_ >= 0) gradients_[static_cast<std::size_t>(x.node_)] += gradient;
}

double Tape::gradient(Var x) const {
  return x.node_ < 0 ? 0 : gradients_.at(static_cast<std::size_t>(x.node_));
}

std::vector<double> Tape::gradient(const std::vector<Var>& x) const {
  std::vector<double> result;
  result.reserve(x.size());
  for (const Var& element : x) result.push_back(gradient(element));
  return result;
}

Var operator+(Var a, Var b) { return Tape::record(a.value() + b.value(), a, 1, b, 1); }
Var operator-(Var a, Var b) { return Tape::record(a.value() - b.value(), a, 1, b, -1); }
Var operator*(Var a, Var b) {
  return Tape::record(a.value() * b.value(), a, b.value(), b, a.value());
}
Var operator/(Var a, Var b) {
  const double quotient = a.value() / b.value();
  return Tape::record(quotient, a, 1 / b.value(), b, -quotient / b.value());
}
Var operator-(Var a) { return Tape::record(-a.value(), a, -1); }

Var abs(Var x) { return x.value() < 0 ? -x : x; }
Var exp(Var x) {
  const double value = std::exp(x.value());
  return Tape::record(value, x, value);
}
Var log(Var x) { return Tape::record(std::log(x.value()), x, 1 / x.value()); }
Var log1p(Var x) { return Tape::record(std::log1p(x.value()), x, 1 / (1 + x.value())); }
Var sqrt(Var x) {
  const double root = std::sqrt(x.value());
  return Tape::record(root, x, 1 / (2 * root));
}
Var tanh(Var x) {
  const double value = std::tanh(x.value());
  return Tape::record(value, x, 1 - value * value);
}
Var erfc(Var x) {
  const double density = 2 * std::numbers::inv_sqrtpi * std::exp(-x.value() * x.value());
  return Tape::record(std::erfc(x.value()), x, -density);
}

namespace {

std::vector<double> values_of(const std::vector<Var>& x) {
  std::vector<double> values;
  values.reserve(x.size());
  for (const Var& element : x) values.push_back(element.value());
  return values;
}

}  // namespace

std::vector<Var> linear(const std::vector<Var>& x, const std::vector<Var>& w,
                        const std::vector<Var>& b, int in, int out) {
  const Vector xs = values_of(x), ws = values_of(w);
  const auto pass_on = [=](Tape& tape, const Vector& d_y) {
    const std::size_t tokens = x.size() / in;
    Vector d_x(xs.size()), d_w(ws.size());
    for (std::size_t t = 0; t < tokens; ++t)
      for (int n = 0; n < out; ++n) {
        const double g = d_y[t * out + n];
        if (!b.empty()) tape.add(b[n], g);
        for (int k = 0; k < in; ++k) {
          const std::size_t weight = static_cast<std::size_t>(n) * in + k;
          d_x[t * in + k] += g * ws[weight];
          d_w[weight] += g * xs[t * in + k];
        }
      }
    for (std::size_t i = 0; i < x.size(); ++i) tape.add(x[i], d_x[i]);
    for (std::size_t i = 0; i < w.size(); ++i) tape.add(w[i], d_w[i]);
  };
  return Tape::record(linear(xs, ws, values_of(b), in, out), pass_on);
}

}  // namespace oracle
