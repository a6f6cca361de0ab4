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
#include "xlstm/dtype.hpp"

namespace xlstm::model {

/// What one block remembers. An mLSTM cell: C [H, dqk, dv], and in float64 n [H, dqk] and m [H]
/// (ops/batch.hpp). An sLSTM cell: h, c, n and m [D]. A causal convolution: its last inputs [taps -
/// 1, channels].
struct BlockState {
  std::int64_t heads = 0, dqk = 0, dv = 0;  ///< of the mLSTM cell, 0 if there is none
  std::int64_t width = 0;                   ///< D of the sLSTM cell, 0 if there is none
  std::int64_t taps = 0, channels = 0;      ///< of the convolution, 0 if there is none
  ops::MlstmStateOffsets mlstm;
  ops::SlstmStateOffsets slstm;
  std::size_t window = 0;
};

/// One record holds the parts of block after block, float32 where nothing else is said; each part
/// starts on kAlignment bytes. A session is one record: fork and save are one copy. On a CUDA
/// device C may be bf16, and behind all parts each mLSTM cell has a ring of tokens that its C does
/// not hold yet (ops/mlstm_ring.hpp); where `mlstm.pending` of the blocks says.
class StateLayout {
 public:
  struct Part {
    std::size_t offset;  ///< bytes from the record's start
    std::int64_t count;  ///< numbers
    DType type;

    std::size_t bytes() const noexcept { return static_cast<std::size_t>(count) * size_of(type); }
    friend bool operator==(const Part&, const Part&) = default;
  };

  StateLayout() = default;
  /// @param cuda_c  the type of C in records on a CUDA device: f32 or bf16
  explicit StateLayout(const Config& config, DType cuda_c = DType::f32);

  DType cuda_c() const noexcept { return cuda_c_; }
  /// In records on the CPU.
  const std::vector<BlockState>& blocks() const noexcept { return cpu_.blocks; }
  const std::vector<BlockState>& blocks_on(Device device) const noexcept {
    return at(device).blocks;
  }
  /// All parts of a record on the CPU, in the order of a state file.
  const std::vector<Part>& parts() const noexcept { return cpu_.parts; }
  /// Of the parts; a record on the CPU has no more.
  std::size_t bytes() const noexcept { return cpu_.bytes; }
  std::size_t bytes_on(Device device) const noexcept {
    return device.is_cpu() ? cpu_.bytes : cuda_.bytes + ring_bytes_;
  }
  /// A record of one device, in which nothing is pending, as one of the other, both in the host's
  /// memory. C that becomes bf16 is rounded at random.
  /// @param tokens  that the sequence has read
  Buffer converted(const std::byte* record, Device from, Device to, std::int64_t tokens) const;
  /// mlstm_fold() of all cells in the records of a batch, which are on a CUDA device.
  void fold(Context& context, const ops::Batch& batch, bool longer_only = false) const;

  /// Numbers in a record, padding not counted.
  std::int64_t count() const noexcept { return count_; }

  /// Whether records on the CPU are the same.
  friend bool operator==(const StateLayout& a, const StateLayout& b) noexcept {
    return a.cpu_.parts == b.cpu_.parts;
  }

 private:
  struct Record {
    std::vector<BlockState> blocks;
    std::vector<Part> parts;
    std::size_t bytes = 0;

    std::size_t add(std::int64_t count, DType type = DType::f32);
    void add_mlstm(BlockState& block, std::int64_t heads, std::int64_t dqk, std::int64_t dv,
                   DType c_type);
    void add_window(BlockState& block, std::int64_t taps, std::int64_t channels);
    void add_blocks(const Config& config, DType c_type);
  };
  const Record& at(Device device) const noexcept { return device.is_cpu() ? cpu_ : cuda_; }

  DType cuda_c_ = DType::f32;
  Record cpu_, cuda_;
  std::size_t ring_bytes_ = 0;
  std::int64_t count_ = 0;
};

}  // namespace xlstm::model
