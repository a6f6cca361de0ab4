// States that mlstm() saves of sequences of one token; those of others the kernels save that make
// them.

#include "ops/cuda/launch.cuh"
#include "ops/cuda/mlstm_cell.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;

/// A block has a sequence and head.
__global__ void __launch_bounds__(kThreads) save_states_kernel(Cell cell) {
  const std::int64_t s = blockIdx.x, head = blockIdx.y, begin = cell.batch.offsets[s];
  if (cell.batch.offsets[s + 1] - begin != 1) return;
  const std::int64_t at = cell.saved.index(begin, s, 0, cell.heads, head);
  const auto copy = [](float* to, const auto* from, std::int64_t count) {
    for (std::int64_t x = threadIdx.x; x < count; x += kThreads)
      to[x] = from != nullptr ? static_cast<float>(from[x]) : 0.0F;
  };
  copy(cell.saved.c + at * cell.dqk * cell.dv, cell.record_c(s, head), cell.dqk * cell.dv);
  copy(cell.saved.n + at * cell.dqk, cell.record_n(s, head), cell.dqk);
  if (threadIdx.x == 0) cell.saved.state_m[at] = static_cast<float>(cell.first_m(s, head));
}

}  // namespace

void mlstm_save_states_of_steps(Context& context, const Cell& cell, const MlstmPlan& plan) {
  launch(context, "mlstm", Grid{.x = plan.sequences, .y = plan.heads, .threads = kThreads},
         save_states_kernel, cell);
}

}  // namespace xlstm::ops::cuda
