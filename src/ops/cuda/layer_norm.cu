#include "ops/layer_norm.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

template <class Y, bool kAccumulate>
__global__ void layer_norm_kernel(Matrix<const float> x, Weights w, Weights b, float eps,
                                  float w_offset, Matrix<Y> y, int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * width;
  const float* row = hold_row(x.row(blockIdx.x) + first, held, width);
  const Moments moments(row, width, eps);
  Y* to = y.row(blockIdx.x) + first;
  for (int d = threadIdx.x; d < width; d += blockDim.x) {
    float v = moments.normed(row[d]);
    if (w.any()) v *= w_offset + w.at(first + d);
    if (b.any()) v += b.at(first + d);
    // Not part of a multiply-add: what is added is what would be written.
    if constexpr (kAccumulate) v = __fadd_rn(to_float(to[d]), v);
    store(to + d, v);
  }
}

template <class Y, bool kAccumulate>
void launch_layer_norm(Context& context, const LayerNormArgs& a) {
  const std::int64_t width = a.x.dim(1) / a.heads;
  launch(context, "layer_norm", row_grid(a.x.dim(0), a.heads, width),
         layer_norm_kernel<Y, kAccumulate>, Matrix<const float>(a.x), Weights(a.w), Weights(a.b),
         a.eps, a.w_offset, Matrix<Y>(a.y), static_cast<int>(width));
}

template <class H, class Y>
__global__ void skip_gate_kernel(Matrix<const H> h, Weights w, Weights skip, Matrix<const float> c,
                                 Matrix<const float> z, float eps, float w_offset, Matrix<Y> y,
                                 int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * width;
  const float* conv = c.row(blockIdx.x) + first;
  const float* gate = z.row(blockIdx.x) + first;
  Y* to = y.row(blockIdx.x) + first;
  with_row(h.row(blockIdx.x) + first, held, width, [&](const auto& row) {
    const Moments moments(row, width, eps);
    for (int d = threadIdx.x; d < width; d += blockDim.x) {
      const float normed = moments.normed(row[d]) * (w_offset + w.at(first + d));
      store(to + d, fmaf(skip.at(first + d), conv[d], normed) * (gate[d] * sigmoid(gate[d])));
    }
  });
}

}  // namespace

void layer_norm(Context& context, const LayerNormArgs& a) {
  if (a.x.count() == 0) return;
  if (a.accumulate) return launch_layer_norm<float, true>(context, a);
  with_type(a.y.dtype, [&](auto type) { launch_layer_norm<decltype(type), false>(context, a); });
}

void skip_gate(Context& context, const SkipGateArgs& a) {
  if (a.h.count() == 0) return;
  const std::int64_t width = a.h.dim(1) / a.heads;
  with_type(a.y.dtype, [&](auto type) {
    using Y = decltype(type);
    const auto run = [&]<class H>(H) {
      launch(context, "skip_gate", row_grid(a.h.dim(0), a.heads, width), skip_gate_kernel<H, Y>,
             Matrix<const H>(a.h), Weights(a.w), Weights(a.skip), Matrix<const float>(a.c),
             Matrix<const float>(a.z), a.eps, a.w_offset, Matrix<Y>(a.y), static_cast<int>(width));
    };
    if (a.h.dtype == DType::f32)
      run(float());
    else
      run(Bf16());
  });
}

}  // namespace xlstm::ops::cuda
