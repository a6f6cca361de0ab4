#include "train/task_solvers.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>

namespace xlstm::test {

void expect_range(const Ids& ids, std::int32_t first, std::int32_t last) {
  for (const std::int32_t id : ids) {
    EXPECT_GE(id, first);
    EXPECT_LE(id, last);
  }
}

namespace {

int count_of(const Ids& ids, std::int32_t token) {
  return static_cast<int>(std::count(ids.begin(), ids.end(), token));
}

Ids parity(const Ids& in, int) {
  expect_range(in, 1, 2);
  bool odd = false;
  for (const std::int32_t id : in) odd ^= id == 2;
  return {odd ? 2 : 1};
}

Ids even_pairs(const Ids& in, int) {
  expect_range(in, 1, 2);
  int pairs = 0;
  for (std::size_t i = 1; i < in.size(); ++i) pairs += in[i] != in[i - 1] ? 1 : 0;
  return {pairs % 2 == 0 ? 1 : 2};
}

Ids cycle_navigation(const Ids& in, int s) {
  expect_range(in, s + 1, s + 3);
  const int there = count_of(in, s + 1) - count_of(in, s + 2);
  return {1 + ((there % s) + s) % s};
}

Ids majority(const Ids& in, int s) {
  expect_range(in, 1, s);
  Ids winners;
  for (int candidate = 1; candidate <= s; ++candidate) {
    bool beaten = false;
    for (int other = 1; other <= s; ++other)
      beaten |= other != candidate && count_of(in, other) >= count_of(in, candidate);
    if (!beaten) winners.push_back(candidate);
  }
  EXPECT_EQ(winners.size(), 1U);
  return winners;
}

Ids majority_count(const Ids& in, int s) {
  expect_range(in, 1, s);
  int most = 0;
  for (const std::int32_t id : in) most = std::max(most, count_of(in, id));
  return {most > s ? s : most};
}

Ids missing_duplicate(const Ids& in, int s) {
  EXPECT_EQ(in.size() % 2, 0U);
  const std::size_t half = in.size() / 2;
  EXPECT_EQ(count_of(in, s + 1), 1);
  if (count_of(in, s + 1) == 0) return {};
  const std::size_t at =
      static_cast<std::size_t>(std::find(in.begin(), in.end(), s + 1) - in.begin());
  EXPECT_GE(at, half);
  if (at < half) return {};
  Ids complete = in;
  complete[at] = in[at - half];
  expect_range(complete, 1, s);
  for (std::size_t i = 0; i < half; ++i) EXPECT_EQ(complete[i], complete[half + i]);
  return {complete[at]};
}

Ids bucket_sort(const Ids& in, int s) {
  expect_range(in, 1, s);
  Ids out;
  for (int symbol = 1; symbol <= s; ++symbol)
    for (int i = 0; i < count_of(in, symbol); ++i) out.push_back(symbol);
  return out;
}

Ids odds_first(const Ids& in, int s) {
  expect_range(in, 1, s);
  Ids odd, even;
  for (std::size_t i = 0; i < in.size(); ++i) (i % 2 == 0 ? odd : even).push_back(in[i]);
  odd.insert(odd.end(), even.begin(), even.end());
  return odd;
}

Ids reverse_string(const Ids& in, int s) {
  expect_range(in, 1, s);
  Ids out;
  for (const std::int32_t id : in) out.insert(out.begin(), id);
  return out;
}

Ids repetition(const Ids& in, int s) {
  expect_range(in, 1, s);
  return in;
}

Ids set_of(const Ids& in, int s) {
  expect_range(in, 1, s);
  Ids out;
  for (const std::int32_t id : in)
    if (count_of(out, id) == 0) out.push_back(id);
  return out;
}

Ids stack_manipulation(const Ids& in, int s) {
  Ids stack;
  bool filling = true;
  for (const std::int32_t id : in) {
    if (id <= s) {
      EXPECT_TRUE(filling) << "a bare symbol after an action";
      stack.push_back(id);
      continue;
    }
    filling = false;
    if (id <= 2 * s)
      stack.push_back(id - s);
    else if (!stack.empty())
      stack.pop_back();
  }
  EXPECT_LE(in.front(), s);
  EXPECT_FALSE(stack.empty());
  return stack;
}

// Arithmetic: usual precedence, on letters. Digits stand as 'A' + digit (s is at most 26 here).
std::string letters(const Ids& in, int s) {
  std::string text;
  for (const std::int32_t id : in)
    text += id <= s ? static_cast<char>('A' + id - 1) : std::string("+-*=()x")[id - s - 1];
  return text;
}

struct Parser {
  const std::string& text;
  int s;
  std::size_t at = 0;

  char peek() const { return at < text.size() ? text[at] : '\0'; }
  int factor() {
    const char c = peek();
    ++at;
    if (c == '-') return (s - factor()) % s;
    if (c == '(') {
      const int value = sum();
      EXPECT_EQ(peek(), ')') << text;
      ++at;
      return value;
    }
    EXPECT_TRUE(std::isupper(c)) << text << " at " << at;
    return c - 'A';
  }
  int product() {
    int value = factor();
    while (peek() == '*') {
      ++at;
      value = value * factor() % s;
    }
    return value;
  }
  int sum() {
    int value = product();
    while (peek() == '+' || peek() == '-') {
      const bool plus = peek() == '+';
      ++at;
      const int other = product();
      value = (value + (plus ? other : s - other)) % s;
    }
    return value;
  }
};

int evaluate(const std::string& text, int s) {
  Parser parser{text, s};
  const int value = parser.sum();
  EXPECT_EQ(parser.at, text.size()) << text;
  return value;
}

Ids modular_arithmetic(const Ids& in, int s) {
  const std::string text = letters(in, s);
  EXPECT_EQ(text.size() % 2, 1U);
  for (std::size_t i = 0; i < text.size(); ++i)
    EXPECT_EQ(std::isupper(text[i]) != 0, i % 2 == 0) << text;
  return {1 + evaluate(text, s)};
}

Ids brackets(const Ids& in, int s) { return {1 + evaluate(letters(in, s), s)}; }

Ids solve_equation(const Ids& in, int s) {
  const std::string text = letters(in, s);
  const std::size_t equals = text.find('='), x = text.find('x');
  EXPECT_EQ(equals, text.size() - 2) << text;
  EXPECT_LT(x, equals) << text;
  Ids solutions;
  for (int digit = 0; digit < s; ++digit) {
    std::string tried = text.substr(0, equals);
    tried[x] = static_cast<char>('A' + digit);
    if (evaluate(tried, s) == text.back() - 'A') solutions.push_back(1 + digit);
  }
  EXPECT_EQ(solutions.size(), 1U) << text;
  return solutions;
}

}  // namespace

const std::map<std::string, TaskForm>& task_forms() {
  static const std::map<std::string, TaskForm> forms = {
      {"parity", {parity, 0, 0, 3, 2, 1, false}},
      {"even_pairs", {even_pairs, 0, 0, 3, 2, 1, false}},
      {"cycle_navigation", {cycle_navigation, 0, 0, 9, 5, 1}},
      {"modular_arithmetic", {modular_arithmetic, 4, 1, 10, 5, 1}},
      {"modular_arithmetic_brackets", {brackets, 4, 1, 12, 5, 1}},
      {"solve_equation", {solve_equation, 8, 1, 14, 5, 3}},
      {"majority", {majority, 0, 0, 64, 63, 1}},
      {"majority_count", {majority_count, 0, 0, 64, 63, 1}},
      {"missing_duplicate", {missing_duplicate, 0, 0, 11, 9, 2}},
      {"bucket_sort", {bucket_sort, 0, 0, 11, 10, 1}},
      {"odds_first", {odds_first, 1, 1, 12, 10, 1}},
      {"reverse_string", {reverse_string, 1, 1, 12, 10, 1}},
      {"repetition", {repetition, 1, 1, 12, 10, 1}},
      {"set", {set_of, 1, 1, 128, 126, 1}},
      {"stack_manipulation", {stack_manipulation, 2, 2, 11, 4, 1}},
  };
  return forms;
}

}  // namespace xlstm::test
