#pragma once
// What mlstm_steps.cu and mlstm_ring_steps.cu are called with: one token each of many sequences.

#include <cmath>
#include <cstdint>

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/mlstm.hpp"
#include "ops/norm.hpp"

namespace xlstm::ops::cuda::sm90 {

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

}  // namespace xlstm::ops::cuda::sm90
