#include "ops/cuda/sm90/matmul_plan.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace xlstm::ops::cuda {
namespace {

constexpr int kMultiprocessors = 132;

MatmulPlan plan(std::int64_t rows, const std::vector<std::int64_t>& outputs, std::int64_t depth,
                bool swiglu = false) {
  return plan_matmul({.rows = rows,
                      .outputs = outputs,
                      .depth = depth,
                      .swiglu = swiglu,
                      .multiprocessors = kMultiprocessors});
}

const std::vector<std::int64_t> kQkvo = {2048, 2048, 4096, 4096}, kHidden = {4096}, kUp = {10944};

TEST(MatmulPlan, TilesHoldWhatTheyAreSaidToHold) {
  for (const std::int64_t rows : {1, 17, 64, 65, 128, 129, 256, 257, 2048, 100000})
    for (const std::vector<std::int64_t>& outputs :
         {kQkvo, kHidden, kUp, {1}, {7, 64, 50304}, {128}})
      for (const std::int64_t depth : {8, 64, 72, 4096, 10944})
        for (const bool swiglu : {false, true}) {
          const MatmulPlan p = plan(rows, outputs, depth, swiglu);
          EXPECT_LE(p.height, swiglu ? p.columns / 2 : p.columns);
          EXPECT_EQ(p.height % 4, 0);
          EXPECT_TRUE(p.split == 1 || (p.split == 2 && !swiglu && depth > 64));
          if (p.kernel == MatmulKernel::streamed) {
            EXPECT_GE(p.rows, rows);
            EXPECT_TRUE(p.rows == 64 || p.rows == 128 || p.rows == 256);
            EXPECT_TRUE(p.columns == 32 || p.columns == 64 || p.columns == 96 || p.columns == 128 ||
                        p.columns == 176);
          } else {
            EXPECT_TRUE(p.columns == 128 || p.columns == 192 || p.columns == 256);
            EXPECT_EQ(p.height, swiglu ? p.columns / 2 : p.columns);
          }
        }
}

TEST(MatmulPlan, UpTo64RowsHaveOnePlan) {
  for (const std::vector<std::int64_t>& outputs : {kQkvo, kHidden, kUp})
    for (std::int64_t rows = 2; rows <= 64; ++rows)
      EXPECT_EQ(plan(rows, outputs, 4096), plan(1, outputs, 4096));
}

// Sums have one order with both plans.
TEST(MatmulPlan, AThirdOfATileOfRowsLeavesOneBlockToAMultiprocessor) {
  for (const std::int64_t rows : {17, 24, 32, 40}) {
    EXPECT_EQ(plan(rows, kUp, 4096, true).stages, 0) << rows;
    EXPECT_EQ(plan(rows, kUp, 4096, true).split, 1);
  }
  EXPECT_GT(plan(64, kUp, 4096, true).stages, 0);
  EXPECT_EQ(plan(64, kUp, 4096, true).split, 1);
}

// One block on each, or three.
TEST(MatmulPlan, FewRowsKeepEveryMultiprocessorBusy) {
  for (const std::int64_t rows : {64, 128}) {
    for (const std::vector<std::int64_t>& outputs : {kQkvo, kHidden, kUp}) {
      const bool swiglu = outputs == kUp;
      const MatmulPlan p = plan(rows, outputs, 4096, swiglu);
      const std::int64_t blocks = matmul_tiles(outputs, p.height) * p.split;
      const std::int64_t places = (p.stages == 0 ? 1 : 3) * kMultiprocessors;
      EXPECT_EQ(p.kernel, MatmulKernel::streamed);
      EXPECT_LE(blocks, places);
      EXPECT_GE(blocks, places * 95 / 100);
    }
  }
}

TEST(MatmulPlan, StagesFitIntoSharedMemory) {
  for (const std::int64_t rows : {64, 128})
    for (const std::vector<std::int64_t>& outputs : {kQkvo, kHidden, kUp, {50304}}) {
      const MatmulPlan p = plan(rows, outputs, 4096, outputs == kUp);
      if (p.stages == 0) continue;
      EXPECT_GE(p.stages, 3);
      EXPECT_LE(3 * (2048 + p.stages * (p.rows + p.columns) * 128), 228 << 10);
    }
  EXPECT_EQ(plan(64, {50304}, 4096).stages, 3);
}

TEST(MatmulPlan, ManyRowsTakeWideTiles) {
  for (const std::int64_t rows : {2048, 8192, 16384})
    for (const std::vector<std::int64_t>& outputs : {kQkvo, kHidden, kUp})
      EXPECT_EQ(plan(rows, outputs, 4096, outputs == kUp).kernel, MatmulKernel::tiled);
  EXPECT_EQ(plan(8192, kQkvo, 4096).columns, 256);
  EXPECT_EQ(plan(512, kHidden, 4096).columns, 128);  // 64 clusters instead of 32
}

TEST(MatmulPlan, ClustersTakeWholeColumnsOfABandWhereThatTakesNoMoreTurns) {
  EXPECT_EQ(tile_order(8192, 32, 48, 66), (TileOrder{64, 8}));  // q, k, v, o: 24 turns
  EXPECT_EQ(tile_order(8192, 32, 16, 66), (TileOrder{64, 8}));  // out, down: 8
  EXPECT_EQ(tile_order(8192, 32, 86, 66), (TileOrder{66, 8}));  // gate and up: 42, not 43
  EXPECT_EQ(tile_order(8192, 32, 8, 66), (TileOrder{66, 0}));   // all columns at once
  EXPECT_EQ(tile_order(2048, 8, 7, 66), (TileOrder{56, 0}));
  EXPECT_EQ(tile_order(1024, 4, 48, 66), (TileOrder{66, 0}));  // whose x stays in the cache
  EXPECT_EQ(tile_order(8192, 32, 48, 4), (TileOrder{4, 0}));
  for (const std::int64_t rows : {1, 300, 1793, 2048, 8192, 100000})
    for (const std::int64_t columns : {1, 2, 9, 16, 43, 197})
      for (const std::int64_t most : {1, 4, 8, 39, 57, 66})
        for (const std::int64_t height : {128, 192, 256}) {
          const std::int64_t row_tiles = pieces_of(rows, height);
          const TileOrder order = tile_order(rows, row_tiles, columns, most);
          EXPECT_GE(order.clusters, 1);
          EXPECT_LE(order.clusters, most);
          EXPECT_EQ(pieces_of(row_tiles * columns, order.clusters),
                    pieces_of(row_tiles * columns, most));
          EXPECT_EQ(order.turn, tile_order(rows, pieces_of(rows, 256), columns, most).turn);
        }
}

}  // namespace
}  // namespace xlstm::ops::cuda
