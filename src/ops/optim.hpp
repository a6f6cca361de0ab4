#pragma once
// What an optimiser does to one tensor.

#include <cstdint>

#include "ops/op.hpp"

namespace xlstm::ops {

/// One step of AdamW with decoupled decay, g = grad_scale * gradient:
///   w *= 1 - lr weight_decay;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
///   w -= lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
struct AdamwArgs {
  Tensor w, g, m, v;      ///< f32, dense, one shape
  Tensor copy;            ///< empty, or the same shape in bf16: gets the result, rounded
  std::int64_t step = 1;  ///< counts from 1
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.0;
  float grad_scale = 1.0F;
};
XLSTM_OP(adamw, AdamwArgs)

/// *sum += the squared values of x, in double and in one order whatever the number of threads
struct SquaredNormArgs {
  Tensor x;  ///< f32, dense
  double* sum = nullptr;
};
XLSTM_OP(squared_norm, SquaredNormArgs)

/// x *= factor
struct ScaleArgs {
  Tensor x;  ///< f32, dense
  float factor = 1.0F;
};
XLSTM_OP(scale, ScaleArgs)

}  // namespace xlstm::ops
