// sLSTM on CUDA where its products may round h (SlstmArgs::product), in every size of head for
// which the bodies keep R somewhere else.

#include <gtest/gtest.h>

#include "cuda/slstm_problem.hpp"
#include "ops/cuda/slstm_cluster_plan.hpp"
#include "ops/cuda/slstm_grid_plan.hpp"
#include "ops/slstm.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

using Shape = SlstmShape;

std::vector<Shape> shapes() {
  const std::vector<int> lengths = {7, 1, 12, 3, 9, 2, 5, 11, 4, 8};  // more than a group of 8
  return {{3, 5, lengths},
          {2, 24, lengths},
          {2, 100, lengths},
          {1, 128, {6}},
          {2, 192, lengths, DType::f16},
          {1, 320, {3, 5}},
          {2, 400, {3, 27, 1}},
          {2, 513, {3, 2, 1, 2, 1, 9, 2, 1, 3}},
          {1, 768, {4, 2, 1, 5, 3, 2, 1, 1, 6, 2, 1, 3, 2, 1, 4, 2, 3, 2}},
          {1, 1024, {2, 19}}};
}

TEST(SlstmRounded, IsWithinTwiceTheNaiveError) {
  for (DType product : {DType::bf16, DType::f32}) {
    unsigned seed = 40;
    Errors h_errors, state_errors;
    for (const Shape& shape : shapes())
      for (DType weights : {shape.weights, DType::f32}) {
        Shape s = shape;
        s.weights = weights;
        if (weights == DType::f32 && product == DType::bf16) continue;
        RoundedProblem p(s, ++seed, product);
        const auto got = p.run_all();
        std::vector<double> want_after, after;
        std::vector<float> naive_after;
        const auto want = p.exact(&want_after);
        const auto naive = p.naive(&naive_after);
        for (const auto& state : got.after) after.insert(after.end(), state.begin(), state.end());
        h_errors.add({got.h.begin(), got.h.end()}, want, naive);
        state_errors.add(after, want_after, naive_after);
      }
    h_errors.expect_at_most_twice_naive("h");
    state_errors.expect_at_most_twice_naive("states");
  }
}

TEST(SlstmRounded, BatchesCutsRepeatsAndGraphsChangeNoBit) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape.dh);
    RoundedProblem p(shape, 7);
    const auto together = p.run_all();
    const int repeats = shape.dh < 100 || shape.dh == 192 ? 20 : 2;
    for (int i = 0; i < repeats; ++i) EXPECT_TRUE(p.run_all() == together) << i;
    EXPECT_TRUE(p.run_part(0, p.states(), 0, 1 << 20, 2) == together) << "graph";
    std::size_t at = 0;
    for (std::size_t s = 0; s < p.states().size(); ++s) {
      const int length = shape.lengths[s], cut = length / 2;
      if (s % 5 != 0) {
        at += static_cast<std::size_t>(length * p.width());
        continue;
      }
      auto whole = p.run_part(s, {p.states()[s]}, 0, length);
      EXPECT_EQ(whole.after[0], together.after[s]) << s;
      for (float value : whole.h) ASSERT_EQ(value, together.h[at++]) << s;
      if (cut == 0) continue;
      auto first = p.run_part(s, {p.states()[s]}, 0, cut);
      const auto second = p.run_part(s, first.after, cut, length);
      first.h.insert(first.h.end(), second.h.begin(), second.h.end());
      EXPECT_EQ(first.h, whole.h) << s;
      EXPECT_EQ(second.after, whole.after) << s;
    }
  }
}

TEST(SlstmRounded, ANullRecordIsTheZeroState) {
  RoundedProblem p({2, 24, {4, 5, 3}}, 8);
  auto states = p.states();
  std::fill(states[1].begin(), states[1].end(), 0.0F);
  const auto zero = p.run_part(0, states);
  const auto null = p.run_part(0, p.states(), 0, 1 << 20, 0, 1);
  EXPECT_EQ(null.h, zero.h);
  EXPECT_EQ(null.after[0], zero.after[0]);
  EXPECT_EQ(null.after[1], p.states()[1]);
  EXPECT_EQ(null.after[2], zero.after[2]);
}

TEST(SlstmClusterPlan, ShapesAloneDecide) {
  float number = 0;
  const auto plan = [&](std::int64_t dh, DType type, int parts = 1, int most = 16) {
    return cuda::SlstmClusterPlan(Tensor::dense(&number, type, {2, 4 * dh, dh}), parts, most);
  };
  for (std::int64_t dh = 1; dh <= 1024; ++dh)
    for (DType type : {DType::bf16, DType::f32})
      for (int parts : {1, 3})
        for (int most : {8, 16}) {
          const auto p = plan(dh, type, parts, most);
          if (!p.fits) continue;
          EXPECT_LE(p.blocks, most);
          EXPECT_LE(p.warps, cuda::SlstmClusterPlan::kMostWarps);
          EXPECT_LE(p.shared, cuda::SlstmClusterPlan::kMostShared);
          EXPECT_GE(p.warps * p.blocks, p.tiles) << dh;
          EXPECT_GE(p.columns * (type == DType::f32 ? 32 : 16), dh);
          EXPECT_EQ(p.columns, plan(dh, type, parts, 16).columns) << "the order of sums";
        }
  for (std::int64_t dh : {1, 24, 100, 128, 192, 320, 384}) {
    EXPECT_TRUE(plan(dh, DType::bf16).fits) << dh;
    EXPECT_TRUE(plan(dh, DType::bf16, 3).fits) << dh;
    EXPECT_TRUE(plan(dh, DType::f32).fits) << dh;
  }
  EXPECT_FALSE(plan(385, DType::bf16).fits);
  EXPECT_FALSE(plan(768, DType::f32).fits);
}

TEST(SlstmGridPlan, TakesWideHeadsWhoseProductsMayRound) {
  float number = 0;
  const std::vector<std::int32_t> ends(34);
  const std::vector<std::byte*> slots(33);
  const Batch batch{ends, slots};
  const auto plan = [&](std::int64_t dh, DType type = DType::bf16, DType product = DType::bf16,
                        int multiprocessors = 132) {
    return cuda::SlstmGridPlan(batch, Tensor::dense(&number, type, {2, 4 * dh, dh}), product,
                               multiprocessors);
  };
  for (std::int64_t dh = 385; dh <= 1024; ++dh)
    for (int multiprocessors : {64, 114, 132}) {
      const auto p = plan(dh, DType::bf16, DType::bf16, multiprocessors);
      EXPECT_TRUE(p.fits);
      EXPECT_GE(p.blocks * p.tiles * 4, dh);
      EXPECT_GE(p.teams, 1);
      EXPECT_LE(p.teams * p.blocks, multiprocessors);
      EXPECT_GE(p.pieces * 8 * 16, dh);
      EXPECT_EQ(p.pieces, plan(dh).pieces) << "the order of sums";
      EXPECT_EQ(p.items, 2 * 5);
      EXPECT_EQ(p.scratch(), plan(dh, DType::bf16, DType::bf16, 0).scratch());
      EXPECT_GE(p.scratch(), static_cast<std::size_t>(p.items * 8 * 8 * dh * 2));
    }
  EXPECT_EQ(plan(768).teams, 2);
  EXPECT_EQ(plan(512).teams, 4);
  EXPECT_EQ(plan(1024).teams, 2);
  EXPECT_FALSE(plan(384).fits);
  EXPECT_FALSE(plan(1025).fits);
  EXPECT_FALSE(plan(768, DType::f32).fits);
  EXPECT_FALSE(plan(768, DType::bf16, DType::f32).fits);
  EXPECT_EQ(plan(768, DType::f32).scratch(), 0U);
}

}  // namespace
}  // namespace xlstm::ops::test
