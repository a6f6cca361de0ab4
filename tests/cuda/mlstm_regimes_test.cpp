// The chunkwise mLSTM kernels beside the oracle in double, by norms, in every regime of the gates:
// where sequences are cut into segments, without a normaliser, with the norm of their heads, and in
// float32.

#include <gtest/gtest.h>

#include <algorithm>

#include "cuda/mlstm_bounds.hpp"
#include "cuda/on_card.hpp"
#include "ops/cuda/sm90/mlstm_fused_plan.hpp"
#include "ops/fused.hpp"

namespace xlstm::ops::test {
namespace {

struct Problem {
  MlstmShape shape;
  std::vector<int> lengths;
};

/// Calls `body` with a call for each shape, gate and regime. Some sequences have no record.
template <class Body>
void for_each_regime(const std::vector<Problem>& problems, const Body& body,
                     DType type = DType::bf16) {
  for (const Problem& p : problems)
    for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
      for (const Regime regime : kRegimes) {
        SCOPED_TRACE(testing::Message()
                     << p.shape.dqk << " x " << p.shape.dv << ", " << to_string(regime)
                     << (gate == MlstmGate::sigmoid ? ", sigmoid" : ""));
        MlstmCall call(p.shape, p.lengths, gate, 11, type, regime, type == DType::bf16);
        for (std::size_t s = 2; s < p.lengths.size(); s += 3) call.has_record[s] = false;
        body(call, regime);
      }
}

/// How a card of capability 9.0 cuts a call.
cuda::sm90::MlstmFusedPlan fused_plan(MlstmCall& call) {
  const std::vector<std::byte*> slots(call.initial.size());
  const Batch batch{call.offsets, slots};
  return cuda::sm90::MlstmFusedPlan(call.args_of(batch));
}

TEST(CudaMlstmRegimes, InSegments) {
  std::vector<Problem> problems{{{2, 64, 128}, {705, 66, 3}}};
  if (kOnCard) problems = {{{1, 256, 512}, {1100, 300, 256}}, {{2, 128, 256}, {1100, 257, 65, 1}}};
  for_each_regime(problems, [](MlstmCall& call, Regime) {
    EXPECT_GT(fused_plan(call).segments, 2);
    call.run();
    expect_results_near(call);
  });
}

TEST(CudaMlstmRegimes, WithoutANormaliser) {
  std::vector<Problem> problems{{{2, 64, 128}, {130, 200, 2}}};
  if (kOnCard) problems.push_back({{1, 256, 512}, {705, 130, 64}});
  for_each_regime(problems, [](MlstmCall& call, Regime) {
    if (call.gate == MlstmGate::exponential) return;
    call.normalise = false;
    call.run();
    expect_results_near(call);
  });
}

// Short enough that a card's blocks make the gates themselves, which they then read before the
// kernel before them is done.
TEST(CudaMlstmRegimes, WithTheNormOfHeads) {
  std::vector<Problem> problems{{{2, 64, 128}, {130, 70, 2}}};
  if (kOnCard) problems = {{{1, 256, 512}, {256, 130, 2}}, {{2, 128, 256}, {192, 65, 3}}};
  for_each_regime(problems, [](MlstmCall& call, Regime) {
    EXPECT_TRUE(fused_plan(call).own_gates);
    std::mt19937 random(12);
    const int width = call.shape.heads * call.shape.dv;
    Array o = Array::random(random, DType::bf16, {call.offsets.back(), width});
    Array w = Array::random(random, DType::bf16, {width}, 0.3, 1.0);
    Array y(DType::bf16, {call.offsets.back(), width}, 8);
    call.run_by(
        [&](Context& context, const MlstmArgs& args) {
          mlstm_head_norm(context, {.cell = args,
                                    .norm = {.h = args.h,
                                             .o = o.tensor(),
                                             .w = w.tensor(),
                                             .b = {},
                                             .heads = call.shape.heads,
                                             .y = y.tensor()}});
        },
        0);
    EXPECT_TRUE(y.gaps_untouched());
    const std::vector<double> got = y.values(), gate = o.values();
    for (std::size_t s = 0; s < call.initial.size(); ++s) {
      const auto part = [&](const std::vector<double>& all) {
        return std::vector<double>(all.begin() + call.offsets[s] * width,
                                   all.begin() + call.offsets[s + 1] * width);
      };
      auto state = call.state<double>(s);
      const auto h = oracle::mlstm_recurrent(call.inputs<double>(s), state);
      const auto want = oracle::head_norm<double>(h, part(gate), w.values(), {}, call.shape.heads,
                                                  call.shape.dv, 1e-6);
      const MlstmBounds bounds;
      const NormError error(part(got), want, static_cast<std::size_t>(call.shape.dv));
      EXPECT_LE(error.all, bounds.h) << s;
      EXPECT_LE(error.worst_row, bounds.row) << s;
      expect_state_near(call, s, state);
    }
  });
}

TEST(CudaMlstmRegimes, InFloats) {
  std::vector<Problem> problems{{{2, 60, 100}, {300, 65, 1}}};
  if (kOnCard) problems.push_back({{1, 256, 512}, {300, 130, 2}});
  const auto is_near = [](MlstmCall& call, Regime) {
    call.run();
    EXPECT_FALSE(call.on_tensor_cores);
    std::vector<double> got, want;
    const auto append = [](std::vector<double>& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    for (std::size_t s = 0; s < call.initial.size(); ++s) {
      auto state = call.state<double>(s);
      append(want, oracle::mlstm_recurrent(call.inputs<double>(s), state));
      append(got, call.h(s));
      expect_state_near(call, s, state, {.c = 1e-5});
    }
    EXPECT_LE(distance(got, want), 1e-5);
  };
  for_each_regime(problems, is_near, DType::f32);
}

}  // namespace
}  // namespace xlstm::ops::test
