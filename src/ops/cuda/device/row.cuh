#pragma once
// One row of activations, or one head's share of it, in the hands of one block: thread i has
// elements i, i + blockDim.x, ... of it. The order of every sum depends on the width alone.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {

/// Floats of a row that a block keeps in shared memory, which leaves some for the kernel. Wider
/// rows are read again from where they are.
constexpr int kMostHeld = 11 * 1024;
constexpr int kMostRowThreads = 512;

/// A block for every row and head.
inline Grid row_grid(std::int64_t rows, std::int64_t heads, std::int64_t width) {
  constexpr int kPerThread = 8;
  int threads = kWarp;
  while (threads < kMostRowThreads && threads * kPerThread < width) threads *= 2;
  return {.x = rows,
          .y = heads,
          .threads = threads,
          .shared = width <= kMostHeld ? static_cast<std::size_t>(width) * sizeof(float) : 0};
}

/// Copies the row to `held` if it fits; returns where to read it from now on. No barrier: a thread
/// may read its own elements.
__device__ inline const float* hold_row(const float* x, float* held, int width) {
  if (width > kMostHeld) return x;
  for (int d = threadIdx.x; d < width; d += blockDim.x) held[d] = x[d];
  return held;
}

/// Floats that are read as they are, or bf16 numbers.
template <class T>
struct Numbers {
  const T* data;
  __device__ float operator[](int i) const { return to_float(data[i]); }
};
/// The same for rows of any numbers: calls body(row), whose row[d] is a float.
template <class T, class Body>
__device__ inline void with_row(const T* x, float* held, int width, Body&& body) {
  if (width > kMostHeld) return body(Numbers<T>{x});
  for (int d = threadIdx.x; d < width; d += blockDim.x) held[d] = to_float(x[d]);
  body(Numbers<float>{held});
}

/// The sum of f(d) over the row, the same bits in every thread.
template <class F>
__device__ float row_sum(int width, float* partial, F f) {
  float sum = 0;
  for (int d = threadIdx.x; d < width; d += blockDim.x) sum += f(d);
  return block_sum(sum, partial);
}

// Not rsqrtf(), which is two units off: this factor is in all of a row's results.
__device__ inline float reciprocal_root(float mean, float eps) { return 1.0F / sqrtf(mean + eps); }

/// Mean and 1 / sqrt(variance + eps), as LayerNorm takes them. Once in a kernel.
struct Moments {
  float mean, scale;

  /// @param row  something with operator[] that gives a float
  template <class Row>
  __device__ Moments(Row row, int width, float eps) {
    __shared__ float sums[kMostRowThreads / kWarp], squares[kMostRowThreads / kWarp];
    const auto count = static_cast<float>(width);
    const float m = row_sum(width, sums, [row](int d) { return row[d]; }) / count;
    // Two passes: the variance is that of differences, not a difference of squares.
    const float variance =
        row_sum(width, squares, [row, m](int d) { return (row[d] - m) * (row[d] - m); }) / count;
    mean = m;
    scale = reciprocal_root(variance, eps);
  }
  __device__ float normed(float x) const { return (x - mean) * scale; }
};

/// Weights of any type, one vector or matrix; or none.
struct Weights {
  const void* data;
  DType dtype;
  explicit Weights(const Tensor& t) : data(t.data), dtype(t.dtype) {}

  __device__ bool any() const { return data != nullptr; }
  __device__ float at(std::int64_t i) const {
    if (dtype == DType::bf16) return to_float(static_cast<const Bf16*>(data)[i]);
    if (dtype == DType::f16) return to_float(static_cast<const F16*>(data)[i]);
    return static_cast<const float*>(data)[i];
  }
  /// The same, or `otherwise` where there are none.
  __device__ float at_or(float otherwise, std::int64_t i) const {
    return any() ? at(i) : otherwise;
  }
};

/// Four weights from a multiple of 4 on, where all begin on 16 bytes. No branch, or each of several
/// would wait for its own memory.
struct FourWeights {
  uint2 first, second;
  DType dtype;

  __device__ FourWeights(const Weights& w, std::int64_t i) : dtype(w.dtype) {
    const bool wide = dtype == DType::f32;
    const auto* at = static_cast<const std::byte*>(w.data) + i * (wide ? 4 : 2);
    first = *reinterpret_cast<const uint2*>(at);
    second = *reinterpret_cast<const uint2*>(at + (wide ? 8 : 0));
  }
  __device__ float number(unsigned half, unsigned whole) const {
    const auto bits = static_cast<std::uint16_t>(half);
    const float narrow = dtype == DType::bf16 ? to_float(Bf16{bits}) : to_float(F16{bits});
    float wide;
    std::memcpy(&wide, &whole, sizeof(wide));
    return dtype == DType::f32 ? wide : narrow;
  }
  __device__ float4 floats() const {
    return {number(first.x, first.x), number(first.x >> 16, first.y), number(first.y, second.x),
            number(first.y >> 16, second.y)};
  }
};

/// Whether rows begin at multiples of so many bytes; how many there are does not count.
inline bool on_bytes(const Tensor& t, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(t.data) % bytes == 0 &&
         (t.rank < 2 || static_cast<std::size_t>(t.row_stride()) * size_of(t.dtype) % bytes == 0);
}
inline bool on_16_bytes(const Tensor& t) { return on_bytes(t, 16); }

}  // namespace xlstm::ops::cuda
