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

/// The shares of a lane in the products of kRows rows, `width` apart, with weights that are read
/// once: the same sums as lane_dot() has.
template <int kRows, class T>
__device__ void lane_dots(const T* w, const float* rows, int width, float (&sums)[kRows]) {
#pragma unroll 4
  for (int d = threadIdx.x % kWarp; d < width; d += kWarp) {
    const float weight = to_float(w[d]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] = fmaf(rows[r * width + d], weight, sums[r]);
  }
}

// A block norms kRows rows, which it holds unless there is but one; then a warp for every gate of
// every head.
template <class Y, int kRows>
__global__ void rms_norm_gates_kernel(Matrix<const float> x, Weights w, Weights b, float eps,
                                      float cap, Gate input, Gate forget, int heads, Matrix<Y> y,
                                      int width, std::int64_t tokens) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const int rows = static_cast<int>(min(static_cast<std::int64_t>(kRows), tokens - first));
  NormedRow last{nullptr, 0, w, b};
  bool is_held = true;
  for (int r = 0; r < rows; ++r) {
    float* mine = held + r * width;
    const float* row = hold_row(x.row(first + r), mine, width);
    is_held = row == mine;
    const NormedRow u{row, rms_scale(row, width, eps), w, b};
    Y* to = y.row(first + r);
    for (int d = threadIdx.x; d < width; d += blockDim.x) {
      const float value = u.at(d);
      if (is_held) mine[d] = value;
      store(to + d, value);
    }
    last = u;
    __syncthreads();
  }
  const int warps = blockDim.x / kWarp;
  for (int i = threadIdx.x / kWarp; i < 2 * heads; i += warps) {
    const Gate gate = i < heads ? input : forget;
    const int head = i % heads;
    float sums[kRows] = {};
    if (kRows == 1) {
      sums[0] =
          is_held ? lane_dot(gate, head, HeldRow{held}, width) : lane_dot(gate, head, last, width);
    } else {
      const std::int64_t at = head * gate.stride;
      switch (gate.w.dtype) {
        case DType::bf16:
          lane_dots(static_cast<const Bf16*>(gate.w.data) + at, held, width, sums);
          break;
        case DType::f16:
          lane_dots(static_cast<const F16*>(gate.w.data) + at, held, width, sums);
          break;
        default: lane_dots(static_cast<const float*>(gate.w.data) + at, held, width, sums);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float dot = warp_sum(sums[r]);
      if (threadIdx.x % kWarp == 0 && r < rows) finish_gate(gate, first + r, head, dot, cap);
    }
  }
}

/// Floats that are read as they are, or bf16 numbers.
template <class T>
struct Numbers {
  const T* data;
  __device__ float operator[](int i) const { return to_float(data[i]); }
};

// In is what h and o hold.
template <class In, class Y>
__global__ void head_norm_kernel(Matrix<const In> h, Matrix<const In> o, Weights w, Weights b,
                                 float eps, Matrix<Y> y, int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * width;
  const In* from = h.row(blockIdx.x) + first;
  const In* gate = o.row(blockIdx.x) + first;
  Y* to = y.row(blockIdx.x) + first;
  const auto norm = [&](const auto& row) {
    const Moments moments(row, width, eps);
    for (int d = threadIdx.x; d < width; d += blockDim.x) {
      const float v = moments.normed(row[d]) * w.at(first + d) + b.at_or(0.0F, first + d);
      store(to + d, sigmoid(to_float(gate[d])) * v);
    }
  };
  if (width > kMostHeld) return norm(Numbers<In>{from});
  for (int d = threadIdx.x; d < width; d += blockDim.x) held[d] = to_float(from[d]);
  norm(Numbers<float>{held});
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
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  Grid grid = row_grid(tokens, 1, width);
  // Several rows a block, where there are enough of them, read the gates' weights less often.
  constexpr int kRows = 4;
  constexpr std::int64_t kEnoughBlocks = 128;
  const bool several = tokens >= kRows * kEnoughBlocks && width <= kMostHeld;
  if (several) {
    grid.x = blocks_for(tokens, kRows);
    grid.shared *= kRows;
  }
  with_type(a.u.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm_gates", grid,
           several ? rms_norm_gates_kernel<Y, kRows> : rms_norm_gates_kernel<Y, 1>,
           Matrix<const float>(a.x), Weights(a.w), Weights(a.b), a.eps, a.cap, input, forget,
           static_cast<int>(a.w_i.dim(0)), Matrix<Y>(a.u), static_cast<int>(width), tokens);
  });
}

void head_norm(Context& context, const HeadNormArgs& a) {
  if (a.h.count() == 0) return;
  const std::int64_t width = a.h.dim(1) / a.heads;
  const auto run = [&](auto in, auto out) {
    using In = decltype(in);
    using Y = decltype(out);
    launch(context, "head_norm", row_grid(a.h.dim(0), a.heads, width), head_norm_kernel<In, Y>,
           Matrix<const In>(a.h), Matrix<const In>(a.o), Weights(a.w), Weights(a.b), a.eps,
           Matrix<Y>(a.y), static_cast<int>(width));
  };
  with_type(a.y.dtype,
            [&](auto out) { a.h.dtype == DType::bf16 ? run(Bf16(), out) : run(float(), out); });
}

}  // namespace xlstm::ops::cuda
