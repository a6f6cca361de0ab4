// The chunkwise mLSTM cell of bf16 numbers on tensor cores, beside the oracle in double.
// mlstm_regimes_test.cpp has more shapes in every regime of the gates.

#include <gtest/gtest.h>

#include <cmath>

#include "cuda/mlstm_bounds.hpp"
#include "cuda/mlstm_call.hpp"
#include "cuda/norm_error.hpp"
#include "ops/cuda/level.hpp"

namespace xlstm::ops::test {
namespace {

void expect_near_the_oracle(MlstmCall& call, const MlstmBounds& bounds = {}) {
  call.run();
  EXPECT_TRUE(call.on_tensor_cores);
  expect_results_near(call, bounds);
}

void expect_every_regime(MlstmShape shape, const std::vector<int>& lengths) {
  for (MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
    for (Regime regime : kRegimes) {
      SCOPED_TRACE(to_string(regime));
      MlstmCall call(shape, lengths, gate, 1, DType::bf16, regime, true);
      for (std::size_t s = 2; s < lengths.size(); s += 3) call.has_record[s] = false;
      expect_near_the_oracle(call);
    }
}

// Lengths end on, just before and just after a chunk and a tile of tokens.
TEST(CudaMlstmTensor, EveryRegime) {
  expect_every_regime({2, 64, 128}, {1, 700, 128, 2, 129, 17, 256, 127});
}
TEST(CudaMlstmTensor, EveryRegimeOfLargeHeads) {
  expect_every_regime({1, 256, 512}, {65, 300, 128, 2});
}
// Which the fused kernel has in parts.
TEST(CudaMlstmTensor, EveryRegimeOfManyKeys) {
  expect_every_regime({2, 320, 64}, {1, 700, 128, 2, 129, 17, 256, 127});
}

TEST(CudaMlstmTensor, EveryWidth) {
  for (MlstmShape shape :
       {MlstmShape{1, 16, 16}, MlstmShape{3, 24, 40}, MlstmShape{1, 136, 264},
        MlstmShape{2, 32, 72}, MlstmShape{1, 512, 512}, MlstmShape{1, 72, 520},
        MlstmShape{1, 1024, 64}, MlstmShape{1, 256, 512}, MlstmShape{2, 384, 512},
        MlstmShape{3, 272, 128}, MlstmShape{2, 304, 264}}) {
    SCOPED_TRACE(std::to_string(shape.dqk) + " x " + std::to_string(shape.dv));
    MlstmCall call(shape, {1, 200, 130}, MlstmGate::exponential, 2, DType::bf16, Regime::typical,
                   true);
    call.has_record[2] = false;
    expect_near_the_oracle(call);
  }
  for (int dqk : {32, 288}) {
    MlstmCall sums({2, dqk, 48}, {1, 150, 2}, MlstmGate::sigmoid, 3, DType::bf16, Regime::typical,
                   true);
    sums.normalise = false;
    expect_near_the_oracle(sums);
  }
}

TEST(CudaMlstmTensor, OtherRowsTakeTheFloatKernels) {
  for (MlstmShape shape : {MlstmShape{2, 20, 37}, MlstmShape{2, 32, 64}, MlstmShape{1, 8, 16}}) {
    MlstmCall call(shape, {1, 200, 3}, MlstmGate::exponential, 4, DType::bf16);
    call.run();
    EXPECT_FALSE(call.on_tensor_cores);
    for (std::size_t s = 0; s < call.initial.size(); ++s) {
      auto state = call.state<double>(s);
      const auto want = oracle::mlstm_recurrent(call.inputs<double>(s), state);
      EXPECT_LE(NormError(call.h(s), want, want.size()).all, 2e-3);  // what rounding h takes
    }
  }
}

// Nor do windows, or the other sequences of a batch.
TEST(CudaMlstmTensor, WindowsAndOtherSequencesChangeNoBit) {
  const MlstmShape shape{2, 48, 80};
  MlstmCall call(shape, {300, 1, 513, 2, 640}, MlstmGate::exponential, 5, DType::bf16,
                 Regime::typical, true);
  call.has_record[2] = false;
  call.run(cuda::MlstmPlan::kStateBytes);  // not a kernel of the card's level
  const std::vector<std::byte> h = call.h_out.bytes();
  const auto records = call.records;
  const std::size_t state = 4 * 2 * 3 * 5 * 256;
  for (std::size_t chunks : {1, 2, 3, 5, 13}) {
    SCOPED_TRACE(chunks);
    call.run(chunks * state);
    EXPECT_EQ(call.h_out.bytes(), h);
    EXPECT_EQ(call.records, records);
  }
}

TEST(CudaMlstmTensor, TilesFitIntoSharedMemory) {
  for (std::size_t limit : {std::size_t{99} << 10, std::size_t{163} << 10, std::size_t{227} << 10})
    for (std::int64_t dqk : {16, 64, 128, 256, 512, 1024})
      for (std::int64_t dv : {16, 64, 72, 128, 256, 512, 1024})
        for (std::int64_t blocks : {1, 16, 128, 1000}) {
          SCOPED_TRACE(std::to_string(dqk) + " x " + std::to_string(dv));
          const cuda::MlstmOutputTile tile(dqk, dv, blocks, 132, limit);
          EXPECT_LE(tile.shared, limit);
          EXPECT_TRUE(tile.width == 64 || tile.width == 128 || tile.width == 256);
          EXPECT_TRUE(tile.splits == 1 || tile.splits == (dv + tile.width - 1) / tile.width);
          EXPECT_LE(blocks * (tile.splits - 1), 132);
        }
  // q stays where it fits, which it does in the 7B model on capability 9.0.
  EXPECT_TRUE(cuda::MlstmOutputTile(256, 512, 128, 132, std::size_t{227} << 10).resident);
}

}  // namespace
}  // namespace xlstm::ops::test
