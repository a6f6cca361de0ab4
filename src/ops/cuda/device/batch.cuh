#pragma once
// A ragged batch as kernels see it.

#include <cstdint>

#include "ops/batch.hpp"

namespace xlstm::ops::cuda {

/// Sequence s owns tokens [offsets[s], offsets[s + 1]) and the record slots[s], which may be null.
struct DeviceBatch {
  const std::int32_t* offsets;
  std::byte* const* slots;
  std::int64_t sequences;

  explicit DeviceBatch(const Batch& batch)
      : offsets(batch.device_offsets != nullptr ? batch.device_offsets : batch.offsets.data()),
        slots(batch.device_slots != nullptr ? batch.device_slots : batch.slots.data()),
        sequences(batch.sequences()) {}
};

}  // namespace xlstm::ops::cuda
