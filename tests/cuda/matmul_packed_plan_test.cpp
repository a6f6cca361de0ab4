#include "ops/cuda/sm90/matmul_packed_plan.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace xlstm::ops::cuda {
namespace {

PackedPlan plan(std::int64_t rows, const std::vector<std::int64_t>& outputs, std::int64_t depth,
                bool swiglu = false) {
  return plan_packed(
      {.rows = rows, .outputs = outputs, .depth = depth, .swiglu = swiglu, .multiprocessors = 132});
}

const std::vector<std::int64_t> kQkvo = {2048, 2048, 4096, 4096}, kHidden = {4096}, kUp = {10944},
                                kHead = {50304};

TEST(PackedPlan, BlocksHoldWhatTheyAreSaidToHold) {
  for (const std::int64_t rows : {1, 17, 64, 65, 128, 129, 300, 512})
    for (const std::vector<std::int64_t>& outputs : {kQkvo, kHidden, kUp, kHead, {8}, {8, 64, 512}})
      for (const std::int64_t depth : {8, 128, 136, 1024, 4096, 10944})
        for (const bool swiglu : {false, true}) {
          const MatmulShape shape{rows, outputs, depth, swiglu, 132};
          each_packed_plan(shape, [&](const PackedPlan& p) {
            EXPECT_EQ(p.rows, rows <= 64 ? 64 : 128);
            EXPECT_GE(p.groups(swiglu), 1);
            EXPECT_LE(p.groups(swiglu) * p.turns(swiglu), 3);
            EXPECT_LE(p.tiles(swiglu), 8 * p.groups(swiglu));
            EXPECT_LE(p.split, pieces_of(depth, 128));
            const bool shares = p.split * p.turns(swiglu) > 1;
            EXPECT_TRUE(!shares || packed_jobs(shape, p) * p.split <= 132);
            const PackedRing ring(p, swiglu);
            EXPECT_GE(ring.w_stages, 2);
            EXPECT_GE(ring.x_stages, 2);
            EXPECT_EQ(ring.w_stages % p.turns(swiglu), 0);
            EXPECT_EQ(ring.x_stages % p.turns(swiglu), 0);
            EXPECT_LE(ring.w_stages, kPackedMostStages);
            EXPECT_LE(ring.x_stages, kPackedMostStages);
            EXPECT_EQ(ring.w_bytes % 128, 0);
            EXPECT_LE(ring.bytes, std::size_t{208} << 10);
          });
        }
}

TEST(PackedPlan, UpTo64RowsHaveOnePlan) {
  for (const std::vector<std::int64_t>& outputs : {kQkvo, kHidden, kUp, kHead})
    for (std::int64_t rows = 2; rows <= 64; ++rows)
      EXPECT_EQ(plan(rows, outputs, 4096), plan(1, outputs, 4096));
}

TEST(PackedPlan, ManyRowsHaveNone) {
  EXPECT_EQ(plan(kPackedRows + 1, kQkvo, 4096).rows, 0);
  EXPECT_EQ(plan(2048, kHead, 4096).rows, 0);
  EXPECT_EQ(plan(256, kHead, 4096).rows, 0) << "its tiles fill the card";
}

TEST(PackedPlan, ServesTheShapesOfThe7bModel) {
  for (const std::int64_t rows : {64, 128}) {
    EXPECT_GT(plan(rows, kQkvo, 4096).rows, 0);
    EXPECT_GT(plan(rows, kUp, 4096, true).rows, 0);
    EXPECT_GT(plan(rows, kHidden, 10944).rows, 0);
    EXPECT_GT(plan(rows, kHead, 4096).rows, 0);
    EXPECT_GT(plan(rows, kHidden, 4096).rows, 0);
  }
}

}  // namespace
}  // namespace xlstm::ops::cuda
