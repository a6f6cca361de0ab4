#include "ops/gates.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 128;

// In double, as the gates of xLSTM-large: they are few, and all of a sequence's future depends on
// them.
__global__ void gates_kernel(Matrix<const float> z, Matrix<float> input, Matrix<float> log_f,
                             std::int64_t tokens, std::int64_t heads) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= tokens * heads) return;
  const std::int64_t t = at / heads, h = at % heads;
  input.row(t)[h] = z.row(t)[h];
  const double f = z.row(t)[heads + h];
  log_f.row(t)[h] = static_cast<float>((f > 0 ? 0.0 : f) - log1p(exp(-fabs(f))));
}

}  // namespace

void gates(Context& context, const GatesArgs& a) {
  if (a.i.count() == 0) return;
  launch(context, "gates", {.x = blocks_for(a.i.count(), kThreads), .threads = kThreads},
         gates_kernel, Matrix<const float>(a.z), Matrix<float>(a.i), Matrix<float>(a.log_f),
         a.i.dim(0), a.i.dim(1));
}

}  // namespace xlstm::ops::cuda
