#pragma once
// Numbers of tensors from one type to another, one at a time; kernels convert whole vectors.

#include <cstdint>

#include "core/float_bits.hpp"
#include "core/threads.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm {

/// Element `i` of the memory of an f32, bf16 or f16 tensor.
inline float load_f32(const Tensor& t, std::int64_t i) {
  switch (t.dtype) {
    case DType::bf16: return bf16_to_f32(t.as<std::uint16_t>()[i]);
    case DType::f16: return f16_to_f32(t.as<std::uint16_t>()[i]);
    default: return t.as<float>()[i];
  }
}

/// Sets it, rounded to nearest, ties to even.
inline void store_f32(const Tensor& t, std::int64_t i, float value) {
  switch (t.dtype) {
    case DType::bf16: t.as<std::uint16_t>()[i] = f32_to_bf16(value); break;
    case DType::f16: t.as<std::uint16_t>()[i] = f32_to_f16(value); break;
    default: t.as<float>()[i] = value;
  }
}

/// All of `from`, dense, into `to`, dense and of as many elements.
inline void convert(const Tensor& from, const Tensor& to, int threads) {
  parallel_ranges(threads, from.count(), 4096, [&](Range range) {
    if (from.dtype == DType::f32 && to.dtype == DType::bf16) {  // what compilers make vectors of
      const float* const x = from.as<float>();
      auto* const y = to.as<std::uint16_t>();
      for (std::int64_t i = range.begin; i < range.end; ++i) y[i] = f32_to_bf16(x[i]);
      return;
    }
    for (std::int64_t i = range.begin; i < range.end; ++i) store_f32(to, i, load_f32(from, i));
  });
}

}  // namespace xlstm
