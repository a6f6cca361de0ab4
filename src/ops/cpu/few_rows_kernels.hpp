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
/// Bytes that come from memory at once.
inline constexpr std::int64_t kCacheLine = 64;
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
  float* y;               ///< row r of W and row c of x give y[c * y_stride + r]
  std::int64_t y_stride;
  bool accumulate;
  const char* next;  ///< what to prefetch: lines at bytes [next_begin, next_end) of each row
  std::int64_t next_stride;
  std::int64_t next_begin, next_end;
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
