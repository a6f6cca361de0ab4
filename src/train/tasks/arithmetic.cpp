// Arithmetic modulo the number of symbols m: digit d is token 1 + d.

#include <numeric>

#include "train/tasks/writers.hpp"

namespace xlstm::train {
namespace {

// Token m + one of these.
enum Special : std::int64_t { kPlus = 1, kMinus, kTimes, kEquals, kOpen, kClose, kUnknown, kAct };

/// Expressions of the grammar e = d | -d | (d) | (-d) | (e+e) | (e-e) | (e*e), and how much their
/// value changes with each digit.
class Expression {
 public:
  Expression(std::int64_t modulus, std::int64_t length, Random& random)
      : m_(modulus), random_(random) {
    root_ = grow(length);
  }

  const std::vector<std::int64_t>& tokens() const noexcept { return tokens_; }
  std::int64_t value() const { return nodes_[root_].value; }

  /// Positions of the digits that no other digit could stand for with the same value.
  std::vector<std::size_t> determined_digits() {
    std::vector<std::size_t> found;
    nodes_[root_].slope = 1 % m_;
    // A node stands after its parts, so backwards the slopes come from above.
    for (std::size_t i = nodes_.size(); i-- > 0;) {
      const Node& node = nodes_[i];
      if (node.operation == 0) {
        if (std::gcd(node.slope, m_) == 1) found.push_back(node.at);
        continue;
      }
      Node &left = nodes_[node.left], &right = nodes_[node.right];
      const bool times = node.operation == kTimes;
      left.slope = node.slope * (times ? right.value : 1) % m_;
      right.slope = node.slope * (times ? left.value : node.operation == kMinus ? m_ - 1 : 1) % m_;
    }
    return found;
  }

 private:
  struct Node {
    std::int64_t value = 0;
    std::int64_t slope = 0;      // the expression is slope * value + what is elsewhere, modulo m
    std::int64_t operation = 0;  // 0: a digit
    std::size_t left = 0;
    std::size_t right = 0;
    std::size_t at = 0;  // the digit's token
  };

  void put(Special special) { tokens_.push_back(m_ + special); }

  std::size_t grow(std::int64_t length) {
    Node node;
    if (length < 5) {  // a sign makes an even length, brackets add two
      const bool negative = length % 2 == 0;
      if (length > 2) put(kOpen);
      if (negative) put(kMinus);
      const std::int64_t digit = random_.between(0, m_ - 1);
      node.at = tokens_.size();
      tokens_.push_back(1 + digit);
      node.value = negative ? (m_ - digit) % m_ : digit;
      if (length > 2) put(kClose);
    } else {
      const std::int64_t left_length = random_.between(1, length - 4);
      node.operation = random_.between(kPlus, kTimes);
      put(kOpen);
      node.left = grow(left_length);
      put(static_cast<Special>(node.operation));
      node.right = grow(length - 3 - left_length);
      put(kClose);
      const std::int64_t a = nodes_[node.left].value, b = nodes_[node.right].value;
      node.value = (node.operation == kPlus    ? a + b
                    : node.operation == kMinus ? a + m_ - b
                                               : a * b) %
                   m_;
    }
    nodes_.push_back(node);
    return nodes_.size() - 1;
  }

  std::int64_t m_;
  Random& random_;
  std::vector<std::int64_t> tokens_;
  std::vector<Node> nodes_;
  std::size_t root_ = 0;
};

}  // namespace

void write_modular_arithmetic(const RowShape& shape, Random& random, Row& row) {
  const std::int64_t m = shape.symbols;
  std::int64_t sum = 0;  // of the products that ended
  std::int64_t product = random.between(0, m - 1);
  row.read(1 + product);
  for (std::int64_t i = 1; i < shape.length; i += 2) {
    const std::int64_t operation = random.between(kPlus, kTimes);
    const std::int64_t digit = random.between(0, m - 1);
    row.read(m + operation);
    row.read(1 + digit);
    if (operation == kTimes) {
      product = product * digit % m;
    } else {
      sum = (sum + product) % m;
      product = operation == kPlus ? digit : (m - digit) % m;
    }
  }
  row.ask(m + kEquals, 1 + (sum + product) % m);
}

void write_bracket_arithmetic(const RowShape& shape, Random& random, Row& row) {
  const Expression expression(shape.symbols, shape.length, random);
  row.read(expression.tokens());
  row.ask(shape.symbols + kEquals, 1 + expression.value());
}

// x stands where its value follows from the equation; where no digit does (0 * 0), all is drawn
// anew.
void write_equation(const RowShape& shape, Random& random, Row& row) {
  const std::int64_t m = shape.symbols;
  for (;;) {
    Expression expression(m, shape.length - 2, random);
    const auto candidates = expression.determined_digits();
    if (candidates.empty()) continue;
    const std::size_t at = candidates[random.below(candidates.size())];
    auto equation = expression.tokens();
    const std::int64_t answer = equation[at];
    equation[at] = m + kUnknown;
    row.read(equation);
    row.read(m + kEquals);
    row.read(1 + expression.value());
    row.ask(m + kAct, answer);
    return;
  }
}

}  // namespace xlstm::train
