#pragma once
// The random numbers that tokens are drawn with.

#include <cstdint>

#include "core/hash.hpp"
#include "core/host_device.hpp"

namespace xlstm {

/// xoshiro256** seeded by splitmix64: the same numbers on every platform and device.
struct RandomGenerator {
  std::uint64_t s[4] = {};

  RandomGenerator() = default;
  explicit RandomGenerator(std::uint64_t seed) noexcept {
    for (std::uint64_t& word : s) word = mix64(seed += 0x9e3779b97f4a7c15ULL);
  }

  XLSTM_HOST_DEVICE std::uint64_t next() noexcept {
    const std::uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    const std::uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
  }
  /// Uniform in [0, 1), 53 bits.
  XLSTM_HOST_DEVICE double uniform() noexcept {
    return static_cast<double>(next() >> 11) * 0x1p-53;
  }

 private:
  XLSTM_HOST_DEVICE static std::uint64_t rotate_left(std::uint64_t x, int k) noexcept {
    return (x << k) | (x >> (64 - k));
  }
};

}  // namespace xlstm
