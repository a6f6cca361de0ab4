#pragma once
// How an sLSTM call on the CPU is cut into tasks, and what scratch memory it takes.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/slstm.hpp"

namespace xlstm::ops::cpu {

/// Every number is computed the same way whoever computes it: row of h times column of R in rising
/// order, then the cell of that feature. So the plan may look at the batch and the threads.
///
/// A *row* is a sequence, longest first: those still running at a step are the first ones. A *unit*
/// is two vectors of features of one head, with its columns of R for all four gates.
/// Either each worker takes whole heads for a group of rows through all steps, or all workers share
/// the units and wait for each other after every step.
struct SlstmPlan {
  static constexpr std::int64_t kUnit = 32;      ///< features of a unit of the widest vectors
  static constexpr std::int64_t kRowBlock = 48;  ///< rows between a product and their cells
  static constexpr std::int64_t kTokenBlock = 256, kOutBlock = 128;  ///< of the product for d_R

  SlstmPlan(const Batch& batch, const Tensor& r, int threads)
      : rows(batch.sequences()), heads(r.dim(0)), dh(r.dim(2)), most_workers(threads) {
    for (std::size_t s = 1; s < batch.offsets.size(); ++s)
      steps = std::max<std::int64_t>(steps, batch.offsets[s] - batch.offsets[s - 1]);
    choose((batch.tokens() + steps - 1) / steps);
  }

  std::int64_t rows, heads, dh, most_workers;
  std::int64_t steps = 1;   ///< tokens of the longest sequence
  std::int64_t groups = 1;  ///< of rows, if workers take whole heads
  std::int64_t workers = 1;
  bool team = false;  ///< all workers share the units of a step

  std::int64_t padded_dh() const { return (dh + kUnit - 1) / kUnit * kUnit; }
  std::int64_t width() const { return heads * padded_dh(); }
  /// Of rows of numbers per feature, and of four per feature: an odd number of cache lines.
  std::int64_t stride() const { return width() + 16; }
  std::int64_t gate_stride() const { return 4 * width() + 16; }
  /// The columns of R of one head, or of one unit if each is used only once.
  std::int64_t packed_floats() const {
    const std::int64_t units = most_workers * kUnit;
    return 4 * dh * (steps == 1 ? units : std::max(units, width()));
  }
  static constexpr std::int64_t kPreFloats = kRowBlock * 4 * kUnit;
  std::int64_t order_floats() const { return (rows + 15) / 16 * 16; }

  std::size_t forward_bytes() const {
    return bytes(order_floats() + 4 * width() + 5 * rows * stride() + packed_floats() +
                 most_workers * kPreFloats);
  }
  std::int64_t out_floats() const { return kTokenBlock * (kOutBlock + 16); }
  std::int64_t product_floats() const { return kTokenBlock * (padded_dh() + 16) + out_floats(); }
  std::size_t backward_bytes() const {
    return bytes(order_floats() + rows * (2 * gate_stride() + 3 * stride()) +
                 std::max(4 * dh * width(), packed_floats()) +
                 most_workers * (kPreFloats + product_floats()));
  }

 private:
  static std::size_t bytes(std::int64_t floats) {
    return static_cast<std::size_t>(floats) * sizeof(float);
  }

  /// The plan with the least work on the critical path, in vector operations.
  void choose(std::int64_t busy_rows) {
    constexpr std::int64_t kStart = 15000, kMeet = 1500, kCell = 100, kPack = 8, kRead = 3;
    const auto step = [&](std::int64_t n, std::int64_t features) {
      const std::int64_t by_r = steps == 1 ? n + kPack : std::max(n, kRead);
      return features * (dh * by_r / 4 + n * kCell / 16);
    };
    std::int64_t best = steps * heads * step(busy_rows, padded_dh());
    const auto consider = [&](std::int64_t cost, std::int64_t n, std::int64_t g, bool shared) {
      if (cost >= best) return;
      best = cost;
      workers = n;
      groups = g;
      team = shared;
    };
    for (std::int64_t g = 1; g <= std::min(rows, most_workers); ++g) {
      const std::int64_t n = std::min(most_workers, heads * g);
      const std::int64_t rounds = (heads * g + n - 1) / n;
      if (n > 1)
        consider(kStart + steps * rounds * step((busy_rows + g - 1) / g, padded_dh()), n, g, false);
    }
    const std::int64_t units = width() / kUnit, n = std::min(most_workers, units);
    if (n > 1)
      consider(kStart + steps * (step(busy_rows, (units + n - 1) / n * kUnit) + kMeet), n, 1, true);
  }
};

}  // namespace xlstm::ops::cpu
