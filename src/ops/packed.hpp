#pragma once
// Weights of bf16 in 12.25 bits each, without loss.
//
// The weights of a row rarely differ by more than a factor of 2^15, so 4 bits say how far below the
// row's largest exponent a weight's is. Sign and fraction take 8 bits as they are; what does not
// fit, and zeros, is listed with each tile. Kernels of few tokens, which are bound by the bytes of
// the weights, read these and put the bf16 numbers together again.

#include <cstdint>
#include <span>

#include "ops/op.hpp"

#if defined(__CUDACC__)
#define XLSTM_HOST_DEVICE __host__ __device__
#else
#define XLSTM_HOST_DEVICE
#endif

namespace xlstm::ops {

/// 8 rows by 128 columns, which lie together. A weight is `scale` of its row times a bf16 number
/// whose exponent field is 112 + the 4 bits: between 2^-15 and 2.
///
/// Where a column's bits lie, column = 32 u + 8 a + 2 i + e: the four u and two e of a row and of
/// (a, i) are 8 bytes of signs and fractions, and 4 bytes of exponents. A quarter of a warp's row
/// takes a or i for its number: columns 8 a .. 8 a + 7 of each 32, or 2 i and 2 i + 1 of each 8, as
/// tensor cores want them. Either way the lanes of a warp read different banks.
struct PackedTile {
  static constexpr int kRows = 8, kColumns = 128;
  static constexpr int kExponents = kRows * kColumns;                 ///< byte where they begin
  static constexpr int kPatches = kExponents + kRows * kColumns / 2;  ///< where the list begins
  static constexpr int kMostPatches = 8;                              ///< in a tile
  static constexpr int kBytes = kPatches + 4 * kMostPatches;
  static constexpr unsigned kFirstExponent = 112;
  static constexpr unsigned kNoPatch = ~0U;  ///< after the last

  /// Byte of the 8 of a row and (a, i): u = 0 lies first; of each u, e = 0.
  XLSTM_HOST_DEVICE static constexpr int fractions_at(int row, int a, int i) {
    return i * 256 + row * 32 + (a ^ i) * 8;
  }
  /// Byte of the 4: as one number, bits 4 u + 16 e and the 3 above them are an exponent.
  XLSTM_HOST_DEVICE static constexpr int exponents_at(int row, int a, int i) {
    return kExponents + i * 128 + row * 16 + (a ^ i) * 4;
  }
  XLSTM_HOST_DEVICE static constexpr int fraction_at(int row, int column) {
    return fractions_at(row, column / 8 % 4, column / 2 % 4) + column / 32 * 2 + column % 2;
  }
  XLSTM_HOST_DEVICE static constexpr int exponent_shift(int column) {
    return column / 32 * 4 + column % 2 * 16;
  }
  /// A weight in the list: its place, and the bits of weight / scale.
  XLSTM_HOST_DEVICE static constexpr unsigned patch(int row, int column, unsigned bits) {
    return static_cast<unsigned>(row * kColumns + column) << 16 | bits;
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

/// Whether a kernel of this CUDA device reads packed weights.
bool reads_packed(Device device);

/// Throws Error(invalid_argument) unless there are none, or one like each of `w`.
void check_packed(const char* op, std::span<const PackedWeights> packed, std::span<const Tensor> w);

}  // namespace xlstm::ops
