#pragma once
// What mlstm() saves for a backward pass (MlstmSaved), as kernels see it.

#include <cstdint>

#include "ops/mlstm.hpp"

namespace xlstm::ops::cuda {

struct SavedCell {
  std::uint32_t border;  // 0: nothing is saved
  float *l, *m;
  std::int64_t l_stride, m_stride;
  float *c, *n, *state_m;

  explicit SavedCell(const MlstmSaved& saved)
      : border(static_cast<std::uint32_t>(saved.border)),
        l(static_cast<float*>(saved.l.data)),
        m(static_cast<float*>(saved.m.data)),
        l_stride(saved.l.row_stride()),
        m_stride(saved.m.row_stride()),
        c(static_cast<float*>(saved.c.data)),
        n(static_cast<float*>(saved.n.data)),
        state_m(static_cast<float*>(saved.state_m.data)) {}

  __device__ bool any() const { return border != 0; }
  /// @param t  of the batch
  __device__ float& l_of(std::int64_t t, std::int64_t head) const { return l[t * l_stride + head]; }
  __device__ float& m_of(std::int64_t t, std::int64_t head) const { return m[t * m_stride + head]; }
  /// Whether the state before this token of a sequence is saved.
  __device__ bool has_border(std::int64_t token) const {
    return any() && static_cast<std::uint32_t>(token) % border == 0;
  }
  /// Of that state and a head, in state_m; and in c and n in units of heads' numbers. Divisions of
  /// 64 bits would take many registers.
  __device__ std::int64_t index(std::int64_t begin, std::int64_t s, std::int64_t token,
                                std::int64_t heads, std::int64_t head) const {
    const auto stretches =
        static_cast<std::uint32_t>(begin) / border + static_cast<std::uint32_t>(token) / border;
    return (s + stretches) * heads + head;
  }
};

}  // namespace xlstm::ops::cuda
