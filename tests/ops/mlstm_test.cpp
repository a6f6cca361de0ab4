#include "ops/mlstm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "core/cpu_features.hpp"
#include "oracle/ops.hpp"

namespace xlstm::ops {
namespace {

TEST(Mlstm, MatchesTheOracleQuick) {
  for (Isa isa : available_isas()) {
    set_active_isa(isa);
    for (std::int64_t chunk : {1, 7, 16, 64})
      for (int tokens : {1, 5, 77}) {
        const int H = 3, dqk = 20, dv = 150;
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        std::vector<float> q(tokens * H * dqk), k(q.size()), v(tokens * H * dv), i(tokens * H),
            f(i.size()), h(v.size(), NAN);
        for (auto* x : {&q, &k, &v, &i, &f})
          for (float& e : *x) e = normal(random);
        for (float& e : i) e *= 5;
        for (float& e : f) e = static_cast<float>(oracle::log_sigmoid(5 * e));
        std::vector<float> state(H * (dqk * dv + dqk + 1));
        std::byte* slot = reinterpret_cast<std::byte*>(state.data());
        std::vector<std::int32_t> offsets{0, tokens};
        Batch batch{offsets, {&slot, 1}};
        Context context({}, 2);
        auto T = [](std::vector<float>& x, int64_t rows) {
          return Tensor::dense(x.data(), DType::f32, {rows, (int64_t)x.size() / rows});
        };
        MlstmArgs a{.q = T(q, tokens),
                    .k = T(k, tokens),
                    .v = T(v, tokens),
                    .i = T(i, tokens),
                    .log_f = T(f, tokens),
                    .batch = batch,
                    .state = {0, 4u * H * dqk * dv, 4u * H * (dqk * dv + dqk)},
                    .chunk = chunk,
                    .h = T(h, tokens)};
        context.start_measuring();
        mlstm(context, a);
        context.finish_measuring();
        mlstm(context, a);
        auto D = [](std::vector<float>& x) { return oracle::Vector(x.begin(), x.end()); };
        oracle::MlstmInputs in;
        in.heads = H;
        in.dqk = dqk;
        in.dv = dv;
        in.q = D(q);
        in.k = D(k);
        in.v = D(v);
        in.i = D(i);
        in.log_f = D(f);
        oracle::MlstmState s(H, dqk, dv), s2(H, dqk, dv);
        auto want = oracle::mlstm_recurrent(in, s);
        auto want2 = oracle::mlstm_chunkwise(in, s2, chunk);
        double e = 0, e2 = 0, ec = 0;
        for (size_t x = 0; x < h.size(); ++x) {
          e = std::max(e, std::abs(h[x] - want[x]));
          if (!(std::abs(h[x]) < 1e9)) e = 1e9;
          e2 = std::max(e2, std::abs(want[x] - want2[x]));
        }
        for (size_t x = 0; x < s.c.size(); ++x) ec = std::max(ec, std::abs(state[x] - s.c[x]));
        EXPECT_LT(e, 1e-4) << to_string(isa) << chunk << " " << tokens;
        EXPECT_LT(e2, 1e-12);
        EXPECT_LT(ec, 1e-4);
      }
  }
  set_active_isa(detected_isa());
}

}  // namespace
}  // namespace xlstm::ops
