#pragma once
// Several numbers read from memory at once, where they are aligned.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/cuda/device/numbers.cuh"

namespace xlstm::ops::cuda {

/// kCount numbers that one instruction reads: 16 bytes unless told otherwise. They are kept as
/// words because a compiler gives each number of 16 bits a register of its own where two paths
/// meet.
template <class T, int kCount = 16 / static_cast<int>(sizeof(T))>
struct alignas(kCount * sizeof(T)) Pack {
  unsigned words[kCount * sizeof(T) / 4];

  __device__ T at(int i) const {
    T number;
    if constexpr (sizeof(T) == 4) {
      std::memcpy(&number, &words[i], 4);
    } else {
      constexpr int kOfWord = 4 / static_cast<int>(sizeof(T));
      number.bits =
          static_cast<decltype(number.bits)>(words[i / kOfWord] >> (i % kOfWord * 8 * sizeof(T)));
    }
    return number;
  }
};

/// The numbers at `from`, of which the first `count` exist; zeros for the others.
/// @param aligned  whether `from` is a multiple of the pack's size
template <class T, int kCount>
__device__ inline void load_pack(Pack<T, kCount>* to, const T* from, std::int64_t count,
                                 bool aligned) {
  if (aligned && count >= kCount) {
    *to = *reinterpret_cast<const Pack<T, kCount>*>(from);
    return;
  }
  *to = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i >= count) continue;
    const T number = from[i];
    if constexpr (sizeof(T) == 4) {
      std::memcpy(&to->words[i], &number, 4);
    } else {
      constexpr int kOfWord = 4 / static_cast<int>(sizeof(T));
      to->words[i / kOfWord] |= static_cast<unsigned>(number.bits) << (i % kOfWord * 8 * sizeof(T));
    }
  }
}

/// A matrix [rows, columns] that a kernel reads in packs of up to 16 bytes.
template <class T>
struct PackedRows {
  const T* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t rows = 0;
  bool aligned = false;  ///< every row begins at a multiple of 16 bytes

  PackedRows() = default;
  explicit PackedRows(const Tensor& t)
      : data(static_cast<const T*>(t.data)),
        stride(t.row_stride()),
        rows(t.dim(0)),
        aligned(reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 &&
                (rows <= 1 || static_cast<std::size_t>(stride) * sizeof(T) % 16 == 0)) {}
  __device__ const T* row(std::int64_t r) const { return data + r * stride; }
};

/// Four numbers that lie on as many bytes as they take.
__device__ inline float4 load_four(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
template <class T>
__device__ inline float4 load_four(const T* from) {
  const Pack<T, 4> pack = *reinterpret_cast<const Pack<T, 4>*>(from);
  return {to_float(pack.at(0)), to_float(pack.at(1)), to_float(pack.at(2)), to_float(pack.at(3))};
}
__device__ inline void store_four(float* to, const float4& x) {
  *reinterpret_cast<float4*>(to) = x;
}
template <class T>
__device__ inline void store_four(T* to, const float4& x) {
  T numbers[4];
  store(numbers + 0, x.x);
  store(numbers + 1, x.y);
  store(numbers + 2, x.z);
  store(numbers + 3, x.w);
  uint2 pack;
  std::memcpy(&pack, numbers, sizeof(pack));
  *reinterpret_cast<uint2*>(to) = pack;
}

}  // namespace xlstm::ops::cuda
