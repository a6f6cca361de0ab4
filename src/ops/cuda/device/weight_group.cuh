#pragma once
// The weights of a linear layer that has several matrices, as its kernels see them.

#include <cstdint>
#include <span>

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"

namespace xlstm::ops::cuda {

constexpr int kMostWeights = 4;

/// Row blocks of weights, one after the other, each [N_i, K]; rows begin on 16 bytes.
template <class W>
struct WeightGroup {
  const W* data[kMostWeights] = {};
  std::int64_t stride[kMostWeights] = {};
  std::int64_t end[kMostWeights] = {};  ///< rows of this block and of those before
  Weights bias[kMostWeights] = {Weights(Tensor()), Weights(Tensor()), Weights(Tensor()),
                                Weights(Tensor())};
  std::int64_t rows = 0;

  WeightGroup(std::span<const Tensor> w, std::span<const Tensor> b) {
    for (std::size_t i = 0; i < kMostWeights; ++i) {
      if (i < w.size()) {
        data[i] = static_cast<const W*>(w[i].data);
        stride[i] = w[i].row_stride();
        rows += w[i].dim(0);
        if (!b.empty()) bias[i] = Weights(b[i]);
      }
      end[i] = rows;
    }
  }
  __device__ const W* row(std::int64_t n) const {
    int i = 0;
    std::int64_t first = 0;
    while (i < kMostWeights - 1 && n >= end[i]) first = end[i++];
    return data[i] + (n - first) * stride[i];
  }
  __device__ float bias_of(std::int64_t n) const {
    int i = 0;
    std::int64_t first = 0;
    while (i < kMostWeights - 1 && n >= end[i]) first = end[i++];
    return bias[i].at_or(0.0F, n - first);
  }
};

}  // namespace xlstm::ops::cuda
