// Tasks about memory: what value a key had.

#include "train/tasks/writers.hpp"

namespace xlstm::train {
namespace {

/// Draws slots without putting them back, slot i of n with a weight of 1 / (i + 1). A binary
/// indexed tree of integer weights: a draw takes log n steps, and every machine draws the same.
class PowerLawSlots {
 public:
  explicit PowerLawSlots(std::int64_t slots) : tree_(static_cast<std::size_t>(slots) + 1) {
    for (std::size_t i = 1; i < tree_.size(); ++i) {
      tree_[i] += weight(i);
      total_ += weight(i);
      if (const std::size_t above = i + (i & (~i + 1)); above < tree_.size())
        tree_[above] += tree_[i];
    }
  }

  std::int64_t take(Random& random) {
    std::uint64_t left = random.below(total_);
    std::size_t slot = 0, step = 1;
    while (step * 2 < tree_.size()) step *= 2;
    for (; step > 0; step /= 2) {
      if (slot + step >= tree_.size() || tree_[slot + step] > left) continue;
      slot += step;
      left -= tree_[slot];
    }
    const std::uint64_t taken = weight(slot + 1);
    total_ -= taken;
    for (std::size_t i = slot + 1; i < tree_.size(); i += i & (~i + 1)) tree_[i] -= taken;
    return static_cast<std::int64_t>(slot);
  }

 private:
  static std::uint64_t weight(std::size_t i) { return (std::uint64_t{1} << 40) / i; }

  std::vector<std::uint64_t> tree_;
  std::uint64_t total_ = 0;
};

}  // namespace

// Keys are 1 to symbols - 1, values the `symbols` tokens after them. After the pairs, a query may
// stand at every second place, as in the code of Zoology.
void write_associative_recall(const RowShape& shape, Random& random, Row& row) {
  const auto keys = random.distinct(1, shape.symbols - 1, shape.pairs);
  const auto values = random.distinct(shape.symbols, 2 * shape.symbols - 1, shape.pairs);
  const std::int64_t slots = shape.length / 2 - shape.pairs;
  std::vector<std::size_t> asked(static_cast<std::size_t>(slots),
                                 keys.size());  // keys.size(): none
  PowerLawSlots weighted(slots);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    row.read(keys[i]);
    row.read(values[i]);
    asked[static_cast<std::size_t>(weighted.take(random))] = i;
  }
  for (const std::size_t i : asked) {
    if (i < keys.size())
      row.ask(keys[i], values[i]);
    else
      row.read(kPad);
    row.read(kPad);
  }
  if (shape.length % 2 != 0) row.read(kPad);
}

// Coordinates are 1 to symbols, values the `symbols` tokens after them.
void write_nearest_neighbor_search(const RowShape& shape, Random& random, Row& row) {
  const std::int64_t s = shape.symbols;
  const std::int64_t x0 = random.between(1, s);
  const std::int64_t y0 = random.between(1, s);
  row.read({x0, y0, kPad});
  std::int64_t least = 2 * s * s;  // more than any distance
  std::int64_t answer = -1;
  for (std::int64_t i = 0; i < shape.length; ++i) {
    const std::int64_t x = random.between(1, s);
    const std::int64_t y = random.between(1, s);
    const std::int64_t value = random.between(s + 1, 2 * s);
    const std::int64_t distance = (x - x0) * (x - x0) + (y - y0) * (y - y0);
    if (distance < least) {
      least = distance;
      answer = value;
    }
    row.read({x, y});
    row.ask(value, answer);
  }
}

}  // namespace xlstm::train
