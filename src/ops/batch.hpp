#pragma once
// A ragged batch: sequences laid end to end, each with its state record. No padding anywhere.

#include <cstddef>
#include <cstdint>
#include <span>

#include "xlstm/dtype.hpp"

namespace xlstm::ops {

/// Sequence s owns tokens [offsets[s], offsets[s+1]) of every activation and the record slots[s]. A
/// null slot means that the sequence starts from the zero state and its final state is dropped:
/// documents in training.
///
/// Backward ops read the initial states from `slots` and take a second list of records of the same
/// layout, `d_slots`: on entry the gradients of the final states, on exit those of the initial
/// ones. A null record there, or an empty list: the first are zero and the second are not wanted.
struct Batch {
  std::span<const std::int32_t> offsets;  ///< sequences + 1, offsets[0] == 0, strictly rising
  std::span<std::byte* const> slots;  ///< one state record per sequence, no two the same; or null
  /// Copies of both for the kernels of a CUDA device; null where that reads the host's memory.
  const std::int32_t* device_offsets = nullptr;
  std::byte* const* device_slots = nullptr;

  std::int64_t sequences() const noexcept { return static_cast<std::int64_t>(slots.size()); }
  std::int64_t tokens() const noexcept { return offsets.empty() ? 0 : offsets.back(); }
};

/// Where one block's mLSTM state lies in every record of a batch (bytes from the record's start,
/// which is on 8 bytes). l = n q sums numbers of both signs: where it comes near 0 and no floor is
/// above it, h has all that n and its weights, which are relative to m, are wrong by times what
/// cancels. So both are doubles: rounded to float32 at every step they take h up to 1e-3 off.
struct MlstmStateOffsets {
  std::size_t c = 0;  ///< C [H, dqk, dv] of c_type
  std::size_t n = 0;  ///< n [H, dqk] f64
  std::size_t m = 0;  ///< m [H] f64
  /// Tokens that C does not hold yet (mlstm_ring.hpp); 0: C holds all.
  std::size_t pending = 0;
  /// bf16: on a CUDA device alone, in records with `pending`, whose rings then also count tokens.
  DType c_type = DType::f32;
  /// Of bf16: what the block gives to rounding_key().
  std::uint64_t rounding = 0;
};

}  // namespace xlstm::ops
