#pragma once
// Tiles of packed weights (ops/packed.hpp) in shared memory as factors A of wgmma: a warp has two
// tiles, rows 0 to 7 of its 16 and rows 8 to 15.

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/sm90/device/barrier.cuh"
#include "ops/cuda/sm90/device/packed.cuh"
#include "ops/packed.hpp"

namespace xlstm::ops::cuda {

constexpr int kTilesOfWarp = 2;
constexpr int kTileWords = PackedTile::kBytes / 8;  ///< columns of packed_map()

__device__ __forceinline__ unsigned load_word(SharedAddress at) {
  unsigned word = 0;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
  return word;
}

/// A lane's part of 128 columns of two rows.
struct Packs {
  uint2 two[kTilesOfWarp][4];  // of each a
  unsigned third[kTilesOfWarp][4];

  /// Where those of a = 0 lie in a tile; those of others where a flips bits of the address.
  __device__ __forceinline__ static int two_words_at(int lane) {
    return PackedTile::two_words_at(lane / 4, 0, lane % 4);
  }
  __device__ __forceinline__ static int third_word_at(int lane) {
    return PackedTile::third_word_at(lane / 4, 0, lane % 4);
  }
  /// @param second  bytes from the first tile to the other
  __device__ __forceinline__ void load(SharedAddress two_words, SharedAddress third_word,
                                       int second) {
#pragma unroll
    for (int a = 0; a < 4; ++a) {
#pragma unroll
      for (int t = 0; t < kTilesOfWarp; ++t) {
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                     : "=r"(two[t][a].x), "=r"(two[t][a].y)
                     : "r"((two_words ^ a * 8) + t * second)
                     : "memory");
        third[t][a] = load_word((third_word ^ a * 4) + t * second);
      }
    }
  }
  /// Columns 64 kHalf .. 64 kHalf + 63 as four fragments of a product.
  template <int kHalf>
  __device__ __forceinline__ void unpack(unsigned (&to)[4][4]) const {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int t = r % 2, a = s % 2 * 2 + r / 2;
        to[s][r] = PackedPairs(two[t][a], third[t][a]).pair(2 * kHalf + s / 2);
      }
    }
  }
};

/// Puts listed weights into their places: the lanes whose bits are set in `mask` have one each, of
/// the first tile (lanes 0 to 7) or of the second, in the half that `to` has.
__device__ __forceinline__ void mend(unsigned mask, unsigned patch, int lane,
                                     unsigned (&to)[4][4]) {
#pragma unroll 1
  for (; mask != 0; mask &= mask - 1) {
    const unsigned from = __ffs(static_cast<int>(mask)) - 1;
    const unsigned word = __shfl_sync(~0U, patch, from), place = word >> 16;
    const unsigned owner = place / PackedTile::kColumns * 4 + place / 2 % 4;
    const unsigned take = place % 2 == 0 ? 0x3254 : 0x5410;
    const unsigned n = place / 16 % 4 * 4 + place / 8 % 2 * 2 + from / PackedTile::kMostPatches;
    const unsigned here = owner == static_cast<unsigned>(lane) ? 1U << n : 0;
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if ((here >> i & 1) != 0) to[i / 4][i % 4] = __byte_perm(to[i / 4][i % 4], word, take);
  }
}

}  // namespace xlstm::ops::cuda
