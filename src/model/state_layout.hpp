#pragma once
// Where the states of all blocks lie in one record.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "ops/batch.hpp"
#include "ops/slstm.hpp"
#include "xlstm/config.hpp"

namespace xlstm::model {

/// What one block remembers. An mLSTM cell: C [H, dqk, dv], n [H, dqk], m [H]. An sLSTM cell: h, c,
/// n and m [D]. A causal convolution: its last inputs [taps - 1, channels].
struct BlockState {
  std::int64_t heads = 0, dqk = 0, dv = 0;  ///< of the mLSTM cell, 0 if there is none
  std::int64_t width = 0;                   ///< D of the sLSTM cell, 0 if there is none
  std::int64_t taps = 0, channels = 0;      ///< of the convolution, 0 if there is none
  ops::MlstmStateOffsets mlstm;
  ops::SlstmStateOffsets slstm;
  std::size_t window = 0;
};

/// One record holds the parts of block after block in float32; each part starts on kAlignment
/// bytes. A session is one record: fork and save are one copy. On a CUDA device, behind all parts,
/// each mLSTM cell has a ring of tokens that its C does not hold yet (ops/mlstm_ring.hpp); where
/// `mlstm.pending` of the blocks says.
class StateLayout {
 public:
  struct Part {
    std::size_t offset;  ///< bytes from the record's start
    std::int64_t count;  ///< floats
    friend bool operator==(const Part&, const Part&) = default;
  };

  StateLayout() = default;
  explicit StateLayout(const Config& config);

  const std::vector<BlockState>& blocks() const noexcept { return blocks_; }
  /// All parts, in the order of a state file.
  const std::vector<Part>& parts() const noexcept { return parts_; }
  /// Of the parts; a record on the CPU has no more.
  std::size_t bytes() const noexcept { return bytes_; }
  std::size_t bytes_on(Device device) const noexcept {
    return device.is_cpu() ? bytes_ : bytes_ + ring_bytes_;
  }
  /// mlstm_fold() of all cells in the records of a batch, which are on a CUDA device.
  void fold(Context& context, const ops::Batch& batch, bool longer_only = false) const;

  /// Numbers in a record, padding not counted.
  std::int64_t count() const noexcept { return count_; }

  friend bool operator==(const StateLayout& a, const StateLayout& b) noexcept {
    return a.parts_ == b.parts_;
  }

 private:
  std::size_t add(std::int64_t count);
  void add_mlstm(BlockState& block, std::int64_t heads, std::int64_t dqk, std::int64_t dv);
  void add_window(BlockState& block, std::int64_t taps, std::int64_t channels);

  std::vector<BlockState> blocks_;
  std::vector<Part> parts_;
  std::size_t bytes_ = 0, ring_bytes_ = 0;
  std::int64_t count_ = 0;
};

}  // namespace xlstm::model
