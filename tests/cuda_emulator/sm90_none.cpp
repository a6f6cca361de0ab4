// The kernels of src/ops/cuda/sm90/, which no emulator runs: Level::base never calls them.

#include "ops/cuda/sm90/matmul.hpp"
#include "ops/cuda/sm90/slstm.hpp"

namespace xlstm::ops::cuda {

bool product(Context&, const Product&) { return false; }

namespace sm90 {

bool slstm(Context&, const SlstmArgs&) { return false; }

}  // namespace sm90
}  // namespace xlstm::ops::cuda
