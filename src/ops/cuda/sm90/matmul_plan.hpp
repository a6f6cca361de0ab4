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
  int columns;  ///< of the multiplied tile: 32, 64, 96, 128, 176 (streamed); 128, 192, 256 (tiled)
  int height;   ///< rows of W of a tile; with SwiGLU, of each W
  int split;    ///< blocks that share the depth of a tile: 1 or 2
  int stages;   ///< in shared memory at most; 0: as many as there is room for (streamed)
  int ahead;    ///< more stages of W that come into the cache before x is there (streamed)
  std::int64_t cycles;  ///< what it should take

  bool operator==(const MatmulPlan&) const = default;
};

struct MatmulShape {
  std::int64_t rows;                      ///< of x
  std::span<const std::int64_t> outputs;  ///< rows of each W; the first alone with SwiGLU
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

/// Cycles of the tiled kernel: tensor cores, and what they wait for.
constexpr std::int64_t tiled_cycles(const MatmulShape& s, int columns) {
  const int height = s.swiglu ? columns / 2 : columns;
  const std::int64_t tiles = pieces_of(s.rows, 256) * matmul_tiles(s.outputs, height);
  const std::int64_t turns = pieces_of(tiles, s.multiprocessors / 2);
  const std::int64_t stage = 128 + columns * 4;
  return turns * (pieces_of(s.depth, kMatmulDepth) * stage + 2000) + 2000;
}

/// Cycles of the streamed kernel: the slowest of device memory (20 bytes a cycle and
/// multiprocessor), second-level cache (40) and tensor cores, and what comes before and after.
constexpr std::int64_t streamed_cycles(const MatmulShape& s, const MatmulPlan& p) {
  const std::int64_t tiles = matmul_tiles(s.outputs, p.height);
  const std::int64_t turns = pieces_of(tiles, s.multiprocessors / p.split);
  const std::int64_t stages = pieces_of(pieces_of(s.depth, kMatmulDepth), p.split);
  const std::int64_t w = stages * p.height * (s.swiglu ? 2 : 1) * 128;
  const std::int64_t x = stages * p.rows * 128;
  const std::int64_t products =
      stages * (kMatmulDepth / 16) * (p.rows / 64) * std::max(p.columns / 2, 16 + p.columns / 4);
  const std::int64_t sums = std::int64_t{4} * p.rows * p.columns;
  const std::int64_t exchange = p.split == 1 ? 0 : 800 + sums * (p.split - 1) / p.split / 24;
  return turns * (std::max({w / 20, (w + x) / 40, products}) + 2000 + exchange + sums / 48);
}

/// The plan with the fewest cycles. All sizes are positive.
constexpr MatmulPlan plan_matmul(const MatmulShape& s) {
  MatmulPlan best = {};
  for (const int columns : {256, 192, 128}) {
    const int height = s.swiglu ? columns / 2 : columns;
    const std::int64_t cycles = tiled_cycles(s, columns);
    if (best.cycles == 0 || cycles < best.cycles)
      best = {MatmulKernel::tiled, 256, columns, height, 1, 0, 0, cycles};
  }
  if (s.rows > kMatmulStreamedRows) return best;
  const int rows = s.rows <= 64 ? 64 : s.rows <= 128 ? 128 : 256;
  for (const int columns : {32, 64, 96, 128, 176}) {
    const int most = s.swiglu ? columns / 2 : columns;
    for (int height = most; height >= 16 && height > most / 2; height -= 4) {
      for (const int split : {1, 2}) {
        if (split > 1 && (s.swiglu || pieces_of(s.depth, kMatmulDepth) < 2 * split)) continue;
        if (split > 1 && columns > 128) continue;  // partial sums fit where the stages were
        MatmulPlan plan = {MatmulKernel::streamed, rows, columns, height, split, 0, 0, 0};
        plan.cycles = streamed_cycles(s, plan);
        if (plan.cycles < best.cycles) best = plan;
      }
    }
  }
  return best;
}

}  // namespace xlstm::ops::cuda
