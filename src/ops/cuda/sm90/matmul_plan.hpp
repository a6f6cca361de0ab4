#pragma once
// Which kernel multiplies matrices on compute capability 9.0, and in which pieces.

#include <algorithm>
#include <cstdint>
#include <span>

namespace xlstm::ops::cuda {

enum class MatmulKernel {
  streamed,  ///< few rows of x: every block has its own rows of W and all rows of x
  tiled      ///< many: blocks take tiles of y in turn
};

struct MatmulPlan {
  MatmulKernel kernel;
  int rows;     ///< of x in a tile: 64, 128 or 256; of the two blocks of a cluster in `tiled`
  int columns;  ///< multiplied at once: 32, 64, 96, 128, 176 (streamed); 128, 192, 256 (tiled)
  int height;   ///< rows of W of a tile, of each W with SwiGLU: a multiple of 4
  int split;    ///< blocks that share the depth of a tile: 1 or 2
  int stages;   ///< in shared memory at most; 0: as many as there is room for (streamed)
  std::int64_t cycles;  ///< what it should take

  bool operator==(const MatmulPlan&) const = default;
};

struct MatmulShape {
  std::int64_t rows;                      ///< of x
  std::span<const std::int64_t> outputs;  ///< rows of each W; of the first alone with SwiGLU
  std::int64_t depth;
  bool swiglu;
  int multiprocessors;
};

constexpr int kMatmulDepth = 64;  ///< of a stage: the 128 bytes of a box
constexpr std::int64_t kMatmulStreamedRows = 256;

constexpr std::int64_t pieces_of(std::int64_t count, std::int64_t piece) {
  return (count + piece - 1) / piece;
}

constexpr std::int64_t matmul_tiles(std::span<const std::int64_t> outputs, std::int64_t height) {
  std::int64_t tiles = 0;
  for (const std::int64_t n : outputs) tiles += pieces_of(n, height);
  return tiles;
}

// The numbers in both estimates are fitted to measurements on an H200.

/// Cycles of the tiled kernel: those of the tensor cores, at 84 % of their rate, and of the ends.
constexpr std::int64_t tiled_cycles(const MatmulShape& s, int columns) {
  const int height = s.swiglu ? columns / 2 : columns;
  const std::int64_t tiles = pieces_of(s.rows, 256) * matmul_tiles(s.outputs, height);
  const std::int64_t turns = pieces_of(tiles, s.multiprocessors / 2);
  const std::int64_t stage = columns * 19 / 4 + 16;
  return turns * (pieces_of(s.depth, kMatmulDepth) * stage + 1500) + 3000;
}

/// Stages of the streamed kernel with which so many blocks share a multiprocessor.
constexpr int streamed_stages(int rows, int columns, int blocks) {
  constexpr int kShared = 228 << 10, kOfBlock = 2 << 10;  // barriers, and what CUDA takes
  return (kShared / blocks - kOfBlock) / ((rows + columns) * 128);
}

/// Cycles of the streamed kernel: the slowest of device memory (17.5 bytes a cycle and
/// multiprocessor), second-level cache (46) and tensor cores, for all blocks that are on a
/// multiprocessor at once, and what comes before and after.
constexpr std::int64_t streamed_cycles(const MatmulShape& s, const MatmulPlan& p, int at_once) {
  const std::int64_t blocks = matmul_tiles(s.outputs, p.height) * p.split;
  const std::int64_t turns = pieces_of(blocks, s.multiprocessors / p.split * p.split * at_once);
  const std::int64_t stages = at_once * pieces_of(pieces_of(s.depth, kMatmulDepth), p.split);
  const std::int64_t w = stages * p.height * (s.swiglu ? 2 : 1) * 128;
  const std::int64_t x = stages * p.rows * 128;
  const std::int64_t products = stages * (kMatmulDepth / 16) * (p.rows / 64) *
                                std::max(p.columns / 2, 16 + p.columns / 4) * 4 / 3;
  const std::int64_t sums = std::int64_t{4} * p.rows * p.columns;
  const std::int64_t exchange = p.split == 1 ? 0 : 800 + at_once * sums / 48;
  return turns *
         (std::max({w * 2 / 35, (w + x) / 46, products}) + (at_once == 1 ? 6000 : 5000) + exchange);
}

/// The tiled plan with the fewest cycles. All sizes are positive. A depth of e4m3 numbers counts
/// half.
/// @param blocks  of 128 x 128 weights share a scale: a tile has whole ones
constexpr MatmulPlan plan_tiled(const MatmulShape& s, bool blocks = false) {
  MatmulPlan best = {};
  for (const int columns : {256, 192, 128}) {
    const int height = s.swiglu ? columns / 2 : columns;
    if (blocks && height % 128 != 0) continue;
    const std::int64_t cycles = tiled_cycles(s, columns);
    // Narrow tiles read more: they have to be worth it.
    if (best.cycles == 0 || cycles + cycles / 20 < best.cycles)
      best = {MatmulKernel::tiled, 256, columns, height, 1, 0, cycles};
  }
  return best;
}

/// In which order clusters take the tiles of y of a product of many rows. Tiles of kBand row tiles
/// lie one after the other, then those of the next columns (place_of()), so clusters that run at
/// once share rows of x and of W.
struct TileOrder {
  static constexpr int kBand = 8;
  int clusters;  ///< that run at once
  /// Tiles of so many columns take the depth from its beginning, those of as many behind them from
  /// its end, and so on; 0: all from the beginning. When clusters go on to the next columns, what
  /// the second-level cache still has of x then is what these begin with. The order of a sum
  /// depends on its column alone.
  int turn;

  bool operator==(const TileOrder&) const = default;
};

/// @param rows          of x
/// @param row_tiles     of any height: how sums are ordered does not depend on it
/// @param column_tiles  of all weights
constexpr TileOrder tile_order(std::int64_t rows, std::int64_t row_tiles, std::int64_t column_tiles,
                               std::int64_t most_clusters) {
  constexpr std::int64_t kHeight = 256;
  const std::int64_t tiles = row_tiles * column_tiles;
  TileOrder order = {static_cast<int>(std::min(tiles, most_clusters)), 0};
  const std::int64_t columns = most_clusters / TileOrder::kBand;  // of a band, at once
  if (columns == 0 || pieces_of(rows, kHeight) < TileOrder::kBand || column_tiles <= columns)
    return order;
  order.turn = static_cast<int>(columns);
  // Whole columns at once, where that takes no more turns: else some would begin where others end.
  const std::int64_t whole = columns * TileOrder::kBand;
  if (tiles > whole && pieces_of(tiles, whole) == pieces_of(tiles, most_clusters))
    order.clusters = static_cast<int>(whole);
  return order;
}

/// Calls f with every streamed plan that is thought of, for at most kMatmulStreamedRows rows.
template <class F>
constexpr void each_streamed_plan(const MatmulShape& s, const F& f) {
  const int rows = s.rows <= 64 ? 64 : s.rows <= 128 ? 128 : 256;
  std::int64_t outputs = 0;
  for (const std::int64_t n : s.outputs) outputs += n;
  for (const int at_once : {1, 3}) {
    for (const int columns : {32, 64, 96, 128, 176}) {
      // Registers, and copies enough under way in each block.
      constexpr int kFewestStages = 3;
      if (at_once > 1 &&
          (rows + columns > 192 || streamed_stages(rows, columns, at_once) < kFewestStages))
        continue;
      // Three blocks that copy x each, most of it beyond its end: 66 us in place of 51 for gate and
      // up of the 7B with 32 rows.
      constexpr std::int64_t kFewRows = 40;
      if (at_once > 1 && s.swiglu && s.rows <= kFewRows) continue;
      const int most = s.swiglu ? columns / 2 : columns;
      for (const int split : {1, 2}) {
        if (split > 1 && (s.swiglu || pieces_of(s.depth, kMatmulDepth) < 2 * split)) continue;
        if (split > 1 && columns > 128) continue;  // partial sums fit where the stages were
        // The full height, and the least with which the blocks take no more turns; a bit more
        // where tiles end with every W.
        const std::int64_t places = s.multiprocessors / split * at_once;
        const std::int64_t turns = pieces_of(matmul_tiles(s.outputs, most), places);
        const int even = static_cast<int>(pieces_of(pieces_of(outputs, turns * places), 4) * 4);
        for (const int height : {most, even, even + 4}) {
          if (height > most || height < 16) continue;
          MatmulPlan plan = {MatmulKernel::streamed, rows, columns, height, split, 0, 0};
          if (at_once > 1) plan.stages = streamed_stages(rows, columns, at_once);
          plan.cycles = streamed_cycles(s, plan, at_once);
          f(plan);
        }
      }
    }
  }
}

/// The plan with the fewest cycles. All sizes are positive.
constexpr MatmulPlan plan_matmul(const MatmulShape& s) {
  MatmulPlan best = plan_tiled(s);
  if (s.rows > kMatmulStreamedRows) return best;
  each_streamed_plan(s, [&](const MatmulPlan& plan) {
    if (plan.cycles < best.cycles) best = plan;
  });
  return best;
}

}  // namespace xlstm::ops::cuda
