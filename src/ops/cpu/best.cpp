#include "ops/best.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/threads.hpp"

namespace xlstm::ops::cpu {

void best_logits(Context& context, const BestLogitsArgs& a) {
  const auto count = static_cast<std::size_t>(a.values.dim(1));
  parallel_ranges(context.threads(), a.logits.dim(0), 1, [&](Range rows) {
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      const float* logits = a.logits.row<float>(r);
      const auto better = [logits](std::int32_t x, std::int32_t y) {
        const bool x_counts = std::isfinite(logits[x]), y_counts = std::isfinite(logits[y]);
        if (x_counts != y_counts) return y_counts;
        if (x_counts && logits[x] != logits[y]) return logits[x] > logits[y];
        return x < y;
      };
      // A heap of the best so far whose top is the worst of them.
      std::array<std::int32_t, kMostBest> best;  // NOLINT: filled as far as it is read
      const auto begin = best.begin();
      std::ptrdiff_t found = 0;
      for (std::int32_t id = 0; id < a.logits.dim(1); ++id) {
        if (found == static_cast<std::ptrdiff_t>(count)) {
          if (!better(id, best[0])) continue;
          std::pop_heap(begin, begin + found--, better);
        }
        begin[found++] = id;
        std::push_heap(begin, begin + found, better);
      }
      std::sort_heap(begin, begin + found, better);
      for (std::size_t i = 0; i < count; ++i) {
        a.values.row<float>(r)[i] = logits[best[i]];
        a.ids.row<std::int32_t>(r)[i] = best[i];
      }
    }
  });
}

}  // namespace xlstm::ops::cpu
