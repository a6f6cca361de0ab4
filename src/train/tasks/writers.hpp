#pragma once
// One function per task: each appends the tokens of one row. The token ids are those of
// docs/tasks.md: 0 is [PAD], then the symbols from 1, then what else the task has.

#include <cstdint>
#include <vector>

#include "train/tasks/random.hpp"

namespace xlstm::train {

constexpr std::int64_t kPad = 0;

/// What a row is made of.
struct RowShape {
  std::int64_t length;   ///< of the input, as TaskOptions::min_length counts it
  std::int64_t symbols;  ///< different answers
  std::int64_t pairs;    ///< of associative_recall
};

struct Row {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> targets;

  void read(std::int64_t token) { ask(token, -1); }
  void read(const std::vector<std::int64_t>& tokens) {
    for (const std::int64_t token : tokens) read(token);
  }
  /// A token after which `answer` is expected; -1: nothing is.
  void ask(std::int64_t token, std::int64_t answer) {
    ids.push_back(static_cast<std::int32_t>(token));
    targets.push_back(static_cast<std::int32_t>(answer));
  }
  /// Asks for `output`, at least one token, which is fed back: each token of it is asked of the one
  /// before, the first of `separator`.
  void ask_for(std::int64_t separator, const std::vector<std::int64_t>& output) {
    std::int64_t last = separator;
    for (const std::int64_t token : output) {
      ask(last, token);
      last = token;
    }
  }
};

using Writer = void(const RowShape&, Random&, Row&);

Writer write_parity, write_even_pairs, write_cycle_navigation, write_majority, write_majority_count,
    write_missing_duplicate;                                                // classes.cpp
Writer write_modular_arithmetic, write_bracket_arithmetic, write_equation;  // arithmetic.cpp
Writer write_bucket_sort, write_odds_first, write_reverse_string, write_repetition, write_set,
    write_stack_manipulation;                                    // outputs.cpp
Writer write_associative_recall, write_nearest_neighbor_search;  // recall.cpp

/// `n` symbols, each uniform in [1, symbols].
inline std::vector<std::int64_t> draw_symbols(Random& random, std::int64_t n,
                                              std::int64_t symbols) {
  std::vector<std::int64_t> drawn(static_cast<std::size_t>(n));
  for (std::int64_t& symbol : drawn) symbol = random.between(1, symbols);
  return drawn;
}

}  // namespace xlstm::train
