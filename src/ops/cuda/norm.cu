#include "ops/norm.hpp"

#include "ops/cuda/device/gate.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

__device__ float rms_scale(const float* row, int width, float eps) {
  __shared__ float partial[kMostRowThreads / kWarp];
  const float sum = row_sum(width, partial, [row](int d) { return row[d] * row[d]; });
  return reciprocal_root(sum / static_cast<float>(width), eps);
}

/// x * scale * w + b
struct NormedRow {
  const float* x;
  float scale;
  Weights w, b;
  __device__ float at(int d) const { return x[d] * scale * w.at(d) + b.at_or(0.0F, d); }
};
struct HeldRow {
  const float* x;
  __device__ float at(int d) const { return x[d]; }
};

template <class Y>
__global__ void rms_norm_kernel(Matrix<const float> x, Weights w, Weights b, float eps, Matrix<Y> y,
                                int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const float* row = hold_row(x.row(blockIdx.x), held, width);
  const NormedRow u{row, rms_scale(row, width, eps), w, b};
  Y* to = y.row(blockIdx.x);
  for (int d = threadIdx.x; d < width; d += blockDim.x) store(to + d, u.at(d));
}

// A warp for every gate of every head, once the block has normed the row.
template <class Y>
__global__ void rms_norm_gates_kernel(Matrix<const float> x, Weights w, Weights b, float eps,
                                      float cap, Gate input, Gate forget, int heads, Matrix<Y> y,
                                      int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const float* row = hold_row(x.row(blockIdx.x), held, width);
  const bool is_held = row == held;
  const NormedRow u{row, rms_scale(row, width, eps), w, b};
  Y* to = y.row(blockIdx.x);
  for (int d = threadIdx.x; d < width; d += blockDim.x) {
    const float value = u.at(d);
    if (is_held) held[d] = value;
    store(to + d, value);
  }
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  for (int i = threadIdx.x / kWarp; i < 2 * heads; i += warps) {
    const Gate gate = i < heads ? input : forget;
    const int head = i % heads;
    const float part =
        is_held ? lane_dot(gate, head, HeldRow{held}, width) : lane_dot(gate, head, u, width);
    const float dot = warp_sum(part);
    if (threadIdx.x % kWarp == 0) finish_gate(gate, blockIdx.x, head, dot, cap);
  }
}

template <class Y>
__global__ void head_norm_kernel(Matrix<const float> h, Matrix<const float> o, Weights w, Weights b,
                                 float eps, Matrix<Y> y, int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * width;
  const float* row = hold_row(h.row(blockIdx.x) + first, held, width);
  const float* gate = o.row(blockIdx.x) + first;
  const Moments moments(row, width, eps);
  Y* to = y.row(blockIdx.x) + first;
  for (int d = threadIdx.x; d < width; d += blockDim.x) {
    const float v = moments.normed(row[d]) * w.at(first + d) + b.at_or(0.0F, first + d);
    store(to + d, sigmoid(gate[d]) * v);
  }
}

}  // namespace

void rms_norm(Context& context, const RmsNormArgs& a) {
  if (a.x.count() == 0) return;
  with_type(a.y.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm", row_grid(a.x.dim(0), 1, a.x.dim(1)), rms_norm_kernel<Y>,
           Matrix<const float>(a.x), Weights(a.w), Weights(a.b), a.eps, Matrix<Y>(a.y),
           static_cast<int>(a.x.dim(1)));
  });
}

void rms_norm_gates(Context& context, const RmsNormGatesArgs& a) {
  if (a.x.count() == 0) return;
  const Gate input(a.w_i, a.b_i, a.i, a.sigmoid_input), forget(a.w_f, a.b_f, a.log_f, true);
  with_type(a.u.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm_gates", row_grid(a.x.dim(0), 1, a.x.dim(1)), rms_norm_gates_kernel<Y>,
           Matrix<const float>(a.x), Weights(a.w), Weights(a.b), a.eps, a.cap, input, forget,
           static_cast<int>(a.w_i.dim(0)), Matrix<Y>(a.u), static_cast<int>(a.x.dim(1)));
  });
}

void head_norm(Context& context, const HeadNormArgs& a) {
  if (a.h.count() == 0) return;
  const std::int64_t width = a.h.dim(1) / a.heads;
  with_type(a.y.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "head_norm", row_grid(a.h.dim(0), a.heads, width), head_norm_kernel<Y>,
           Matrix<const float>(a.h), Matrix<const float>(a.o), Weights(a.w), Weights(a.b), a.eps,
           Matrix<Y>(a.y), static_cast<int>(width));
  });
}

}  // namespace xlstm::ops::cuda
