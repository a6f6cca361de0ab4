// What the mLSTM cell saves for a backward pass on a CUDA device: windows, numbers of bf16, and the
// fused kernel. ops/mlstm_saved_test.cpp has the rest.

#include "ops/mlstm_saved.hpp"

#include "ops/cuda/level.hpp"

namespace xlstm::ops::test {
namespace {

TEST(CudaMlstmSaved, WindowsAndOtherKernelsSaveTheSame) {
  for (const DType type : {DType::f32, DType::bf16}) {
    MlstmCall call({2, 48, 80}, {300, 1, 513, 2, 640}, MlstmGate::exponential, 5, type,
                   Regime::typical, true);
    call.has_record[2] = false;
    call.border = 256;
    call.run(cuda::MlstmPlan::kStateBytes);  // not a kernel of the card's level
    expect_near_the_oracle(call, {.c = type == DType::f32 ? 1e-5 : 2.5e-3});
    const auto first = bytes_of(call);
    for (const std::size_t chunks : {1, 3, 5}) {
      call.run(chunks * (type == DType::f32 ? 4 * 2 * 48 * 80 : 4 * 2 * 3 * 5 * 128));
      EXPECT_EQ(bytes_of(call), first);
    }
  }
}

TEST(CudaMlstmSaved, MatchesTheOracleInEveryRegime) {
  for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
    for (const Regime regime : kRegimes) {
      SCOPED_TRACE(to_string(regime));
      for (const MlstmShape shape : {MlstmShape{2, 64, 128}, MlstmShape{2, 320, 64}}) {
        MlstmCall call(shape, {1, 700, 128, 2, 129, 17, 256, 127}, gate, 6, DType::bf16, regime,
                       true);
        call.has_record[2] = call.has_record[5] = call.has_record[6] = false;
        call.border = 128;
        call.run();
        expect_near_the_oracle(call);
      }
    }
}

// In segments and clusters, at the widths that the kernel has.
TEST(CudaMlstmSaved, FusedKernelMatchesTheOracleAndRepeats) {
  if (cuda::level(test_device()) != cuda::Level::sm90)
    GTEST_SKIP() << "no kernel of compute capability 9.0";
  for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
    for (const MlstmShape shape :
         {MlstmShape{1, 256, 512}, MlstmShape{2, 128, 256}, MlstmShape{3, 64, 64},
          MlstmShape{1, 200, 384}, MlstmShape{1, 24, 40}, MlstmShape{2, 64, 384},
          MlstmShape{1, 512, 256}, MlstmShape{2, 272, 128}}) {
      SCOPED_TRACE(std::to_string(shape.dqk) + " x " + std::to_string(shape.dv));
      MlstmCall call(shape, {1100, 300, 65, 1, 128}, gate, 7, DType::bf16, Regime::resets, true);
      call.has_record[1] = false;
      call.normalise = gate == MlstmGate::exponential || shape.dqk > 64;
      call.run();
      const auto h = call.h_out.bytes();
      const auto records = call.records;
      for (const std::int64_t border : {128, 512, 2048}) {
        call.border = border;
        call.run();
        EXPECT_EQ(call.h_out.bytes(), h);
        EXPECT_EQ(call.records, records);
        expect_near_the_oracle(call);
        const auto first = bytes_of(call);
        for (int turn = 0; turn < 20 && border < 2048; ++turn) {
          call.run();
          EXPECT_EQ(bytes_of(call), first);
        }
      }
    }
}

}  // namespace
}  // namespace xlstm::ops::test
