#pragma once
// Tiles of ops/packed.hpp, which lie in shared memory at multiples of 16 bytes, put together again
// in registers: a thread has a row of a tile and one of a or i, and takes pairs of numbers.

#include <cuda_runtime.h>

#include "ops/packed.hpp"

namespace xlstm::ops::cuda {

/// The four pairs of a row and (a, i): columns 32 u + 8 a + 2 i and the one after, u = 0 .. 3.
struct PackedPairs {
  uint2 fractions;
  unsigned exponents;

  /// @param fractions_at, exponents_at  where PackedTile says they are
  __device__ __forceinline__ PackedPairs(const unsigned char* fractions_at,
                                         const unsigned char* exponents_at)
      : fractions(*reinterpret_cast<const uint2*>(fractions_at)),
        exponents(*reinterpret_cast<const unsigned*>(exponents_at)) {}
  __device__ __forceinline__ PackedPairs(const unsigned char* tile, int row, int a, int i)
      : PackedPairs(tile + PackedTile::fractions_at(row, a, i),
                    tile + PackedTile::exponents_at(row, a, i)) {}

  /// Two bf16 numbers, the first in the lower half, without the row's scale and the tile's list.
  /// Four instructions where `u` is known.
  __device__ __forceinline__ unsigned pair(int u) const {
    // Both halves have their byte twice: the sign stays of one, the fraction of the other.
    const unsigned bytes =
        __byte_perm(u < 2 ? fractions.x : fractions.y, 0, u % 2 == 0 ? 0x1100U : 0x3322U);
    const int up = 7 - 4 * u;
    const unsigned moved = up >= 0 ? exponents << (up & 31) : exponents >> (-up & 31);
    constexpr unsigned kFirst = PackedTile::kFirstExponent << 7;
    return (bytes & 0x807F807FU) | (moved & 0x07800780U) | (kFirst | kFirst << 16);
  }
};

/// A number of a tile's list.
struct PackedPatch {
  unsigned word;

  __device__ __forceinline__ bool any() const { return word != PackedTile::kNoPatch; }
  __device__ __forceinline__ int row() const { return static_cast<int>(word >> 23 & 7U); }
  __device__ __forceinline__ int u() const { return static_cast<int>(word >> 21 & 3U); }
  __device__ __forceinline__ int a() const { return static_cast<int>(word >> 19 & 3U); }
  __device__ __forceinline__ int i() const { return static_cast<int>(word >> 17 & 3U); }
  /// For __byte_perm(pair, word, ...): puts the number in its half of the pair.
  __device__ __forceinline__ unsigned selector() const {
    return (word & 1U << 16) != 0 ? 0x5410U : 0x3254U;
  }
  static constexpr unsigned kKeep = 0x3210U;  ///< the selector that leaves a pair as it is
};

/// Of the list of a tile: patch 0 .. PackedTile::kMostPatches - 1; none follow one that is none.
__device__ __forceinline__ PackedPatch patch_of(const unsigned char* tile, int i) {
  return {reinterpret_cast<const unsigned*>(tile + PackedTile::kPatches)[i]};
}

}  // namespace xlstm::ops::cuda
