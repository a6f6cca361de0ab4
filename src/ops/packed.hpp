#pragma once
// Weights of bf16 in 12.25 bits each, without loss.
//
// The weights of a row rarely differ by more than a factor of 2^15, so 4 bits say how far below an
// exponent of the row a weight's is, the largest or, beside outliers, one below: with sign and
// fraction 12 bits. What does not fit, and zeros, is listed with each tile. Kernels read these and
// put the bf16 numbers together again.

#include <cstdint>
#include <span>

#include "core/host_device.hpp"
#include "ops/op.hpp"

namespace xlstm::ops {

/// 8 rows by 128 columns, which lie together. A weight is `scale` of its row times a bf16 number
/// whose exponent field is 112 + the 4 bits: between 2^-15 and 2.
///
/// Where a column's bits lie, column = 32 u + 8 a + 2 i + e: the four u and two e of a row and of
/// (a, i) are three words, of which two lie together. A quarter of a warp's row takes a or i for
/// its number: columns 8 a .. 8 a + 7 of each 32, or 2 i and 2 i + 1 of each 8, as tensor cores
/// want them. Either way the lanes of a warp read different banks.
///
/// A half of a word, the lower for e = 0, is a bf16 number of u = 0, 1 or 2, whose bits 11 to 14
/// are the same for all and leave room for those of u = 3: three words are four pairs in 9
/// instructions.
struct PackedTile {
  static constexpr int kRows = 8, kColumns = 128;
  static constexpr int kThirds = kRows * kColumns;                 ///< byte where third words begin
  static constexpr int kPatches = kThirds + kRows * kColumns / 2;  ///< where the list begins
  static constexpr int kMostPatches = 8;                           ///< in a tile
  static constexpr int kBytes = kPatches + 4 * kMostPatches;
  static constexpr unsigned kNoPatch = ~0U;  ///< after the last

  /// Bytes of the words of a row and (a, i).
  XLSTM_HOST_DEVICE static constexpr int two_words_at(int row, int a, int i) {
    return i * 256 + row * 32 + (a ^ i) * 8;
  }
  XLSTM_HOST_DEVICE static constexpr int third_word_at(int row, int a, int i) {
    return kThirds + i * 128 + row * 16 + (a ^ i) * 4;
  }

  /// Bits of a bf16 number that every number has its own of, in both halves of a word; and those
  /// that all have.
  static constexpr unsigned kOwn = 0x87FF87FF, kCommon = 0x38003800;
  /// Where a pair of u = 3 has its bits: these of the words, shifted right by 4 and by 8, and
  /// rotated left by 4.
  static constexpr unsigned kFirst = 0x07800780, kSecond = 0x00780078, kThird = 0x80078007;

  /// Two numbers of one u, the first in the lower half, without the row's scale and the list.
  XLSTM_HOST_DEVICE static constexpr unsigned pair(unsigned first, unsigned second, unsigned third,
                                                   int u) {
    if (u < 3) return ((u == 0 ? first : u == 1 ? second : third) & kOwn) | kCommon;
    return (first >> 4 & kFirst) | (second >> 8 & kSecond) | (rotated(third, 4) & kThird) | kCommon;
  }
  /// Puts a pair, of which it takes the numbers' own bits, into words that were 0.
  XLSTM_HOST_DEVICE static constexpr void put_pair(unsigned (&words)[3], int u, unsigned pair) {
    if (u < 3) {
      words[u] |= pair & kOwn;
      return;
    }
    words[0] |= (pair & kFirst) << 4;
    words[1] |= (pair & kSecond) << 8;
    words[2] |= rotated(pair & kThird, 28);
  }
  /// A weight in the list: its place, and the bits of weight / scale.
  XLSTM_HOST_DEVICE static constexpr unsigned patch(int row, int column, unsigned bits) {
    return static_cast<unsigned>(row * kColumns + column) << 16 | bits;
  }

 private:
  XLSTM_HOST_DEVICE static constexpr unsigned rotated(unsigned word, int left) {
    return word << left | word >> (32 - left);
  }
};

/// A matrix [N, K] of such tiles; what a tile has beyond N or K is 2^-15.
struct PackedWeights {
  Tensor tiles;   ///< [ceil(N / 8), ceil(K / 128) kBytes] u8, rows at multiples of 16 bytes
  Tensor scales;  ///< [N] f32, powers of two, or 0 for a row of zeros

  explicit operator bool() const noexcept { return static_cast<bool>(tiles); }
};

/// Shape of the tiles of a matrix [rows, columns].
struct PackedShape {
  std::int64_t rows, bytes;
  constexpr PackedShape(std::int64_t matrix_rows, std::int64_t matrix_columns)
      : rows((matrix_rows + PackedTile::kRows - 1) / PackedTile::kRows),
        bytes((matrix_columns + PackedTile::kColumns - 1) / PackedTile::kColumns *
              PackedTile::kBytes) {}
};

struct PackWeightsArgs {
  Tensor w;              ///< [N, K] bf16
  PackedWeights packed;  ///< of that shape
  Tensor left_out;       ///< [ceil(N / 8)] i32: weights of those rows that `packed` lacks
};
XLSTM_OP(pack_weights, PackWeightsArgs)

/// Puts weights together again, on the host. @param w  [N, K] bf16, of the shape that was packed
void unpack_weights(const PackedWeights& packed, const Tensor& w);

/// Whether a kernel of this CUDA device reads packed weights.
bool reads_packed(Device device);

/// Throws Error(invalid_argument) unless there are none, or one like each of `w`.
void check_packed(const char* op, std::span<const PackedWeights> packed, std::span<const Tensor> w);

/// The same unless each of `w` has this shape too and, if it is not packed, memory.
void check_weights(const char* op, std::span<const Tensor> w, std::int64_t outputs,
                   std::int64_t inputs, std::span<const PackedWeights> packed);

}  // namespace xlstm::ops
