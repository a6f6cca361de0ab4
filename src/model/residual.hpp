#pragma once
// The residual stream, [T, D] float32, which layers update in place.

#include <cstring>

#include "core/context.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::model {

/// Copies rows of float32, for a backward pass that wants them as they were.
inline void copy_rows(const Context& c, const Tensor& from, const Tensor& to) {
  if (c.measuring()) return;
  for (std::int64_t t = 0; t < from.dim(0); ++t)
    std::memcpy(to.row<float>(t), from.row<float>(t),
                static_cast<std::size_t>(from.dim(1)) * sizeof(float));
}

/// Sets rows of float32 to zero.
inline void zero_rows(const Context& c, const Tensor& x) {
  if (c.measuring()) return;
  for (std::int64_t t = 0; t < x.dim(0); ++t)
    std::memset(x.row<float>(t), 0, static_cast<std::size_t>(x.dim(1)) * sizeof(float));
}

}  // namespace xlstm::model
