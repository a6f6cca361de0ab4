#pragma once
// What few_rows.cpp needs from each instruction set: a product of a few rows of W with a few rows
// of x over a piece of K, for which all sums stay in registers.

#include <array>
#include <cstddef>
#include <cstdint>

namespace xlstm::ops::cpu {

/// No tile takes more rows of W, or more rows of x.
inline constexpr int kMaxTileRows = 8;
inline constexpr int kMaxTileColumns = 3;
/// Bytes that come from memory at once, and how far ahead in a row of W they are asked for.
inline constexpr std::int64_t kCacheLine = 64;
inline constexpr std::int64_t kPrefetchAhead = 4096;
/// Widest vector of sums, in floats.
inline constexpr int kMaxLanes = 16;

struct TileArgs {
  const void* w;          ///< rows of W at this piece of K
  std::int64_t w_stride;  ///< elements between them
  const void* x;          ///< rows of x at this piece of K, zero past K
  std::int64_t x_stride;  ///< elements between them
  std::int64_t k;         ///< elements of this piece
  float* sums;            ///< vectors of sums between pieces, kMaxLanes apart
  bool first, last;       ///< start from zero; reduce the sums and store them in y
  float* y;               ///< row r of W and row c of x give y[c * y_stride + r * y_step]
  std::int64_t y_stride, y_step;
  bool accumulate;
  /// Lines at these bytes of each row are prefetched, kPrefetchAhead further on.
  std::int64_t prefetch_begin, prefetch_end;
};
using Tile = void (*)(const TileArgs&);
/// Tiles for one dtype of W: tiles[0] take `rows` rows of W (the last rows go one by one, through
/// tiles[1]), each for 1..columns rows of x.
struct TileTable {
  int rows, columns;
  std::array<std::array<Tile, kMaxTileColumns>, 2> tiles;
};

/// x bf16, W bf16: dot products of pairs (AVX512-BF16). Only where active_isa() has them.
const TileTable& bf16_dot_tiles();

}  // namespace xlstm::ops::cpu
