// Steps of one token beside the oracle in double, by norms, in every regime of the gates: those
// that write C, those that leave it to a later step, and those with the norm of their heads, where
// the normed h is what is compared.

#include <gtest/gtest.h>

#include "cuda/mlstm_decoding.hpp"
#include "cuda/norm_error.hpp"
#include "cuda/on_card.hpp"

namespace xlstm::ops::test {
namespace {

// The 7B model's; one that kernels for wide copies serve with a rest; one that they do not serve.
std::vector<MlstmShape> shapes() {
  if (kOnCard) return {{1, 256, 512}, {2, 60, 88}, {1, 40, 192}, {3, 9, 7}};
  return {{2, 36, 72}, {3, 9, 7}};
}

template <class Body>
void for_each_regime(const Body& body) {
  for (const MlstmShape shape : shapes())
    for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
      for (const DType type : {DType::f32, DType::bf16})
        for (const Regime regime : kRegimes) {
          SCOPED_TRACE(testing::Message()
                       << shape.dqk << " x " << shape.dv << ", " << to_string(type) << ", "
                       << to_string(regime) << (gate == MlstmGate::sigmoid ? ", sigmoid" : ""));
          body(shape, gate, type, regime);
        }
}

/// h and normed h of sequence s, from where its state is.
struct Wanted {
  std::vector<double> h, normed;

  Wanted(const Decoding& d, std::size_t s, oracle::MlstmState& state, int begin = 0) {
    const auto in = d.tokens_read<double>(d.sequences[s], begin);
    h = oracle::mlstm_recurrent(in, state);
    normed =
        oracle::head_norm<double>(h, in.v, d.norm.values(), {}, d.shape.heads, d.shape.dv, 1e-6);
  }
  const std::vector<double>& as(Decoding::Norm how) const {
    return how == Decoding::Norm::none ? h : normed;
  }
};

/// @param rounds  whether what is compared is rounded to bf16
double bound_of(bool rounds) { return rounds ? 4e-3 : 1e-5; }

struct Way {
  const char* name;
  bool pends;
  Decoding::Norm how;
};
const Way kWays[] = {{"steps", false, Decoding::Norm::none},
                     {"steps with the norm", false, Decoding::Norm::fused},
                     {"steps with norm and product", false, Decoding::Norm::linear},
                     {"ring", true, Decoding::Norm::none},
                     {"ring with the norm", true, Decoding::Norm::fused}};

TEST(MlstmDecodeRegimes, StepsMatchTheOracle) {
  for_each_regime([](MlstmShape shape, MlstmGate gate, DType type, Regime regime) {
    const auto ring = static_cast<int>(MlstmRing::tokens_for(shape.dqk, shape.dv));
    const int steps = ring + 3;  // C is written once, and some tokens wait at the end
    const Decoding first(shape, gate, type, regime, 2, steps);
    Decoding read = first;
    for (Decoding::Sequence& one : read.sequences) one.read = steps;
    std::vector<oracle::MlstmState> states;
    std::vector<Wanted> want;
    for (std::size_t s = 0; s < 2; ++s) {
      states.push_back(read.first_state<double>(read.sequences[s]));
      want.emplace_back(read, s, states[s]);
    }
    for (const Way& way : kWays) {
      if (way.how == Decoding::Norm::linear && type != DType::f32) continue;
      SCOPED_TRACE(way.name);
      Decoding d = first;
      d.pends = way.pends;
      d.how = way.how;
      for (int t = 0; t < steps; ++t) d.step({0, 1});
      if (way.pends) {
        EXPECT_EQ(d.waiting(0), steps % ring);
        d.fold_all();
      }
      for (std::size_t s = 0; s < 2; ++s) {
        const bool rounds = type == DType::bf16 || way.how == Decoding::Norm::linear;
        EXPECT_LE(distance(d.sequences[s].h, want[s].as(way.how)), bound_of(rounds)) << s;
        const auto now = d.state_now<double>(s);
        EXPECT_LE(distance(now.c, states[s].c), 1e-5) << s;
        EXPECT_LE(distance(now.n, states[s].n), 1e-12) << s;
        EXPECT_LE(distance(now.m, states[s].m), 1e-12) << s;
      }
    }
  });
}

// What each step does to n and m adds up.
TEST(MlstmDecodeRegimes, ManyStepsMatchTheOracle) {
  constexpr int kSteps = 300;
  for (const MlstmGate gate : {MlstmGate::exponential, MlstmGate::sigmoid})
    for (const Regime regime : kRegimes) {
      SCOPED_TRACE(testing::Message()
                   << to_string(regime) << (gate == MlstmGate::sigmoid ? ", sigmoid" : ""));
      const Decoding first({1, 64, 128}, gate, DType::f32, regime, 1, kSteps);
      Decoding read = first;
      read.sequences[0].read = kSteps;
      auto state = read.first_state<double>(read.sequences[0]);
      const Wanted want(read, 0, state);
      for (const Way& way : kWays) {
        if (way.how == Decoding::Norm::linear) continue;  // in bf16
        SCOPED_TRACE(way.name);
        Decoding d = first;
        d.pends = way.pends;
        d.how = way.how;
        for (int t = 0; t < kSteps; ++t) d.step({0});
        EXPECT_LE(distance(d.sequences[0].h, want.as(way.how)), bound_of(false));
      }
    }
}

// From C as it stands in the record after each time it is written.
TEST(MlstmDecodeRegimes, StepsOnABf16StateMatchTheOracle) {
  for_each_regime([](MlstmShape shape, MlstmGate gate, DType type, Regime regime) {
    const auto ring = static_cast<int>(MlstmRing::tokens_for(shape.dqk, shape.dv));
    const int steps = 2 * ring;
    for (const Decoding::Norm how : {Decoding::Norm::none, Decoding::Norm::fused}) {
      SCOPED_TRACE(how == Decoding::Norm::none ? "" : "with the norm");
      Decoding d(shape, gate, type, regime, 1, steps, DType::bf16);
      d.how = how;
      std::vector<double> want;
      auto state = d.state_now<double>(0);
      for (int begin = 0; begin < steps; begin += ring) {
        for (int t = 0; t < ring; ++t) d.step({0});
        EXPECT_EQ(d.waiting(0), 0);
        const Wanted exact(d, 0, state, begin);
        want.insert(want.end(), exact.as(how).begin(), exact.as(how).end());
        state = d.state_now<double>(0);
      }
      EXPECT_LE(distance(d.sequences[0].h, want), bound_of(type == DType::bf16));
    }
  });
}

}  // namespace
}  // namespace xlstm::ops::test
