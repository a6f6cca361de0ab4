#pragma once
// Rounding of float32 to bf16 up or down at random, so that the mean of many roundings is the
// number itself. The random bits are a hash of where and when a number is written: the same on
// every device, whatever else runs beside it.

#include <bit>
#include <cstdint>

#include "core/host_device.hpp"

namespace xlstm::ops {

/// What the bits for C of one head depend on beside the element.
struct RoundingKey {
  std::uint32_t first, second;
};

/// @param cell      of the seed and the block (MlstmStateOffsets::rounding)
/// @param position  tokens of the sequence that C holds once it is written
XLSTM_HOST_DEVICE inline RoundingKey rounding_key(std::uint64_t cell, std::int64_t head,
                                                  std::uint32_t position) {
  // As mix64() of core/hash.hpp.
  std::uint64_t x = cell ^ (static_cast<std::uint64_t>(head) << 32 | position);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  x ^= x >> 31;
  return {static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(x >> 32)};
}

/// 16 bits for each of the elements 2 pair and 2 pair + 1 of a head, the lower ones for the first.
XLSTM_HOST_DEVICE inline std::uint32_t rounding_bits(RoundingKey key, std::uint32_t pair) {
  std::uint32_t x = (pair ^ key.first) * 0x7feb352dU;
  x = (x ^ (x >> 15)) * 0x846ca68bU + key.second;
  return x ^ (x >> 16);
}

/// Up with the probability that makes the mean x. What bf16 can hold, infinities and NaN stay.
/// @param bits  16 of them
XLSTM_HOST_DEVICE inline std::uint16_t random_bf16(float x, std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  const std::uint32_t from = __float_as_uint(x);
#else
  const auto from = std::bit_cast<std::uint32_t>(x);
#endif
  return static_cast<std::uint16_t>(x == x ? (from + bits) >> 16 : from >> 16 | 0x40U);
}
/// The same with the bits of an element.
XLSTM_HOST_DEVICE inline std::uint16_t random_bf16(float x, RoundingKey key,
                                                   std::uint32_t element) {
  return random_bf16(x, rounding_bits(key, element / 2) >> (element % 2 * 16) & 0xffffU);
}

}  // namespace xlstm::ops
