// What the tests of every device do not reach of the mLSTM cell on CUDA: several chunks and
// windows, both gates against the oracle, and how much scratch memory a call takes.

#include <gtest/gtest.h>

#include <cmath>

#include "cuda/mlstm_call.hpp"

namespace xlstm::ops::test {
namespace {

void expect_as_good_as_the_oracle(MlstmCall& call) {
  call.run();
  Errors h, states;
  for (std::size_t s = 0; s < call.initial.size(); ++s) {
    auto state = call.state<double>(s);
    auto naive_state = call.state<float>(s);
    const auto want = oracle::mlstm_recurrent(call.inputs<double>(s), state);
    h.add(call.h(s), want, oracle::mlstm_recurrent(call.inputs<float>(s), naive_state));
    if (!call.has_record[s]) {
      EXPECT_EQ(call.records[s], call.initial[s]);
      continue;
    }
    const auto got = call.records[s].state<double>();
    states.add(got.c, state.c, naive_state.c);
    states.add(got.n, state.n, naive_state.n);
    states.add(got.m, state.m, naive_state.m);
  }
  h.expect_at_most_twice_naive("h");
  states.expect_at_most_twice_naive("states");
}

TEST(CudaMlstm, MatchesTheOracleOverManyChunks) {
  for (MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid}) {
    // More tokens than one turn of the scan has; ends on, just before and just after a chunk.
    MlstmCall call({2, 20, 37}, {1, 700, 64, 2, 65, 1, 128, 127}, gate, 1);
    call.has_record[2] = call.has_record[5] = call.has_record[6] = false;
    expect_as_good_as_the_oracle(call);
  }
  MlstmCall sums({2, 20, 36}, {1, 130, 2}, MlstmGate::sigmoid, 2);
  sums.normalise = false;
  expect_as_good_as_the_oracle(sums);
}

TEST(CudaMlstm, MatchesTheOracleAtLargeHeads) {
  for (MlstmShape shape : {MlstmShape{1, 300, 70}, MlstmShape{1, 65, 1024}}) {
    MlstmCall call(shape, {1, 70, 1}, MlstmGate::exponential, 3);
    expect_as_good_as_the_oracle(call);
  }
}

TEST(CudaMlstm, EveryRegimeOverManyChunks) {
  for (Regime regime : kRegimes) {
    SCOPED_TRACE(to_string(regime));
    MlstmProblem problem({2, 24, 40}, {300, 193, 1}, regime, 4);
    problem.run(1, 64);
    Errors h, c, n, m;
    for (std::size_t s = 0; s < problem.lengths().size(); ++s) {
      oracle::MlstmState exact = problem.state(s);
      const oracle::Vector want = oracle::mlstm_recurrent(problem.inputs(s), exact);
      for (bool chunkwise : {false, true}) {
        auto state = problem.float_state(s);
        const auto naive = chunkwise ? oracle::mlstm_chunkwise(problem.float_inputs(s), state, 64)
                                     : oracle::mlstm_recurrent(problem.float_inputs(s), state);
        h.add(problem.h(s), want, naive);
        c.add(problem.c(s), exact.c, state.c);
        n.add(problem.n(s), exact.n, state.n);
        m.add(problem.m(s), exact.m, state.m);
      }
    }
    h.expect_at_most_twice_naive("h");
    c.expect_at_most_twice_naive("C");
    n.expect_at_most_twice_naive("n");
    m.expect_at_most_twice_naive("m");
  }
}

TEST(CudaMlstm, WindowsChangeNoBit) {
  MlstmCall call({2, 20, 37}, {130, 1, 257, 2, 320}, MlstmGate::exponential, 5);
  call.has_record[2] = false;
  call.run();
  const std::vector<std::byte> h = call.h_out.bytes();
  const auto records = call.records;
  const std::size_t state = sizeof(float) * 2 * 20 * 40;
  for (std::size_t chunks : {1, 2, 3, 5, 13}) {
    SCOPED_TRACE(chunks);
    call.run(chunks * state);
    EXPECT_EQ(call.h_out.bytes(), h);
    EXPECT_EQ(call.records, records);
  }
}

// Tokens before the NaN keep their bits, also those of its chunk; so do other heads and sequences.
TEST(CudaMlstm, NanStaysInItsSequenceAndHeadOverManyChunks) {
  constexpr int kToken = 85, kHead = 1, kLength = 200;
  const MlstmShape shape{3, 20, 70};
  for (int input : {0, 1, 2, 3, 4}) {  // q, k, v, i, log f
    SCOPED_TRACE(input);
    MlstmCall call(shape, {70, kLength, 1}, MlstmGate::exponential, 6);
    call.run();
    const std::vector<double> clean = call.h_out.values();
    const auto records = call.records;
    const int row = 70 + kToken;
    if (input == 0) call.q.set(row, kHead * shape.dqk + 3, NAN);
    if (input == 1) call.k.set(row, kHead * shape.dqk + 3, NAN);
    if (input == 2) call.v.set(row, kHead * shape.dv + 66, NAN);
    if (input == 3) call.i.set(row, kHead, NAN);
    if (input == 4) call.log_f.set(row, kHead, NAN);
    call.run();
    const std::vector<double> got = call.h_out.values();
    for (int t = 0; t < 70 + kLength + 1; ++t)
      for (int x = 0; x < shape.heads * shape.dv; ++x) {
        bool poisoned = x / shape.dv == kHead && t >= row && t < 70 + kLength;
        if (input == 0) poisoned = poisoned && t == row;
        if (input == 2) poisoned = poisoned && x % shape.dv == 66;
        const auto at = static_cast<std::size_t>(t * shape.heads * shape.dv + x);
        if (poisoned)
          EXPECT_TRUE(std::isnan(got[at])) << t << " " << x;
        else
          EXPECT_EQ(got[at], clean[at]) << t << " " << x;
      }
    EXPECT_EQ(call.records[0], records[0]);
    EXPECT_EQ(call.records[2], records[2]);
    const auto c = static_cast<std::size_t>(shape.dqk * shape.dv);
    for (std::size_t at = 0; at < c; ++at) {
      EXPECT_EQ(call.records[1].c()[at], records[1].c()[at]);
      EXPECT_EQ(call.records[1].c()[2 * c + at], records[1].c()[2 * c + at]);
    }
  }
}

TEST(CudaMlstm, SequencesOfOneTokenAloneOrTheOthers) {
  for (DType type : {DType::f32, DType::bf16}) {
    MlstmCall call({2, 32, 48}, {1, 70, 1, 130, 2}, MlstmGate::exponential, 9, type,
                   Regime::typical, true);
    call.run(cuda::MlstmPlan::kStateBytes);
    const auto records = call.records;
    std::vector<std::vector<double>> h;
    for (std::size_t s = 0; s < records.size(); ++s) h.push_back(call.h(s));
    for (const auto which : {cuda::MlstmSequences::steps, cuda::MlstmSequences::longer}) {
      call.run(cuda::MlstmPlan::kStateBytes, which);
      for (std::size_t s = 0; s < records.size(); ++s) {
        const bool step = call.offsets[s + 1] - call.offsets[s] == 1;
        if (step == (which == cuda::MlstmSequences::steps)) {
          EXPECT_EQ(call.h(s), h[s]) << s;
          EXPECT_EQ(call.records[s], records[s]) << s;
        } else {
          for (double x : call.h(s)) EXPECT_TRUE(std::isnan(x)) << s;
          EXPECT_EQ(call.records[s], call.initial[s]) << s;
        }
      }
    }
  }
}

TEST(CudaMlstm, ScratchMemoryIsBounded) {
  // One layer of the 7B model: 8 heads of 256 x 512. Tensors of shapes alone.
  const auto bytes = [](std::vector<std::int32_t> offsets) {
    const std::int64_t tokens = offsets.back();
    const auto shaped = [&](std::int64_t width) {
      return Tensor::dense(nullptr, DType::f32, {tokens, width});
    };
    const std::vector<std::byte*> slots(offsets.size() - 1);
    const Batch batch{offsets, slots};
    const MlstmArgs args{.q = shaped(2048),
                         .k = shaped(2048),
                         .v = shaped(4096),
                         .i = shaped(8),
                         .log_f = shaped(8),
                         .batch = batch,
                         .state = {},
                         .h = shaped(4096)};
    return cuda::MlstmPlan(args).bytes() >> 20;
  };
  EXPECT_LT(bytes({0, 2048}), 160U);
  EXPECT_LT(bytes({0, 16384}), 300U);
  EXPECT_LT(bytes({0, 1, 2, 3, 4}), 1U);
  // Sequences of one token add nothing to the states.
  EXPECT_LT(bytes({0, 1, 2, 3, 4, 5, 6, 7, 8, 72}), 6U);
  std::size_t last = 0;
  for (std::int32_t tokens : {1, 2, 64, 65, 4096, 4097, 5000, 100000}) {
    EXPECT_GE(bytes({0, tokens}), last);
    last = bytes({0, tokens});
  }
}

}  // namespace
}  // namespace xlstm::ops::test
