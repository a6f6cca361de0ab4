#pragma once
// Random numbers of one row: integers only, so that every compiler and library draws the same.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/hash.hpp"

namespace xlstm::train {

/// Draw i of row (seed, step, row) is a hash of these four numbers: rows do not depend on each
/// other, nor on the order in which they are made.
class Random {
 public:
  Random(std::uint64_t seed, std::int64_t step, std::int64_t row) noexcept {
    constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15ULL;  // keeps zeros from hashing to zero
    key_ = mix64(seed + kOdd);
    key_ = mix64(key_ ^ (static_cast<std::uint64_t>(step) + kOdd));
    key_ = mix64(key_ ^ (static_cast<std::uint64_t>(row) + kOdd));
  }

  std::uint64_t bits() noexcept { return mix64(key_ + ++drawn_ * 0x9e3779b97f4a7c15ULL); }

  /// Uniform in [0, n), n > 0. The lowest 2^64 mod n numbers are drawn again: what is left is a
  /// multiple of n.
  std::uint64_t below(std::uint64_t n) noexcept {
    const std::uint64_t unfair = (std::uint64_t{0} - n) % n;
    std::uint64_t x = bits();
    while (x < unfair) x = bits();
    return x % n;
  }

  /// Uniform in [first, last], both within reach.
  std::int64_t between(std::int64_t first, std::int64_t last) noexcept {
    return first + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(last - first) + 1));
  }

  bool coin() noexcept { return (bits() >> 63) != 0; }

  /// `count` different numbers of [first, last], in random order.
  std::vector<std::int64_t> distinct(std::int64_t first, std::int64_t last, std::int64_t count) {
    std::vector<std::int64_t> all(static_cast<std::size_t>(last - first + 1));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = first + static_cast<std::int64_t>(i);
    const auto taken = static_cast<std::size_t>(count);
    for (std::size_t i = 0; i < taken; ++i) std::swap(all[i], all[i + below(all.size() - i)]);
    all.resize(taken);
    return all;
  }

 private:
  std::uint64_t key_ = 0;
  std::uint64_t drawn_ = 0;
};

}  // namespace xlstm::train
