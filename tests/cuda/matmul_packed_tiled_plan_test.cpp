#include "ops/cuda/sm90/matmul_packed_tiled_plan.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace xlstm::ops::cuda {
namespace {

const std::vector<std::int64_t> kQkvo = {2048, 2048, 4096, 4096}, kUp = {10944};

MatmulShape shape(std::int64_t rows, const std::vector<std::int64_t>& outputs, std::int64_t depth,
                  bool swiglu = false) {
  return {
      .rows = rows, .outputs = outputs, .depth = depth, .swiglu = swiglu, .multiprocessors = 132};
}

TEST(PackedTiledPlan, TilesEndWithEachWeight) {
  EXPECT_EQ(packed_tiled_columns(shape(1, {8}, 8)), 1);
  EXPECT_EQ(packed_tiled_columns(shape(1, kQkvo, 8)), 48);
  EXPECT_EQ(packed_tiled_columns(shape(1, {8, 264, 256}, 8)), 4);
  EXPECT_EQ(packed_tiled_columns(shape(1, {128}, 8, true)), 1);
  EXPECT_EQ(packed_tiled_columns(shape(1, {136}, 8, true)), 2);
}

TEST(PackedTiledPlan, ManyRowsTakeWideTiles) {
  EXPECT_EQ(plan_packed_tiled(shape(16384, kQkvo, 4096)).rows, 256);
  EXPECT_EQ(plan_packed_tiled(shape(16384, kUp, 4096, true)).rows, 256);
}

TEST(PackedTiledPlan, FewRowsTakeTilesThatTheyFill) {
  EXPECT_EQ(plan_packed_tiled(shape(100, {4096}, 4096)).rows, 128);
  EXPECT_EQ(plan_packed_tiled(shape(192, {50304}, 4096)).rows, 192);
}

TEST(PackedTiledPlan, EveryShapeHasAPlan) {
  for (const std::int64_t rows : {1, 128, 129, 257, 1000, 2048})
    for (const std::vector<std::int64_t>& outputs : {kQkvo, kUp, {8}})
      for (const std::int64_t depth : {8, 128, 10944})
        for (const bool swiglu : {false, true}) {
          const MatmulShape s = shape(rows, outputs, depth, swiglu);
          const PackedTiledPlan plan = plan_packed_tiled(s);
          EXPECT_TRUE(plan.rows == 128 || plan.rows == 192 || plan.rows == 256);
          EXPECT_EQ(plan.rows % kPackedTiledPiece, 0);
          EXPECT_EQ(plan.cycles, packed_tiled_cycles(s, plan.rows));
        }
}

}  // namespace
}  // namespace xlstm::ops::cuda
