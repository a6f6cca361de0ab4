// Tasks with one answer to the whole input, asked for by [PAD].

#include <algorithm>

#include "train/tasks/writers.hpp"

namespace xlstm::train {

void write_parity(const RowShape& shape, Random& random, Row& row) {
  const auto input = draw_symbols(random, shape.length, 2);
  row.read(input);
  const auto odd = std::count(input.begin(), input.end(), 2) % 2;
  row.ask(kPad, 1 + odd);
}

void write_even_pairs(const RowShape& shape, Random& random, Row& row) {
  const auto input = draw_symbols(random, shape.length, 2);
  row.read(input);
  // Every ab or ba changes the letter, so their number is even when the ends are alike.
  row.ask(kPad, input.front() == input.back() ? 1 : 2);
}

void write_cycle_navigation(const RowShape& shape, Random& random, Row& row) {
  const std::int64_t n = shape.symbols;
  std::int64_t position = 0;
  for (std::int64_t i = 0; i < shape.length; ++i) {
    const std::int64_t move = random.between(1, 3);  // forwards, backwards, stay
    position = (position + (move == 1 ? 1 : move == 2 ? n - 1 : 0)) % n;
    row.read(n + move);
  }
  row.ask(kPad, 1 + position);
}

namespace {

/// How often each symbol occurs; the first element is unused.
std::vector<std::int64_t> count_symbols(const std::vector<std::int64_t>& input,
                                        std::int64_t symbols) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(symbols) + 1);
  for (const std::int64_t symbol : input) ++counts[static_cast<std::size_t>(symbol)];
  return counts;
}

}  // namespace

// Few tokens of many symbols are mostly a tie. One of the tied symbols, any of them, then takes the
// place of one token of another symbol: the answer is unique, and all answers stay as likely.
void write_majority(const RowShape& shape, Random& random, Row& row) {
  auto input = draw_symbols(random, shape.length, shape.symbols);
  const auto counts = count_symbols(input, shape.symbols);
  const std::int64_t most = *std::max_element(counts.begin(), counts.end());
  std::vector<std::int64_t> winners;
  for (std::size_t symbol = 1; symbol < counts.size(); ++symbol)
    if (counts[symbol] == most) winners.push_back(static_cast<std::int64_t>(symbol));
  const std::int64_t winner = winners[random.below(winners.size())];
  if (winners.size() > 1) {
    auto other = random.below(static_cast<std::uint64_t>(shape.length - most));
    for (std::int64_t& symbol : input) {
      if (symbol == winner || other-- != 0) continue;
      symbol = winner;
      break;
    }
  }
  row.read(input);
  row.ask(kPad, winner);
}

void write_majority_count(const RowShape& shape, Random& random, Row& row) {
  const auto input = draw_symbols(random, shape.length, shape.symbols);
  const auto counts = count_symbols(input, shape.symbols);
  row.read(input);
  row.ask(kPad, std::min(*std::max_element(counts.begin(), counts.end()), shape.symbols));
}

void write_missing_duplicate(const RowShape& shape, Random& random, Row& row) {
  const auto word = draw_symbols(random, shape.length / 2, shape.symbols);
  const auto missing = random.below(word.size());
  row.read(word);
  for (std::size_t i = 0; i < word.size(); ++i)
    row.read(i == missing ? shape.symbols + 1 : word[i]);
  row.ask(kPad, word[missing]);
}

}  // namespace xlstm::train
