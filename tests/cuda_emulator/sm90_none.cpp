// The kernels of src/ops/cuda/sm90/, which no emulator runs: Level::base never calls them.

#include "ops/cuda/sm90/matmul.hpp"

namespace xlstm::ops::cuda {

bool product(Context&, const Product&) { return false; }

}  // namespace xlstm::ops::cuda
