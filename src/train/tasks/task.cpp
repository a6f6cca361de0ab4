#include "train/tasks/task.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include "core/check.hpp"
#include "train/tasks/writers.hpp"

namespace xlstm::train {
namespace {

constexpr std::int64_t kMaxLength = 1 << 20;
constexpr std::int64_t kMaxSymbols = 1 << 16;

/// Lengths of inputs that a task knows.
enum class Lengths { any, odd, even, longest_only };

struct Kind {
  std::string_view name;
  std::string_view description;
  Writer* write;
  std::int64_t shortest;  // input
  Lengths lengths;
  std::int64_t symbols;  // the default
  std::int64_t min_symbols;
  std::int64_t max_symbols;
  std::int64_t tokens_per_symbol;  // vocabulary = tokens_per_symbol * symbols + specials
  std::int64_t specials;
};

constexpr std::array kKinds = {
    Kind{"parity", "is the number of b even?", write_parity, 1, Lengths::any, 2, 2, 2, 1, 1},
    Kind{"even_pairs", "is the number of ab and ba even?", write_even_pairs, 1, Lengths::any, 2, 2,
         2, 1, 1},
    Kind{"cycle_navigation", "where on a ring do steps forwards, backwards and none lead?",
         write_cycle_navigation, 1, Lengths::any, 5, 2, kMaxSymbols, 1, 4},
    Kind{"modular_arithmetic", "the value of sums and products modulo the number of digits",
         write_modular_arithmetic, 1, Lengths::odd, 5, 2, kMaxSymbols, 1, 5},
    Kind{"modular_arithmetic_brackets", "the value of nested brackets modulo the number of digits",
         write_bracket_arithmetic, 1, Lengths::any, 5, 2, kMaxSymbols, 1, 7},
    Kind{"solve_equation", "the x that makes an equation of nested brackets true", write_equation,
         3, Lengths::any, 5, 2, kMaxSymbols, 1, 9},
    Kind{"majority", "the most frequent token", write_majority, 1, Lengths::any, 63, 2, kMaxSymbols,
         1, 1},
    Kind{"majority_count", "how often the most frequent token occurs", write_majority_count, 1,
         Lengths::any, 63, 2, kMaxSymbols, 1, 1},
    Kind{"missing_duplicate", "the token that the second of two equal strings lacks",
         write_missing_duplicate, 2, Lengths::even, 9, 2, kMaxSymbols, 1, 2},
    Kind{"bucket_sort", "the input, sorted", write_bucket_sort, 1, Lengths::any, 10, 2, kMaxSymbols,
         1, 1},
    Kind{"odds_first", "the input's tokens 1, 3, 5, ..., then 2, 4, 6, ...", write_odds_first, 1,
         Lengths::any, 10, 2, kMaxSymbols, 1, 2},
    Kind{"reverse_string", "the input, backwards", write_reverse_string, 1, Lengths::any, 10, 2,
         kMaxSymbols, 1, 2},
    Kind{"repetition", "the input, again", write_repetition, 1, Lengths::any, 10, 2, kMaxSymbols, 1,
         2},
    Kind{"set", "the input without what already occurred", write_set, 1, Lengths::any, 126, 2,
         kMaxSymbols, 1, 2},
    Kind{"stack_manipulation", "what pushes and pops leave on a stack, from the bottom",
         write_stack_manipulation, 1, Lengths::any, 4, 2, kMaxSymbols, 2, 3},
    Kind{"associative_recall", "the values of keys that come again after all pairs",
         write_associative_recall, 4, Lengths::longest_only, 4096, 2, kMaxSymbols, 2, 0},
    Kind{"nearest_neighbor_search", "the value of the vector nearest to the first, so far",
         write_nearest_neighbor_search, 1, Lengths::any, 32, 2, kMaxSymbols, 2, 1},
};

const Kind& find_kind(const std::string& name) {
  for (const Kind& kind : kKinds)
    if (kind.name == name) return kind;
  fail(ErrorCode::invalid_argument, "task.name: expected one of {}, found '{}'",
       fmt::join(task_names(), ", "), name);
}

class Task : public DataSource {
 public:
  explicit Task(const TaskOptions& options) : kind_(find_kind(options.name)), options_(options) {
    if (options_.symbols == 0) options_.symbols = kind_.symbols;
    check_symbols();
    check_lengths();
    if (kind_.write == write_associative_recall) check_pairs();
    XLSTM_CHECK(options_.curriculum_steps >= 0, invalid_argument,
                "task.curriculum_steps: expected 0 or more, found {}", options_.curriculum_steps);
    XLSTM_CHECK(options_.count >= 0, invalid_argument, "task.count: expected 0 or more, found {}",
                options_.count);
  }

  void rows(std::int64_t step, std::int64_t begin, std::int64_t end, Examples& out) const override {
    Row row;
    std::int64_t more_lengths = more_lengths_;
    if (step < options_.curriculum_steps)
      more_lengths = more_lengths_ * step / options_.curriculum_steps;
    for (std::int64_t i = begin; i < end; ++i) {
      Random random(options_.seed, step, i);
      const std::int64_t length = first_length_ + stride_ * random.between(0, more_lengths);
      row.ids.clear();
      row.targets.clear();
      kind_.write({length, options_.symbols, options_.pairs}, random, row);
      out.add(row.ids, row.targets);
    }
  }

  std::int64_t vocabulary() const override {
    return kind_.tokens_per_symbol * options_.symbols + kind_.specials;
  }
  std::int64_t count() const override { return options_.count; }
  double chance() const override { return 1.0 / static_cast<double>(options_.symbols); }
  std::string identity() const override {
    return fmt::format(
        "task {}: min_length {}, max_length {}, curriculum_steps {}, symbols {}, pairs {}, seed "
        "{}, "
        "count {}",
        kind_.name, options_.min_length, options_.max_length, options_.curriculum_steps,
        options_.symbols, options_.pairs, options_.seed, options_.count);
  }

 private:
  void check_symbols() const {
    XLSTM_CHECK(options_.symbols >= kind_.min_symbols && options_.symbols <= kind_.max_symbols,
                invalid_argument, "task.symbols: expected {} to {} for {}, found {}",
                kind_.min_symbols, kind_.max_symbols, kind_.name, options_.symbols);
  }

  void check_lengths() {
    const bool longest_only = kind_.lengths == Lengths::longest_only;
    const std::int64_t shortest = longest_only ? 1 : kind_.shortest;
    XLSTM_CHECK(options_.min_length >= shortest && options_.min_length <= kMaxLength,
                invalid_argument, "task.min_length: expected {} to {} for {}, found {}", shortest,
                kMaxLength, kind_.name, options_.min_length);
    const std::int64_t least = std::max(options_.min_length, kind_.shortest);
    XLSTM_CHECK(options_.max_length >= least && options_.max_length <= kMaxLength, invalid_argument,
                "task.max_length: expected {} to {} for {} with this task.min_length, found {}",
                least, kMaxLength, kind_.name, options_.max_length);
    first_length_ = longest_only ? options_.max_length : options_.min_length;
    if (kind_.lengths == Lengths::odd || kind_.lengths == Lengths::even) {
      const bool odd = kind_.lengths == Lengths::odd;
      stride_ = 2;
      if ((first_length_ % 2 != 0) != odd) ++first_length_;
      XLSTM_CHECK(first_length_ <= options_.max_length, invalid_argument,
                  "task.max_length: expected an {} length from task.min_length = {} on for {}, "
                  "found {}",
                  odd ? "odd" : "even", options_.min_length, kind_.name, options_.max_length);
    }
    more_lengths_ = (options_.max_length - first_length_) / stride_;
  }

  // Each pair takes two tokens, and its query two places.
  void check_pairs() const {
    const std::int64_t most = std::min(options_.max_length / 4, options_.symbols - 1);
    XLSTM_CHECK(options_.pairs >= 1 && options_.pairs <= most, invalid_argument,
                "task.pairs: expected 1 to {} with a task.max_length of {} and {} task.symbols, "
                "found {}",
                most, options_.max_length, options_.symbols, options_.pairs);
  }

  const Kind& kind_;
  TaskOptions options_;
  std::int64_t first_length_ = 0;
  std::int64_t stride_ = 1;
  std::int64_t more_lengths_ = 0;  // after the first, `stride_` apart
};

}  // namespace

std::unique_ptr<DataSource> make_task(const TaskOptions& options) {
  return std::make_unique<Task>(options);
}

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) names.emplace_back(kind.name);
  return names;
}

std::string describe_task(const std::string& name) {
  return std::string(find_kind(name).description);
}

}  // namespace xlstm::train
