#include "ops/cuda/sm90/matmul_packed_tiled_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <tuple>
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

TEST(PackedTiledPlan, TilesThatNotAllWouldHaveAreShared) {
  for (const auto& [outputs, depth, swiglu] :
       {std::tuple{kQkvo, 4096, false}, {kUp, 4096, true}, {{4096}, 10944, false}})
    EXPECT_TRUE(plan_packed_tiled(shape(256, outputs, depth, swiglu)).stream_k);
  EXPECT_FALSE(plan_packed_tiled(shape(64, kQkvo, 4096)).stream_k);
  EXPECT_FALSE(plan_packed_tiled(shape(256, {256 * 66}, 4096)).stream_k);
  EXPECT_FALSE(plan_packed_tiled(shape(2048, kUp, 4096, true)).stream_k);
}

TEST(PackedTiledPlan, SharedTilesAreAsHighAsRowsNeed) {
  for (const auto& [rows, height] : {std::pair{129, 160},
                                     {160, 160},
                                     {192, 192},
                                     {224, 224},
                                     {256, 256},
                                     {320, 160},
                                     {384, 192},
                                     {448, 224},
                                     {512, 256},
                                     {672, 224}}) {
    const PackedTiledPlan plan = plan_packed_tiled(shape(rows, kQkvo, 4096));
    EXPECT_TRUE(plan.stream_k) << rows;
    EXPECT_EQ(plan.rows, height) << rows;
  }
}

// Every stage of every tile once; and who has a tile's first stage finds the others where it looks.
TEST(PackedTiledWork, ClustersShareAllStages) {
  for (const std::int64_t tiles : {1, 2, 16, 48, 65, 66, 67, 86, 131, 132, 133, 197, 688})
    for (const std::int64_t stages : {1, 3, 4, 7, 32, 86})
      for (const bool stream_k : {false, true})
        for (const std::int64_t most : {1, 2, 57, 66}) {
          SCOPED_TRACE(testing::Message() << tiles << " tiles of " << stages << ", " << stream_k
                                          << ", " << most << " clusters");
          const PackedTiledWork work(tiles, stages, stream_k, most);
          ASSERT_GE(work.clusters, 1);
          ASSERT_LE(work.clusters, most);
          std::vector<int> times(static_cast<std::size_t>(tiles * stages));
          // Of clusters: the piece that they make for another one, and whether it was taken.
          std::vector<PackedTiledWork::Piece> given(static_cast<std::size_t>(work.clusters));
          std::vector<int> taken(given.size());
          for (int c = 0; c < work.clusters; ++c) {
            PackedTiledWork::Turns turns = work.turns_of(c);
            PackedTiledWork::Piece piece = {};
            bool first = true;
            while (work.next<true>(turns, piece)) {
              ASSERT_LT(piece.begin, piece.end);
              ASSERT_LE(piece.end, stages);
              for (int k = piece.begin; k < piece.end; ++k)
                ++times[static_cast<std::size_t>(piece.tile * stages + k)];
              EXPECT_EQ(piece.begin > 0, first && work.gives(c));
              if (piece.begin > 0) given[static_cast<std::size_t>(c)] = piece;
              first = false;
            }
          }
          for (const int t : times) ASSERT_EQ(t, 1);
          for (int c = 0; c < work.clusters; ++c) {
            PackedTiledWork::Turns turns = work.turns_of(c);
            PackedTiledWork::Piece piece = {};
            while (work.next<true>(turns, piece)) {
              if (piece.begin > 0) continue;
              int end = piece.end;
              work.each_giver(piece, c, [&](int from) {
                const auto at = static_cast<std::size_t>(from);
                ++taken.at(at);
                EXPECT_EQ(given[at].tile, piece.tile);
                EXPECT_EQ(given[at].begin, end);
                end = given[at].end;
              });
              EXPECT_EQ(end, stages);
            }
          }
          for (int c = 0; c < work.clusters; ++c)
            EXPECT_EQ(taken[static_cast<std::size_t>(c)], work.gives(c) ? 1 : 0);
        }
}

TEST(PackedTiledWork, EveryTileHasAPlace) {
  for (const std::int64_t rows : {1, 2, 3, 4, 8, 9})
    for (const std::int64_t columns : {1, 16, 48, 86}) {
      const PackedTiledWork work(rows * columns, 32, true, 66, rows);
      std::vector<int> times(static_cast<std::size_t>(work.tiles));
      for (int tile = 0; tile < work.tiles; ++tile) {
        const int place = work.place(tile);
        ++times.at(static_cast<std::size_t>(place));
        EXPECT_EQ(place < work.shared, tile < work.shared);
      }
      for (const int t : times) ASSERT_EQ(t, 1) << rows << " x " << columns;
    }
  // 32 tiles for 66 clusters: the first half of them has the tiles of the first row.
  const PackedTiledWork work(32, 32, true, 66, 2);
  for (int tile = 0; tile < 16; ++tile) {
    EXPECT_EQ(work.place(tile), 2 * tile);
    EXPECT_EQ(work.place(16 + tile), 2 * tile + 1);
  }
}

TEST(PackedTiledPlan, EveryShapeHasAPlan) {
  for (const std::int64_t rows : {1, 128, 129, 257, 1000, 2048})
    for (const std::vector<std::int64_t>& outputs : {kQkvo, kUp, {8}})
      for (const std::int64_t depth : {8, 128, 10944})
        for (const bool swiglu : {false, true}) {
          const MatmulShape s = shape(rows, outputs, depth, swiglu);
          const PackedTiledPlan plan = plan_packed_tiled(s);
          const auto among = [&](const auto& heights) {
            return std::ranges::find(heights, plan.rows) != std::end(heights);
          };
          EXPECT_TRUE(plan.stream_k ? among(kStreamKRows) : among(kPackedTiledRows));
          EXPECT_EQ(plan.rows % kPackedTiledPiece, 0);
          EXPECT_EQ(plan.cycles, packed_tiled_cycles(s, plan));
        }
}

}  // namespace
}  // namespace xlstm::ops::cuda
