// Steps of one token beside the oracle in double, by norms, in every regime of the gates: those
// that write C, those that leave it to a later step, and those with the norm of their heads, where
// the normed h is what is compared.

#include <gtest/gtest.h>

#include <algorithm>

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

/// h and normed h of sequence s in Real, from where its state is.
template <class Real>
struct Wanted {
  std::vector<Real> h, normed;

  Wanted(const Decoding& d, std::size_t s, oracle::MlstmStateOf<Real>& state, int begin = 0) {
    const auto in = d.tokens_read<Real>(d.sequences[s], begin);
    h = oracle::mlstm_recurrent(in, state);
    const std::vector<double> w = d.norm.values();
    normed = oracle::head_norm<Real>(h, in.v, {w.begin(), w.end()}, {}, d.shape.heads, d.shape.dv,
                                     Real(1e-6));
  }
  std::vector<double> as(Decoding::Norm how) const {
    const std::vector<Real>& from = how == Decoding::Norm::none ? h : normed;
    return {from.begin(), from.end()};
  }
};

/// @param rounds  whether what is compared is rounded to bf16
double bound_of(bool rounds, bool far_off, const std::vector<double>& plain,
                const std::vector<double>& want) {
  double bound = rounds ? 4e-3 : 1e-5;
  if (far_off) bound = std::max(bound, 2 * distance(plain, want));
  return bound;
}

TEST(MlstmDecodeRegimes, StepsMatchTheOracle) {
  struct Way {
    const char* name;
    bool pends;
    Decoding::Norm how;
  };
  for_each_regime([](MlstmShape shape, MlstmGate gate, DType type, Regime regime) {
    const auto ring = static_cast<int>(MlstmRing::tokens_for(shape.dqk, shape.dv));
    const int steps = ring + 3;  // C is written once, and some tokens wait at the end
    const Decoding first(shape, gate, type, regime, 2, steps);
    Decoding read = first;
    for (Decoding::Sequence& one : read.sequences) one.read = steps;
    std::vector<oracle::MlstmState> states;
    std::vector<Wanted<double>> want;
    std::vector<Wanted<float>> plain;
    for (std::size_t s = 0; s < 2; ++s) {
      states.push_back(read.first_state<double>(read.sequences[s]));
      auto plain_state = read.first_state<float>(read.sequences[s]);
      want.emplace_back(read, s, states[s]);
      plain.emplace_back(read, s, plain_state);
    }
    for (const Way way : {Way{"steps", false, Decoding::Norm::none},
                          Way{"steps with the norm", false, Decoding::Norm::fused},
                          Way{"steps with norm and product", false, Decoding::Norm::linear},
                          Way{"ring", true, Decoding::Norm::none},
                          Way{"ring with the norm", true, Decoding::Norm::fused}}) {
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
      const bool rounds = type == DType::bf16 || way.how == Decoding::Norm::linear;
      for (std::size_t s = 0; s < 2; ++s) {
        const std::vector<double> exact = want[s].as(way.how);
        EXPECT_LE(distance(d.sequences[s].h, exact),
                  bound_of(rounds, !rounds && cancels(gate, regime), plain[s].as(way.how), exact))
            << s;
        const auto now = d.state_now<double>(s);
        EXPECT_LE(distance(now.c, states[s].c), 1e-5) << s;
        EXPECT_LE(distance(now.n, states[s].n), 1e-5) << s;
        EXPECT_LE(distance(now.m, states[s].m), 1e-6) << s;
      }
    }
  });
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
      std::vector<double> want, plain;
      auto state = d.state_now<double>(0);
      auto plain_state = d.state_now<float>(0);
      for (int begin = 0; begin < steps; begin += ring) {
        for (int t = 0; t < ring; ++t) d.step({0});
        EXPECT_EQ(d.waiting(0), 0);
        const auto exact = Wanted<double>(d, 0, state, begin).as(how);
        const auto floats = Wanted<float>(d, 0, plain_state, begin).as(how);
        want.insert(want.end(), exact.begin(), exact.end());
        plain.insert(plain.end(), floats.begin(), floats.end());
        state = d.state_now<double>(0);
        plain_state = d.state_now<float>(0);
      }
      EXPECT_LE(
          distance(d.sequences[0].h, want),
          bound_of(type == DType::bf16, type == DType::f32 && cancels(gate, regime), plain, want));
    }
  });
}

}  // namespace
}  // namespace xlstm::ops::test
