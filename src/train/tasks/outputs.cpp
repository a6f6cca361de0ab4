// Tasks whose answer is a string, asked for by a separator and fed back token by token.

#include <algorithm>

#include "train/tasks/writers.hpp"

namespace xlstm::train {
namespace {

// [ACT] is the token after the symbols.
void ask_after_act(const RowShape& shape, const std::vector<std::int64_t>& input,
                   const std::vector<std::int64_t>& output, Row& row) {
  row.read(input);
  row.ask_for(shape.symbols + 1, output);
}

}  // namespace

void write_bucket_sort(const RowShape& shape, Random& random, Row& row) {
  auto tokens = draw_symbols(random, shape.length, shape.symbols);
  row.read(tokens);
  std::sort(tokens.begin(), tokens.end());
  row.ask_for(kPad, tokens);  // the paper's vocabulary for this task has no [ACT]
}

void write_odds_first(const RowShape& shape, Random& random, Row& row) {
  const auto input = draw_symbols(random, shape.length, shape.symbols);
  std::vector<std::int64_t> output;
  for (const std::size_t first : {0U, 1U})
    for (std::size_t i = first; i < input.size(); i += 2) output.push_back(input[i]);
  ask_after_act(shape, input, output, row);
}

void write_reverse_string(const RowShape& shape, Random& random, Row& row) {
  const auto input = draw_symbols(random, shape.length, shape.symbols);
  ask_after_act(shape, input, {input.rbegin(), input.rend()}, row);
}

void write_repetition(const RowShape& shape, Random& random, Row& row) {
  const auto input = draw_symbols(random, shape.length, shape.symbols);
  ask_after_act(shape, input, input, row);
}

void write_set(const RowShape& shape, Random& random, Row& row) {
  const auto input = draw_symbols(random, shape.length, shape.symbols);
  std::vector<std::int64_t> output;
  std::vector<bool> seen(static_cast<std::size_t>(shape.symbols) + 1);
  for (const std::int64_t symbol : input) {
    if (!seen[static_cast<std::size_t>(symbol)]) output.push_back(symbol);
    seen[static_cast<std::size_t>(symbol)] = true;
  }
  ask_after_act(shape, input, output, row);
}

// With symbols s: 1 to s lie on the stack, s + k pushes k, then come pop and [ACT].
void write_stack_manipulation(const RowShape& shape, Random& random, Row& row) {
  const std::int64_t s = shape.symbols, pop = 2 * s + 1, act = 2 * s + 2;
  const std::int64_t filled = shape.length == 1 ? 1 : random.between(1, shape.length - 1);
  auto stack = draw_symbols(random, filled, s);
  row.read(stack);
  for (std::int64_t i = filled; i < shape.length; ++i) {
    const bool wants_pop = random.coin();
    const std::int64_t pushed = random.between(1, s);
    // An empty stack at the end would leave nothing to ask for: the last action then pushes.
    const bool must_push = i + 1 == shape.length && stack.size() < 2;
    if (wants_pop && !must_push) {
      if (!stack.empty()) stack.pop_back();
      row.read(pop);
    } else {
      stack.push_back(pushed);
      row.read(s + pushed);
    }
  }
  row.ask_for(act, stack);
}

}  // namespace xlstm::train
