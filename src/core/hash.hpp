#pragma once
// A 64-bit hash for checksums and for naming models; not against malice.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace xlstm {

/// A bijection of 64-bit numbers that spreads every bit (the finaliser of splitmix64).
constexpr std::uint64_t mix64(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// Number `i` of the random sequence that `key` names, uniform in (0, 1).
constexpr double uniform_at(std::uint64_t key, std::uint64_t i) noexcept {
  const std::uint64_t bits = mix64(key + i * 0x9e3779b97f4a7c15ULL) >> 11;
  return (static_cast<double>(bits) + 0.5) * 0x1p-53;
}

/// h = mix64(seed + bytes); then for every 8 bytes w (little-endian, the last padded with zeros)
/// h = mix64(h ^ w) + 0x9e3779b97f4a7c15.
inline std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t seed) noexcept {
  std::uint64_t h = mix64(seed + bytes.size());
  for (std::size_t i = 0; i < bytes.size(); i += 8) {
    std::uint64_t w = 0;
    std::memcpy(&w, bytes.data() + i, bytes.size() - i < 8 ? bytes.size() - i : 8);
    h = mix64(h ^ w) + 0x9e3779b97f4a7c15ULL;
  }
  return h;
}

}  // namespace xlstm
