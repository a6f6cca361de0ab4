// Steps of one token beside the oracle in double, by norms, in every regime of the gates: those
// that write C, those that leave it to a later step, and those with the norm of their heads, where
// the normed h is what is compared.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

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

/// h and normed h.
struct Outputs {
  std::vector<double> h, normed;

  Outputs(const Decoding& d, const oracle::MlstmInputs& in, std::vector<double> of)
      : h(std::move(of)),
        normed(oracle::head_norm<double>(h, in.v, d.norm.values(), {}, d.shape.heads, d.shape.dv,
                                         1e-6)) {}
  const std::vector<double>& as(Decoding::Norm how) const {
    return how == Decoding::Norm::none ? h : normed;
  }
};

/// Of sequence s, from where its state is.
struct Wanted : Outputs {
  Wanted(const Decoding& d, std::size_t s, oracle::MlstmState& state, int begin = 0)
      : Wanted(d, d.tokens_read<double>(d.sequences[s], begin), state) {}

  /// The bound of f32 outputs: 1e-5, but where C q cancels, as that of the first tokens can, some
  /// times what C in float32 does alone: sums of float32 numbers do as much.
  double bound(Decoding::Norm how) const {
    return std::max(1e-5, 6 * distance(rounded_c.as(how), as(how)));
  }
  Outputs rounded_c;

 private:
  Wanted(const Decoding& d, const oracle::MlstmInputs& in, oracle::MlstmState& state)
      : Wanted(d, in, state, oracle::MlstmState(state)) {}
  Wanted(const Decoding& d, const oracle::MlstmInputs& in, oracle::MlstmState& state,
         oracle::MlstmState rounded)
      : Outputs(d, in, oracle::mlstm_recurrent(in, state)),
        rounded_c(d, in, with_rounded_c(in, rounded)) {}

  static std::vector<double> with_rounded_c(const oracle::MlstmInputs& in,
                                            oracle::MlstmState& state) {
    std::vector<double> h;
    const int tokens = in.tokens();
    for (int t = 0; t < tokens; ++t) {
      oracle::MlstmInputs one = in;
      for (auto part : {&oracle::MlstmInputs::q, &oracle::MlstmInputs::k, &oracle::MlstmInputs::v,
                        &oracle::MlstmInputs::i, &oracle::MlstmInputs::log_f}) {
        const auto width = std::ptrdiff_t((in.*part).size()) / tokens;
        (one.*part).assign((in.*part).begin() + t * width, (in.*part).begin() + (t + 1) * width);
      }
      const std::vector<double> row = oracle::mlstm_recurrent(one, state);
      for (std::size_t x = 0; x < row.size(); ++x) {
        const std::size_t dv = std::size_t(in.dv), dqk = std::size_t(in.dqk), head = x / dv;
        double exact = 0, rounded = 0;
        for (std::size_t a = head * dqk; a < (head + 1) * dqk; ++a) {
          double& c = state.c[a * dv + x % dv];
          exact += one.q[a] * c;
          c = static_cast<float>(c);
          rounded += one.q[a] * c;
        }
        h.push_back(row[x] * rounded / exact);
      }
    }
    return h;
  }
};

/// Times that the norm enlarges errors of a size with h: |h| / |h - its mean|, over all heads.
double enlarged_by_norm(const std::vector<double>& h, std::size_t dv) {
  double sum = 0;
  for (std::size_t first = 0; first < h.size(); first += dv) {
    double mean = 0, square = 0;
    for (std::size_t x = first; x < first + dv; ++x) {
      mean += h[x] / double(dv);
      square += h[x] * h[x];
    }
    sum += square / (square - double(dv) * mean * mean);
  }
  return std::sqrt(sum / double(h.size() / dv));
}

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
        double bound = rounds ? 4e-3 : want[s].bound(way.how);
        // Cards that lack a kernel for both round h before the norm.
        if (way.how == Decoding::Norm::fused && type == DType::bf16)
          bound *= enlarged_by_norm(want[s].h, std::size_t(shape.dv));
        EXPECT_LE(distance(d.sequences[s].h, want[s].as(way.how)), bound) << s;
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
        EXPECT_LE(distance(d.sequences[0].h, want.as(way.how)),
                  way.how == Decoding::Norm::none ? 1e-5 : want.bound(way.how));
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
      std::vector<double> want, h;
      auto state = d.state_now<double>(0);
      for (int begin = 0; begin < steps; begin += ring) {
        for (int t = 0; t < ring; ++t) d.step({0});
        EXPECT_EQ(d.waiting(0), 0);
        const Wanted exact(d, 0, state, begin);
        want.insert(want.end(), exact.as(how).begin(), exact.as(how).end());
        h.insert(h.end(), exact.h.begin(), exact.h.end());
        state = d.state_now<double>(0);
      }
      double bound = type == DType::bf16 ? 4e-3 : 1e-5;
      if (how == Decoding::Norm::fused && type == DType::bf16)
        bound *= enlarged_by_norm(h, std::size_t(shape.dv));
      EXPECT_LE(distance(d.sequences[0].h, want), bound);
    }
  });
}

}  // namespace
}  // namespace xlstm::ops::test
