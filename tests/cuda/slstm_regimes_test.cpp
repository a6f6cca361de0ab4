// sLSTM on CUDA beside its equations in double, by norms, in every regime of the gates, on all
// bodies: of clusters, of the whole card (wide heads), and of any card.

#include <gtest/gtest.h>

#include "cuda/norm_error.hpp"
#include "cuda/on_card.hpp"
#include "cuda/slstm_problem.hpp"

namespace xlstm::ops::test {
namespace {

std::vector<SlstmShape> shapes() {
  if (!kOnCard) return {{3, 5, {20, 1, 7}}, {2, 40, {12, 3}}, {1, 768, {2}}};
  const std::vector<int> lengths = {40, 1, 7, 12, 3, 9, 2, 5, 11};  // more than a group of 8
  return {{3, 5, lengths}, {2, 100, lengths}, {2, 192, lengths}, {1, 768, {24, 5, 1}}};
}

// R of 16 bits with h rounded for the products, or with all of h; R of floats.
TEST(SlstmRegimes, MatchTheEquations) {
  struct Kind {
    DType weights, product;
  };
  for (const SlstmShape& like : shapes())
    for (const Kind kind : {Kind{DType::bf16, DType::bf16}, Kind{DType::bf16, DType::f32},
                            Kind{DType::f32, DType::f32}})
      for (const Regime regime : kRegimes) {
        SCOPED_TRACE(testing::Message()
                     << like.heads << " x " << like.dh << ", R in " << to_string(kind.weights)
                     << ", product in " << to_string(kind.product) << ", " << to_string(regime));
        SlstmShape shape = like;
        shape.weights = kind.weights;
        RoundedProblem p(shape, 51, kind.product, regime);
        const auto got = p.run_all();
        std::vector<double> want_after;
        const std::vector<double> want = p.exact(&want_after);
        const double bound = kind.product == DType::bf16 ? 4e-3 : 1e-5;
        EXPECT_LE(distance({got.h.begin(), got.h.end()}, want), bound);
        const int d = p.width();
        for (int part = 0; part < 4; ++part) {  // h, c, n, m
          std::vector<double> after, exact;
          for (std::size_t s = 0; s < got.after.size(); ++s) {
            const std::vector<float>& state = got.after[s];
            const auto first = std::ptrdiff_t(s) * 4 * d + part * d;
            after.insert(after.end(), state.begin() + part * d, state.begin() + (part + 1) * d);
            exact.insert(exact.end(), want_after.begin() + first, want_after.begin() + first + d);
          }
          EXPECT_LE(distance(after, exact), bound) << "state " << part;
        }
      }
}

}  // namespace
}  // namespace xlstm::ops::test
