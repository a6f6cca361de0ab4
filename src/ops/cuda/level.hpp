#pragma once
// Which kernels a card runs.

#include "xlstm/device.hpp"

namespace xlstm::ops::cuda {

enum class Level {
  base,  ///< compute capability 8.0 and up
  sm90   ///< also those in sm90/: clusters, bulk copies, wgmma; capability 9.0 alone
};

/// That of `device`, or `base` where the environment variable XLSTM_CUDA_LEVEL says so (read once).
/// The level decides speed and the order of sums, not what can be computed.
Level level(Device device);

/// Of the card: so many blocks run side by side at least.
int multiprocessors(Device device);

}  // namespace xlstm::ops::cuda
