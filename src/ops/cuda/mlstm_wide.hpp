#pragma once
// Copies in float32 of states whose C is bf16, for what reads and writes float32 alone.

#include <cstddef>
#include <cstdint>

#include "core/buffer.hpp"
#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda {

/// In scratch memory, for the sequences of more than one token of a call: an address for each
/// sequence of the batch, and behind them records of C, n and m.
struct MlstmWidePlan {
  explicit MlstmWidePlan(const MlstmArgs& a) {
    const std::int64_t heads = a.i.dim(1), dqk = a.q.dim(1) / heads, dv = a.v.dim(1) / heads;
    for (std::size_t s = 1; s < a.batch.offsets.size(); ++s)
      longs += a.batch.offsets[s] - a.batch.offsets[s - 1] != 1;
    const auto padded = [](std::int64_t bytes) { return aligned(static_cast<std::size_t>(bytes)); };
    records = padded(a.batch.sequences() * 8);
    n = padded(heads * dqk * dv * 4);
    m = n + padded(heads * dqk * 8);
    stride = m + padded(heads * 8);
  }
  std::size_t bytes() const {
    return longs == 0 ? 0 : records + static_cast<std::size_t>(longs) * stride;
  }

  std::int64_t longs = 0;    ///< sequences of more than one token
  std::size_t records = 0;   ///< bytes from the beginning of the scratch memory
  std::size_t n = 0, m = 0;  ///< in a record, which begins with C
  std::size_t stride = 0;    ///< from a record to the next
};

/// Sequences of more than one token, from and into states whose C is bf16, which is rounded at
/// random (random_rounding.hpp). @return whether the cell ran in one kernel
bool mlstm_of_wide_states(Context& context, const MlstmArgs& args);

}  // namespace xlstm::ops::cuda
