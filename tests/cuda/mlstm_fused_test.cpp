// The fused mLSTM kernel: how it is cut, and on a card that has it the op beside the oracle where
// sequences are cut into segments. mlstm_tensor_test.cpp has its widths and gate regimes.

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "cuda/mlstm_bounds.hpp"
#include "cuda/mlstm_call.hpp"
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/mlstm_fused_plan.hpp"

namespace xlstm::ops::test {
namespace {

using Plan = cuda::sm90::MlstmFusedPlan;

/// Tensors of shapes alone.
struct Shapes {
  Shapes(int heads, int dqk, int dv, std::vector<std::int32_t> lengths, DType type = DType::bf16) {
    for (std::int32_t length : lengths) offsets.push_back(offsets.back() + length);
    slots.resize(lengths.size());
    const auto shaped = [&](DType dtype, std::int64_t width) {
      return Tensor::dense(nullptr, dtype, {offsets.back(), width});
    };
    q = shaped(type, heads * dqk);
    v = shaped(type, heads * dv);
    gates = shaped(DType::f32, heads);
  }
  MlstmArgs args() const {
    return {
        .q = q, .k = q, .v = v, .i = gates, .log_f = gates, .batch = batch, .state = {}, .h = v};
  }

  std::vector<std::int32_t> offsets{0};
  std::vector<std::byte*> slots;
  Tensor q, v, gates;
  Batch batch{offsets, slots};
};

Plan plan_of(int heads, int dqk, int dv, std::vector<std::int32_t> lengths) {
  Shapes shapes(heads, dqk, dv, std::move(lengths));
  shapes.batch = {shapes.offsets, shapes.slots};
  return Plan(shapes.args());
}

TEST(MlstmFusedPlan, CutsFewLongSequences) {
  EXPECT_EQ(plan_of(8, 256, 512, {2048, 2048, 2048, 2048}).segments, 1);  // 128 blocks
  const Plan one = plan_of(8, 256, 512, {8192});
  EXPECT_EQ(one.segments, 5);
  // The first takes as long as the states of another one. Of the others, later ones have fewer
  // chunks, since they add up more states.
  EXPECT_EQ(one.cuts.begin_of(1), 5);
  EXPECT_EQ(one.cuts.begin_of(2), 5 + 32);
  EXPECT_EQ(one.cuts.begin_of(3), 5 + 32 + 32);
  EXPECT_EQ(one.cuts.begin_of(4), 5 + 32 + 32 + 31);
  EXPECT_EQ(one.blocks(4), 128);
  EXPECT_EQ(plan_of(2, 64, 512, {3600, 300, 65, 1}).cuts.fewer, 1);
  // Too short for that.
  const Plan shorter = plan_of(8, 256, 512, {2048});
  EXPECT_EQ(shorter.segments, 5);
  for (int segment = 1; segment < 5; ++segment)
    EXPECT_EQ(shorter.cuts.begin_of(segment), 1 + 8 * (segment - 1));
  EXPECT_EQ(plan_of(8, 256, 512, {32768, 32768}).segments, 3);
  EXPECT_EQ(plan_of(8, 256, 512, {640}).segments, 1);  // too short
  EXPECT_EQ(plan_of(8, 256, 512, {704}).segments, 4);
  EXPECT_EQ(plan_of(1, 64, 64, {100000}).segments, Plan::kMaxSegments);
}

// A head of more than 256 keys is cut like two.
TEST(MlstmFusedPlan, PartsOfHeadsCountAsHeads) {
  const Plan whole = plan_of(8, 256, 512, {8192}), parts = plan_of(4, 512, 512, {8192});
  EXPECT_EQ(whole.parts, 1);
  EXPECT_EQ(whole.num, 0U);
  EXPECT_EQ(parts.parts, 2);
  EXPECT_EQ(parts.heads, 4);
  EXPECT_EQ(parts.dqk, 256);
  EXPECT_EQ(parts.segments, whole.segments);
  EXPECT_EQ(parts.cuts.begin_of(2), whole.cuts.begin_of(2));
  EXPECT_EQ(parts.blocks(4), whole.blocks(4));
  EXPECT_EQ(plan_of(4, 272, 512, {8192}).dqk, 136);
  EXPECT_EQ(plan_of(4, 272, 512, {8192}).padded_dqk, 256);
  EXPECT_FALSE(plan_of(2, 512, 128, {64}).own_gates);
}

// Every chunk of every sequence is in exactly one segment, and none begins behind the longest.
TEST(MlstmFusedPlan, SegmentsCoverTheLongest) {
  for (std::int32_t length : {1, 64, 65, 255, 256, 257, 641, 1000, 2048, 3600, 5000, 65536})
    for (int heads : {1, 3, 8, 32}) {
      const Plan plan = plan_of(heads, 128, 256, {length, 17});
      const std::int64_t chunks = (plan.longest + Plan::kChunk - 1) / Plan::kChunk;
      const auto segments = static_cast<int>(plan.segments);
      EXPECT_LE(plan.segments, Plan::kMaxSegments);
      EXPECT_EQ(plan.cuts.begin_of(0), 0);
      for (int segment = 0; segment < segments; ++segment)
        EXPECT_LT(plan.cuts.begin_of(segment), plan.cuts.begin_of(segment + 1));
      EXPECT_GE(plan.cuts.begin_of(segments), chunks);
      EXPECT_LT(plan.cuts.begin_of(segments - 1), std::max<std::int64_t>(1, chunks));
      EXPECT_EQ(plan.segments == 1, plan.c == 0);
    }
}

TEST(MlstmFusedPlan, ScratchMemoryIsBounded) {
  EXPECT_LT(plan_of(8, 256, 512, {16384}).bytes() >> 20, 28U);  // four states
  EXPECT_LT(plan_of(8, 256, 512, {8192, 8192}).bytes() >> 20, 28U);
  EXPECT_LT(plan_of(8, 256, 512, std::vector<std::int32_t>(64, 256)).bytes() >> 20, 8U);
  // Sequences of one token have a place for a chunk, and no segments are made for them.
  std::vector<std::int32_t> lengths(200, 1);
  lengths.push_back(100);
  const Plan mixed = plan_of(8, 256, 512, lengths);
  EXPECT_EQ(mixed.longest, 100);
  EXPECT_TRUE(mixed.has_steps);
  EXPECT_EQ(mixed.segments, 1);
  EXPECT_LT(mixed.bytes() >> 20, 6U);
  // Parts leave floats of num, some more of them than q, k, v and h have bytes.
  for (const auto& lengths_of_parts :
       {std::vector<std::int32_t>{16384}, lengths, std::vector<std::int32_t>(8, 2048)}) {
    const Plan parts = plan_of(4, 512, 512, lengths_of_parts);
    const std::int64_t tokens =
        std::accumulate(lengths_of_parts.begin(), lengths_of_parts.end(), std::int64_t{0});
    const auto sequences = static_cast<std::int64_t>(lengths_of_parts.size());
    const std::int64_t num = 2 * 4 * 512 * 4 * (tokens + 8 * sequences);
    EXPECT_LT(static_cast<std::int64_t>(parts.bytes()) - num, std::int64_t{32} << 20);
  }
}

/// Whether each piece of so many tokens of each sequence has a place of its own among `all`.
void expect_own_places(const std::vector<std::int32_t>& lengths, std::int64_t piece,
                       std::int64_t all) {
  std::int64_t token = 0, free = 0;
  for (std::size_t s = 0; s < lengths.size(); token += lengths[s], ++s) {
    const std::int64_t first = token / piece + static_cast<std::int64_t>(s);
    EXPECT_GE(first, free);
    free = first + (lengths[s] + piece - 1) / piece;
  }
  EXPECT_LE(free, all);
}

TEST(MlstmFusedPlan, ChunksHavePlacesOfTheirOwn) {
  const std::vector<std::int32_t> lengths{1, 64, 65, 1, 1, 127, 63, 200, 2};
  expect_own_places(lengths, Plan::kChunk, plan_of(1, 64, 64, lengths).all_chunks);
}

TEST(MlstmFusedPlan, StripsHavePlacesOfTheirOwn) {
  const std::vector<std::int32_t> lengths{1, 64, 65, 1, 1, 127, 63, 7, 8, 9, 15, 2, 16, 200, 2};
  expect_own_places(lengths, Plan::kStrip, plan_of(1, 320, 64, lengths).strips);
}

TEST(MlstmFusedPlan, GatesOfAChunkHaveAWarp) {
  for (std::int32_t length : {2, 257, 2048, 8192, 100000}) {
    const Plan plan = plan_of(8, 256, 512, {length, 3});
    const std::int64_t chunks = (length + Plan::kChunk - 1) / Plan::kChunk;
    const std::int64_t warps = plan.gate_cluster * plan.gate_warps;
    EXPECT_GE(warps, std::min(chunks, Plan::kMostGateWarps));
    EXPECT_LE(plan.gate_warps, Plan::kMostGateWarps);
    EXPECT_LE(warps, 2 * chunks + Plan::kMostGateCluster);
    // Beside them others of the card's multiprocessors begin with the first chunks.
    EXPECT_LE(2 * 8 * plan.gate_cluster, Plan::kMultiprocessors);
  }
  EXPECT_EQ(plan_of(8, 256, 512, {2048}).gate_cluster, 4);
  EXPECT_EQ(plan_of(8, 256, 512, {8192}).gate_cluster, 8);
  EXPECT_EQ(plan_of(8, 256, 512, {32768, 32768}).gate_cluster, 4);
}

// Whose clusters have all columns of a head; a block for each multiprocessor at most.
TEST(MlstmFusedPlan, BlocksOfShortSequencesMakeTheirGates) {
  const Plan one = plan_of(8, 256, 512, {256});
  EXPECT_TRUE(one.own_gates);
  EXPECT_EQ(one.cluster, 4);
  EXPECT_EQ(plan_of(2, 64, 64, {2, 17, 1}).cluster, 1);
  Shapes shapes(8, 256, 512, {256});
  shapes.batch = {shapes.offsets, shapes.slots};
  MlstmArgs saves = shapes.args();
  saves.saved.border = 128;
  EXPECT_FALSE(Plan(saves).own_gates);
  for (const Plan& plan : {plan_of(8, 256, 512, {257}), plan_of(8, 256, 512, {64, 64, 64, 64, 64}),
                           plan_of(2, 64, 384, {64})}) {
    EXPECT_FALSE(plan.own_gates);
    EXPECT_LE(plan.cluster, 2);
  }
}

TEST(MlstmFusedPlan, ServesWhatTheKernelHas) {
  const auto serves = [](int dqk, int dv, std::int32_t length, DType type = DType::bf16) {
    Shapes shapes(2, dqk, dv, {length}, type);
    shapes.batch = {shapes.offsets, shapes.slots};
    return Plan::serves(shapes.args());
  };
  EXPECT_TRUE(serves(256, 512, 64));
  EXPECT_TRUE(serves(24, 40, 64));
  EXPECT_FALSE(serves(256, 520, 64));
  EXPECT_TRUE(serves(272, 40, 64));
  EXPECT_TRUE(serves(512, 512, 64));
  EXPECT_FALSE(serves(264, 512, 64));  // halves of it are not made of whole 16 bytes
  EXPECT_FALSE(serves(528, 512, 64));
  EXPECT_FALSE(serves(1024, 64, 64));
  EXPECT_FALSE(serves(20, 40, 64));
  EXPECT_FALSE(serves(256, 512, 1));
  EXPECT_FALSE(serves(256, 512, 64, DType::f32));
}

TEST(CudaMlstmFused, SegmentsAndClustersMatchTheOracle) {
  if (test_device().is_cpu() || cuda::level(test_device()) != cuda::Level::sm90)
    GTEST_SKIP() << "no kernel of compute capability 9.0";
  for (MlstmShape shape :
       {MlstmShape{1, 256, 512}, MlstmShape{2, 128, 256}, MlstmShape{1, 64, 64},
        MlstmShape{2, 64, 512}, MlstmShape{1, 512, 512}, MlstmShape{2, 272, 128}}) {
    std::vector<std::int32_t> lengths{1600, 300, 65, 1};
    if (shape.dqk == 64 && shape.dv == 512) {  // whose segments differ
      lengths[0] = 3600;
      EXPECT_EQ(plan_of(shape.heads, shape.dqk, shape.dv, lengths).cuts.fewer, 1);
    }
    MlstmCall call(shape, lengths, MlstmGate::exponential, 7, DType::bf16, Regime::typical, true);
    call.has_record[1] = false;
    call.run();
    expect_results_near(call);
    const auto h = call.h_out.bytes();
    const auto records = call.records;
    for (int turn = 0; turn < 3; ++turn) {
      call.run();
      EXPECT_EQ(call.h_out.bytes(), h);
      EXPECT_EQ(call.records, records);
    }
  }
}

// Blocks make their own gates here, for one to four chunks, where heads are not in parts.
TEST(CudaMlstmFused, ShortSequencesMatchTheOracle) {
  if (test_device().is_cpu() || cuda::level(test_device()) != cuda::Level::sm90)
    GTEST_SKIP() << "no kernel of compute capability 9.0";
  for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
    for (const MlstmShape shape :
         {MlstmShape{2, 256, 512}, MlstmShape{1, 128, 256}, MlstmShape{3, 64, 64},
          MlstmShape{1, 200, 384}, MlstmShape{1, 512, 512}, MlstmShape{2, 320, 40}}) {
      SCOPED_TRACE(std::to_string(shape.dqk) + " x " + std::to_string(shape.dv));
      MlstmCall call(shape, {256, 130, 64, 1, 2, 192}, gate, 9, DType::bf16, Regime::typical, true);
      call.has_record[2] = false;
      call.run();
      expect_results_near(call);
      const auto h = call.h_out.bytes();
      const auto records = call.records;
      for (int turn = 0; turn < 3; ++turn) {
        call.run();
        EXPECT_EQ(call.h_out.bytes(), h);
        EXPECT_EQ(call.records, records);
      }
    }
}

// More chunks than the kernel of the gates has warps for: of a cluster of eight blocks, and, where
// there are many heads, of one block.
TEST(CudaMlstmFused, LongSequencesMatchTheOracle) {
  if (test_device().is_cpu() || cuda::level(test_device()) != cuda::Level::sm90)
    GTEST_SKIP() << "no kernel of compute capability 9.0";
  const auto matches = [](const MlstmShape& shape, const std::vector<std::int32_t>& lengths) {
    const Plan plan = plan_of(shape.heads, shape.dqk, shape.dv, lengths);
    EXPECT_LT(plan.gate_cluster * plan.gate_warps * Plan::kChunk, plan.longest);
    MlstmCall call(shape, lengths, MlstmGate::exponential, 10, DType::bf16, Regime::typical, true);
    call.run();
    expect_results_near(call);
  };
  matches({1, 64, 64}, {9000});
  matches({1, 256, 512}, {9000});
  matches({80, 8, 16}, {1200, 70});
}

// What a segment begins with leaves out the states of which nothing is left: all of them, some, or
// those of one head.
TEST(CudaMlstmFused, ForgottenStatesMatchTheOracle) {
  if (test_device().is_cpu() || cuda::level(test_device()) != cuda::Level::sm90)
    GTEST_SKIP() << "no kernel of compute capability 9.0";
  const std::vector<int> lengths{1600, 700};
  for (const MlstmShape shape : {MlstmShape{2, 64, 128}, MlstmShape{1, 512, 128}}) {
    const Plan plan = plan_of(shape.heads, shape.dqk, shape.dv, lengths);
    ASSERT_GT(plan.segments, 4);
    for (const int every : {100, 500, 1100})
      for (const bool by_a_large_gate : {false, true}) {
        MlstmCall call(shape, lengths, MlstmGate::exponential, 13, DType::bf16, Regime::typical,
                       true);
        float rise = 0;
        for (int t = every; t < lengths[0] + lengths[1]; t += every) {
          if (by_a_large_gate)
            call.i.set(t, 0, rise += 45);
          else
            call.log_f.set(t, 0, -45);
        }
        call.run();
        expect_results_near(call);
      }
  }
}

TEST(CudaMlstmFused, NanStaysInItsSequenceAndHead) {
  if (test_device().is_cpu() || cuda::level(test_device()) != cuda::Level::sm90)
    GTEST_SKIP() << "no kernel of compute capability 9.0";
  for (const MlstmShape shape : {MlstmShape{2, 64, 128}, MlstmShape{2, 288, 128}}) {
    MlstmCall call(shape, {70, 200, 90}, MlstmGate::exponential, 8, DType::bf16, Regime::typical,
                   true);
    call.run();
    const auto clean = call.h_out.values();
    for (int row : {70, 150}) {  // also the first behind the tail of another sequence
      call.v.set(row, shape.dv + 3, NAN);
      call.k.set(row, shape.dqk + 3, NAN);
      call.run();
      const auto got = call.h_out.values();
      for (int t = 0; t < 360; ++t)
        for (int x = 0; x < 2 * shape.dv; ++x) {
          const auto at = static_cast<std::size_t>(t * 2 * shape.dv + x);
          if (t < 70 || t >= 270 || x < shape.dv) {
            EXPECT_EQ(got[at], clean[at]) << t << " " << x;
          }
        }
    }
  }
}

}  // namespace
}  // namespace xlstm::ops::test
