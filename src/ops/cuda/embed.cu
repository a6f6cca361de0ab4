#include "ops/embed.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;

// A thread an element of y.
template <class W>
__global__ void embed_kernel(const std::int32_t* ids, Matrix<const W> table, Matrix<float> y,
                             std::int64_t width) {
  grid_trigger();  // it is launched after all before it
  const std::int64_t t = blockIdx.x;
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (j < width) y.row(t)[j] = to_float(table.row(ids[t])[j]);
}

}  // namespace

void embed(Context& context, const EmbedArgs& a) {
  const std::int32_t* ids = a.device_ids != nullptr ? a.device_ids : a.ids.data();
  const std::int64_t tokens = a.y.dim(0), width = a.y.dim(1);
  if (a.y.count() == 0) return;
  with_type(a.table.dtype, [&](auto type) {
    using W = decltype(type);
    launch(context, "embed", {.x = tokens, .y = blocks_for(width, kThreads), .threads = kThreads},
           embed_kernel<W>, ids, Matrix<const W>(a.table), Matrix<float>(a.y), width);
  });
}

}  // namespace xlstm::ops::cuda
