#pragma once
// Tiles of ops/packed.hpp, which lie in shared memory at multiples of 16 bytes, put together again
// in registers: a lane has a row of a tile and one of a or i, and takes pairs of numbers.

#include <cuda_runtime.h>

#include "ops/cuda/device/numbers.cuh"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {

/// (a & kMask) | c in one instruction. Where c is known too the compiler makes two of it, because
/// an instruction has room for one of them: the other one has to be in a register.
template <unsigned kMask>
__device__ __forceinline__ unsigned and_or(unsigned a, unsigned c) {
  unsigned result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(a), "n"(kMask), "r"(c));
  return result;
}

/// The four pairs of a row and (a, i): columns 32 u + 8 a + 2 i and the one after, u = 0 .. 3.
struct PackedPairs {
  uint2 two;
  unsigned third;

  __device__ __forceinline__ PackedPairs(uint2 two_words, unsigned third_word)
      : two(two_words), third(third_word) {}
  __device__ __forceinline__ PackedPairs(const unsigned char* two_words,
                                         const unsigned char* third_word)
      : two(*reinterpret_cast<const uint2*>(two_words)),
        third(*reinterpret_cast<const unsigned*>(third_word)) {}
  __device__ __forceinline__ PackedPairs(const unsigned char* tile, int row, int a, int i)
      : PackedPairs(tile + PackedTile::two_words_at(row, a, i),
                    tile + PackedTile::third_word_at(row, a, i)) {}

  /// As PackedTile::pair(). One instruction for u < 3, six for the fourth.
  __device__ __forceinline__ unsigned pair(int u) const {
    using Tile = PackedTile;
    if (u < 3) return and_or<Tile::kOwn>(u == 0 ? two.x : u == 1 ? two.y : third, Tile::kCommon);
    const unsigned most = and_or<Tile::kFirst>(two.x >> 4, Tile::kCommon);
    return and_or<Tile::kThird>(__funnelshift_l(third, third, 4),
                                and_or<Tile::kSecond>(two.y >> 8, most));
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
  __device__ __forceinline__ int e() const { return static_cast<int>(word >> 16 & 1U); }
};

/// Of the list of a tile: patch 0 .. PackedTile::kMostPatches - 1; none follow one that is none.
__device__ __forceinline__ PackedPatch patch_of(const unsigned char* tile, int i) {
  return {reinterpret_cast<const unsigned*>(tile + PackedTile::kPatches)[i]};
}

}  // namespace xlstm::ops::cuda
