#pragma once
// What mlstm_steps.cu and mlstm_ring_steps.cu share: one token each of many sequences.

#include <cmath>
#include <cstdint>

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/sm90/async_copy.cuh"
#include "ops/cuda/sm90/device/cluster.cuh"
#include "ops/mlstm.hpp"
#include "ops/norm.hpp"

namespace xlstm::ops::cuda::sm90 {

constexpr int kStepThreads = 128;
constexpr int kMostColumns = 4 * kStepThreads;

/// Rows [tokens, heads x width] of f32 or bf16.
struct AnyRows {
  void* data;
  std::int64_t stride;
  bool is_bf16;
  explicit AnyRows(const Tensor& t)
      : data(t.data), stride(t.row_stride()), is_bf16(t.dtype == DType::bf16) {}
  __device__ __forceinline__ float at(std::int64_t row, int column) const {
    const std::int64_t i = row * stride + column;
    return is_bf16 ? to_float(static_cast<const Bf16*>(data)[i])
                   : static_cast<const float*>(data)[i];
  }
  __device__ __forceinline__ void set(std::int64_t row, int column, float value) const {
    const std::int64_t i = row * stride + column;
    if (is_bf16)
      store(static_cast<Bf16*>(data) + i, value);
    else
      static_cast<float*>(data)[i] = value;
  }
};

struct MlstmStepsCall {
  AnyRows q, k, v, o, y;
  Matrix<const float> i, log_f;
  DeviceBatch batch;
  MlstmStateOffsets offsets;
  Weights norm_w, norm_b;
  int heads, dqk, dv;
  float scale, cell_eps, norm_eps;
  bool has_stabiliser, normalise, has_norm;
};

/// Writes to where `to` is in the shared memory of the first block of the cluster; the bytes count
/// at its `barrier`. No fence: that would wait for all that the thread has stored.
__device__ __forceinline__ void send_first(float* to, float value, SharedAddress barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   cluster_address(cuda::shared_address(to), 0)),
               "f"(value), "r"(cluster_address(barrier, 0))
               : "memory");
}
__device__ __forceinline__ void send_first(float* to, const float (&values)[4],
                                           SharedAddress barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(cluster_address(cuda::shared_address(to), 0)),
      "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]),
      "r"(cluster_address(barrier, 0))
      : "memory");
}

/// The larger one; NaN if one is.
__device__ __forceinline__ double larger(double a, double b) { return a != a || a > b ? a : b; }

/// @param norm  null: h is wanted
inline MlstmStepsCall mlstm_steps_call(const MlstmArgs& cell, const HeadNormArgs* norm) {
  const auto heads = static_cast<int>(cell.i.dim(1));
  const auto dqk = static_cast<int>(cell.q.dim(1)) / heads;
  const auto dv = static_cast<int>(cell.v.dim(1)) / heads;
  return {.q = AnyRows(cell.q),
          .k = AnyRows(cell.k),
          .v = AnyRows(cell.v),
          .o = AnyRows(norm != nullptr ? norm->o : cell.h),
          .y = AnyRows(norm != nullptr ? norm->y : cell.h),
          .i = Matrix<const float>(cell.i),
          .log_f = Matrix<const float>(cell.log_f),
          .batch = DeviceBatch(cell.batch),
          .offsets = cell.state,
          .norm_w = Weights(norm != nullptr ? norm->w : Tensor()),
          .norm_b = Weights(norm != nullptr ? norm->b : Tensor()),
          .heads = heads,
          .dqk = dqk,
          .dv = dv,
          .scale = 1.0F / std::sqrt(static_cast<float>(dqk)),
          .cell_eps = cell.eps,
          .norm_eps = norm != nullptr ? norm->eps : 0.0F,
          .has_stabiliser = cell.gate == MlstmGate::exponential,
          .normalise = cell.normalise,
          .has_norm = norm != nullptr};
}

/// @tparam kSlices  blocks of a cluster
/// @tparam kPart    rows that a thread copies at once
/// @tparam kParts   of those, under way at a time
template <int kSlices, int kPart, int kParts>
struct StepsTile {
  float4 state[kParts * kPart * kStepThreads];  // a thread reads what it has copied
  struct Sums {
    float h[kMostColumns], l, unused[3];
  } others[kSlices - 1];  // of the other blocks, in the first
};

/// The first block's part once it has the sums of the others: h or what the norm makes of it.
/// @param first   of the head's columns
/// @param writes  whether the thread has the four columns from `column` on
template <int kSlices, class Sums>
__device__ __forceinline__ void finish_step(const MlstmStepsCall& step, const Sums& others, int t,
                                            int first, int column, bool writes, float l,
                                            float floor, const float (&sum)[4],
                                            float (&partial)[2][kStepThreads / kWarp]) {
  for (int b = 0; b < kSlices - 1; ++b) l += others[b].l;
  l *= step.scale;
  float out = step.scale;
  if (step.normalise) {
    const float magnitude = fabsf(l);  // the comparison keeps a NaN
    out *= 1.0F / ((magnitude <= floor ? floor : magnitude) + step.cell_eps);
  }
  float h[4] = {};
  if (writes)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      h[j] = sum[j];
      for (int b = 0; b < kSlices - 1; ++b) h[j] += others[b].h[column + j];
      h[j] *= out;
    }
  const int output = first + column;
  if (step.has_norm) {
    const auto count = static_cast<float>(step.dv);
    const float mean = block_sum((h[0] + h[1]) + (h[2] + h[3]), partial[1]) / count;
    float second = 0;
    if (writes)
#pragma unroll
      for (int j = 0; j < 4; ++j) second = fmaf(h[j] - mean, h[j] - mean, second);
    const float scale = reciprocal_root(block_sum(second, partial[0]) / count, step.norm_eps);
    if (writes)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        h[j] = sigmoid(step.o.at(t, output + j)) * fmaf((h[j] - mean) * scale,
                                                        step.norm_w.at(output + j),
                                                        step.norm_b.at_or(0.0F, output + j));
  }
  if (writes)
#pragma unroll
    for (int j = 0; j < 4; ++j) step.y.set(t, output + j, h[j]);
}

}  // namespace xlstm::ops::cuda::sm90
