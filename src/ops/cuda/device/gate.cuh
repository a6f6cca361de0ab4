#pragma once
// The input and forget gates of the mLSTM: a product with a normed row each.

#include <cstdint>

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"

namespace xlstm::ops::cuda {

/// One of the two gates of every head: its weights and where it goes.
struct Gate {
  Weights w;
  std::int64_t stride;  ///< of w
  Weights b;
  Matrix<float> result;
  bool log_sigmoid;

  Gate(const Tensor& w_, const Tensor& b_, const Tensor& result_, bool log_sigmoid_)
      : w(w_), stride(w_.row_stride()), b(b_), result(result_), log_sigmoid(log_sigmoid_) {}
};

/// Both gates of all heads, with weights of bf16.
struct GatePair {
  Gate input, forget;
  int heads;
  float cap;
  /// The weights of gate i of both; the last one's for those that do not exist.
  __device__ const Bf16* row(int i) const {
    const int own = min(i, 2 * heads - 1);
    const Gate& gate = own < heads ? input : forget;
    return static_cast<const Bf16*>(gate.w.data) + own % heads * gate.stride;
  }
};

/// A lane's share of the product of a row with weights.
template <class T, class Row>
__device__ float lane_dot(const T* w, const Row& row, int width) {
  float sum = 0;
  for (int d = threadIdx.x % kWarp; d < width; d += kWarp)
    sum = fmaf(row.at(d), to_float(w[d]), sum);
  return sum;
}

template <class Row>
__device__ float lane_dot(const Gate& gate, std::int64_t head, const Row& row, int width) {
  const std::int64_t first = head * gate.stride;
  switch (gate.w.dtype) {
    case DType::bf16: return lane_dot(static_cast<const Bf16*>(gate.w.data) + first, row, width);
    case DType::f16: return lane_dot(static_cast<const F16*>(gate.w.data) + first, row, width);
    default: return lane_dot(static_cast<const float*>(gate.w.data) + first, row, width);
  }
}

/// Writes the gate of a token whose product with the row is `dot`. In double: gates are few, and
/// all of a sequence's future depends on them.
__device__ inline void finish_gate(const Gate& gate, std::int64_t token, int head, float dot,
                                   float cap) {
  double z = static_cast<double>(dot) + gate.b.at(head);
  if (cap != 0.0F) z = cap * tanh(z / cap);
  auto value = static_cast<float>(z);
  if (gate.log_sigmoid) {
    z = value;
    value = static_cast<float>((z > 0 ? 0.0 : z) - log1p(exp(-fabs(z))));
  }
  gate.result.row(token)[head] = value;
}

}  // namespace xlstm::ops::cuda
