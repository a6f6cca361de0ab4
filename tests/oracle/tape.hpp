#pragma once
// Reverse-mode differentiation of the oracle's own equations: with `Var` for the number, whatever a
// template of ops.hpp computes is written to a tape, and running the tape backwards gives the
// gradient. No backward formula is written by hand (but that of y = x W^T + b), so the gradients
// share nothing with the engine's.

#include <cstdint>
#include <functional>
#include <vector>

namespace oracle {

/// A number, and where the tape has it; a plain number is a constant and is not on the tape.
class Var {
 public:
  Var(double value = 0) : value_(value) {}  // implicit: equations mix numbers and variables
  double value() const { return value_; }

 private:
  friend class Tape;
  Var(double value, std::int32_t node) : value_(value), node_(node) {}
  double value_;
  std::int32_t node_ = -1;
};

/// What is computed while it exists, on this thread, from its variables. The innermost one counts.
class Tape {
 public:
  Tape() : outer_(current_) { current_ = this; }
  ~Tape() { current_ = outer_; }
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// Numbers to differentiate by.
  std::vector<Var> variables(const std::vector<double>& values);
  /// Computes the gradient of `result` by everything on the tape, after which gradient() says it.
  void run_backwards(Var result);
  double gradient(Var x) const;
  std::vector<double> gradient(const std::vector<Var>& x) const;

  // For operations: the number `value` with its partial derivatives by one or two others.
  static Var record(double value, Var a, double by_a, Var b = 0, double by_b = 0);
  /// For operations on whole vectors: these values as results of `pass_on`, which takes the
  /// gradients of the results and adds to those of the inputs.
  using PassOn = std::function<void(Tape&, const std::vector<double>& gradients)>;
  static std::vector<Var> record(const std::vector<double>& values, PassOn pass_on);
  void add(Var x, double gradient);

 private:
  struct Node {
    std::int32_t a, b;  ///< -1: none
    double by_a, by_b;
  };
  struct VectorOperation {
    std::size_t begin, end;  ///< nodes of its results
    PassOn pass_on;
  };
  Var push(double value, const Node& node);

  static thread_local Tape* current_;
  Tape* outer_;
  std::vector<Node> nodes_;
  std::vector<VectorOperation> operations_;
  std::vector<double> gradients_;
};

Var operator+(Var a, Var b);
Var operator-(Var a, Var b);
Var operator*(Var a, Var b);
Var operator/(Var a, Var b);
Var operator-(Var a);
inline Var& operator+=(Var& a, Var b) { return a = a + b; }
inline Var& operator-=(Var& a, Var b) { return a = a - b; }
inline Var& operator*=(Var& a, Var b) { return a = a * b; }
inline Var& operator/=(Var& a, Var b) { return a = a / b; }

// With these, std::max and std::min pass the gradient to the one that they choose.
inline bool operator<(Var a, Var b) { return a.value() < b.value(); }
inline bool operator==(Var a, Var b) { return a.value() == b.value(); }
inline bool operator!=(Var a, Var b) { return a.value() != b.value(); }

Var abs(Var x);
Var exp(Var x);
Var log(Var x);
Var log1p(Var x);
Var sqrt(Var x);
Var tanh(Var x);
Var erfc(Var x);

/// linear() of ops.hpp as one operation on the tape: linear layers are nearly all of a model's
/// multiplications, and a node for each would take gigabytes.
std::vector<Var> linear(const std::vector<Var>& x, const std::vector<Var>& w,
                        const std::vector<Var>& b, int in, int out);

}  // namespace oracle
