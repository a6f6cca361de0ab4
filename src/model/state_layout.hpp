#pragma once
// Where the states of all blocks lie in one record.

#include <cstddef>

#include "core/buffer.hpp"
#include "ops/batch.hpp"
#include "xlstm/config.hpp"

namespace xlstm::model {

/// One record holds, block after block, C [H, dqk, dv], n [H, dqk] and m [H] in float32; each
/// part starts on kAlignment bytes. A session is one record: fork and save are one copy.
struct StateLayout {
  std::int64_t blocks = 0, heads = 0, dqk = 0, dv = 0;
  ops::MlstmStateOffsets first;  ///< of block 0
  std::size_t block_bytes = 0;

  StateLayout() = default;
  explicit StateLayout(const Config& config)
      : blocks(config.num_blocks),
        heads(config.num_heads),
        dqk(config.qk_head_dim()),
        dv(config.v_head_dim()) {
    const auto part = [](std::int64_t count) {
      const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
      return (bytes + kAlignment - 1) / kAlignment * kAlignment;
    };
    first.n = part(heads * dqk * dv);
    first.m = first.n + part(heads * dqk);
    block_bytes = first.m + part(heads);
  }

  ops::MlstmStateOffsets block(std::size_t i) const noexcept {
    const std::size_t base = i * block_bytes;
    return {base + first.c, base + first.n, base + first.m};
  }
  std::size_t bytes() const noexcept { return static_cast<std::size_t>(blocks) * block_bytes; }
  /// Numbers in a record, padding not counted.
  std::int64_t count() const noexcept { return blocks * heads * (dqk * dv + dqk + 1); }

  friend bool operator==(const StateLayout& a, const StateLayout& b) noexcept {
    return a.blocks == b.blocks && a.heads == b.heads && a.dqk == b.dqk && a.dv == b.dv;
  }
};

}  // namespace xlstm::model
