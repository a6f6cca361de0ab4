#include "ops/mlstm.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/norm_error.hpp"
#include "ops/mlstm_problem.hpp"
#include "oracle/golden.hpp"

namespace xlstm::ops::test {
namespace {

/// Compares h and states with the oracle, beside plain float runs of both its forms.
class Comparison {
 public:
  void add(const MlstmProblem& problem, int chunk) {
    for (std::size_t s = 0; s < problem.lengths().size(); ++s) {
      oracle::MlstmState exact = problem.state(s);
      const oracle::Vector want = oracle::mlstm_recurrent(problem.inputs(s), exact);
      for (int form : {0, 1}) {
        auto state = problem.float_state(s);
        const auto naive = form == 0
                               ? oracle::mlstm_recurrent(problem.float_inputs(s), state)
                               : oracle::mlstm_chunkwise(problem.float_inputs(s), state, chunk);
        h_.add(problem.h(s), want, naive);
        c_.add(problem.c(s), exact.c, state.c);
        n_.add(problem.n(s), exact.n, state.n);
        m_.add(problem.m(s), exact.m, state.m);
      }
    }
  }
  void expect_at_most_twice_naive() const {
    h_.expect_at_most_twice_naive("h");
    c_.expect_at_most_twice_naive("C");
    n_.expect_at_most_twice_naive("n");
    m_.expect_at_most_twice_naive("m");
  }

 private:
  Errors h_, c_, n_, m_;
};

TEST(Mlstm, MatchesTheOracleInEveryRegime) {
  for_each_isa([] {
    for (Regime regime : kRegimes) {
      SCOPED_TRACE(to_string(regime));
      Comparison comparison;
      for (int chunk : {1, 7, 16, 64}) {
        SCOPED_TRACE("chunk " + std::to_string(chunk));
        MlstmProblem problem({2, 32, 64}, {77, 1, 64, 2}, regime, 1);
        problem.run(2, chunk);
        comparison.add(problem, chunk);
      }
      comparison.expect_at_most_twice_naive();
    }
  });
}

// By norms, over all sequences, also where l cancels: it, n and m are double, within a call and
// from one to the next.
TEST(Mlstm, FloatsAreAsExactInEveryRegime) {
  for_each_isa([] {
    for (Regime regime : kRegimes)
      for (int chunk : {0, 1, 64}) {
        SCOPED_TRACE(testing::Message() << to_string(regime) << ", chunk " << chunk);
        MlstmProblem problem({2, 64, 96}, {200, 1, 64, 130}, regime, 8);
        if (chunk == 0)  // a call for each token
          problem.run_in_pieces(2, 1, {1});
        else
          problem.run(2, chunk);
        std::vector<double> h, c, n, want, want_c, want_n;
        const auto append = [](std::vector<double>& to, const auto& from) {
          to.insert(to.end(), from.begin(), from.end());
        };
        for (std::size_t s = 0; s < problem.lengths().size(); ++s) {
          oracle::MlstmState state = problem.state(s);
          append(want, oracle::mlstm_recurrent(problem.inputs(s), state));
          append(want_c, state.c);
          append(want_n, state.n);
          append(h, problem.h(s));
          append(c, problem.c(s));
          append(n, problem.n(s));
        }
        EXPECT_LE(distance(h, want), 1e-5);
        EXPECT_LE(distance(c, want_c), 1e-5);
        EXPECT_LE(distance(n, want_n), 1e-12);
      }
  });
}

TEST(Mlstm, MatchesTheOracleAtEveryShape) {
  for_each_isa([] {
    unsigned seed = 0;
    Comparison comparison;
    for (MlstmShape shape :
         {MlstmShape{1, 1, 1}, MlstmShape{3, 5, 7}, MlstmShape{1, 17, 130}, MlstmShape{2, 33, 300},
          MlstmShape{5, 16, 31}, MlstmShape{1, 128, 256}})
      for (int threads : {1, 3}) {
        SCOPED_TRACE(std::to_string(shape.dqk) + " x " + std::to_string(shape.dv));
        MlstmProblem problem(shape, {1, 40, 3}, Regime::typical, ++seed);
        problem.run(threads, 32);
        comparison.add(problem, 32);
      }
    comparison.expect_at_most_twice_naive();
  });
}

// One at a time == chunkwise at any chunk size == any split with carried state.
TEST(Mlstm, EverySplitAndChunkIsTheSame) {
  for (Regime regime : kRegimes) {
    SCOPED_TRACE(to_string(regime));
    MlstmProblem problem({2, 24, 40}, {77}, regime, 3);
    Comparison comparison;
    problem.run_in_pieces(1, 64, {1});
    comparison.add(problem, 64);
    for (int chunk : {1, 2, 7, 16, 63, 64, 77, 1000}) {
      SCOPED_TRACE("chunk " + std::to_string(chunk));
      problem.run(2, chunk);
      comparison.add(problem, chunk);
      for (const std::vector<int>& pieces :
           {std::vector<int>{72, 1}, {1, 76}, {38, 39}, {5, 1, 1, 20, 3}}) {
        problem.run_in_pieces(1, chunk, pieces);
        comparison.add(problem, chunk);
      }
    }
    comparison.expect_at_most_twice_naive();
  }
}

// To the bit: not the other sequences of a batch, not the number of threads.
TEST(Mlstm, BatchAndThreadsChangeNoBit) {
  for_each_isa([] {
    for (MlstmShape shape : {MlstmShape{1, 24, 300}, MlstmShape{3, 16, 520}}) {
      MlstmProblem problem(shape, {50, 1, 130, 2, 1}, Regime::typical, 4);
      problem.run(1, 32);
      std::vector<std::vector<std::byte>> bits;
      for (std::size_t s = 0; s < problem.lengths().size(); ++s) bits.push_back(problem.bits(s));
      for (int threads : {2, 3, 8}) {
        problem.run(threads, 32);
        for (std::size_t s = 0; s < bits.size(); ++s)
          EXPECT_EQ(problem.bits(s), bits[s]) << threads;
      }
      for (std::size_t s = 0; s < bits.size(); ++s) {
        problem.run_alone(s, 4, 32);
        EXPECT_EQ(problem.bits(s), bits[s]) << s;
      }
    }
  });
}

// A NaN reaches its own sequence from its own token on, and nothing else.
TEST(Mlstm, NanDoesNotTravelBackOrAside) {
  for_each_isa([] {
    for (int chunk : {1, 16, 64})
      for (int input : {0, 1, 2, 3, 4}) {  // q, k, v, i, log f
        SCOPED_TRACE("chunk " + std::to_string(chunk) + ", input " + std::to_string(input));
        const MlstmShape shape{2, 20, 24};
        MlstmProblem problem(shape, {40, 40, 1}, Regime::typical, 5);
        problem.run(2, chunk);
        const std::vector<double> clean = problem.h(1);
        const std::vector<std::byte> before = problem.bits(0), after = problem.bits(2);
        const int token = 21, row = 40 + token;  // head 0 of the second sequence
        if (input == 0) problem.qkv.set(row, 3, NAN);
        if (input == 1) problem.qkv.set(row, 2 * 20 + 3, NAN);
        if (input == 2) problem.qkv.set(row, 4 * 20 + 3, NAN);
        if (input == 3) problem.i.set(row, 0, NAN);
        if (input == 4) problem.log_f.set(row, 0, NAN);
        problem.run(2, chunk);
        EXPECT_EQ(problem.bits(0), before);
        EXPECT_EQ(problem.bits(2), after);
        const std::vector<double> got = problem.h(1);
        for (int t = 0; t < 40; ++t)
          for (int x = 0; x < 2 * 24; ++x) {
            const bool head0 = x < 24;
            bool poisoned = head0 && t >= token;
            if (input == 0) poisoned = head0 && t == token;  // q enters no state
            if (input == 2) poisoned = x == 3 && t >= token;
            const double value = got[static_cast<std::size_t>(t * 48 + x)];
            if (poisoned) {
              EXPECT_TRUE(std::isnan(value)) << t << " " << x;
            } else {
              EXPECT_NEAR(value, clean[static_cast<std::size_t>(t * 48 + x)], 1e-4)
                  << t << " " << x;
            }
          }
      }
  });
}

TEST(Mlstm, ClosedGatesAreExact) {
  // i = -inf keeps a token out; log f = -inf forgets everything before it.
  for (int chunk : {1, 16}) {
    MlstmProblem problem({1, 8, 8}, {20}, Regime::typical, 6);
    problem.run(1, chunk);
    const std::vector<double> clean = problem.h(0);
    problem.i.set(10, 0, -INFINITY);
    problem.qkv.set(10, 17, 1e30);  // the k and v that are kept out
    problem.log_f.set(15, 0, -INFINITY);
    problem.run(1, chunk);
    const std::vector<double> got = problem.h(0), m = problem.m(0);
    EXPECT_TRUE(std::all_of(got.begin(), got.end(), [](double x) { return std::isfinite(x); }));
    EXPECT_TRUE(std::isfinite(m[0]));
    for (int at = 0; at < 10 * 8; ++at) EXPECT_NEAR(got[at], clean[at], 1e-4);
    // From token 15 on, the state is that of a sequence that begins there.
    MlstmProblem tail({1, 8, 8}, {20}, Regime::typical, 6, false);
    for (auto& record : tail.initial) (void)record;
    tail.log_f.set(15, 0, -INFINITY);
    for (int t = 0; t < 15; ++t) tail.i.set(t, 0, -1000);
    tail.run(1, chunk);
    const std::vector<double> want = tail.h(0);
    for (int at = 15 * 8; at < 20 * 8; ++at) EXPECT_NEAR(got[at], want[at], 1e-4) << at;
  }
}

// The reference implementation's cell, with an initial state, and with gates no model reaches.
TEST(Mlstm, MatchesTheGoldenCells) {
  for_each_isa([] {
    for (const char* name : {"cell_mlstm_exp", "cell_mlstm_exp_extreme_gates"})
      for (const oracle::CellCase& cell :
           oracle::read_cell(oracle::golden_folder() / (std::string(name) + ".safetensors")))
        for (int chunk : {1, 7, 16, 64}) {
          SCOPED_TRACE(std::string(name) + ", chunk " + std::to_string(chunk));
          const oracle::MlstmInputs& in = cell.inputs;
          const int tokens = in.tokens();
          const auto array = [&](const oracle::Vector& values) {
            return Array::of(DType::f32, {tokens, static_cast<int>(values.size()) / tokens},
                             values);
          };
          Array q = array(in.q), k = array(in.k), v = array(in.v), i = array(in.i);
          Array log_f = array(in.log_f), h(DType::f32, {tokens, in.heads * in.dv});
          MlstmRecord record({in.heads, in.dqk, in.dv});
          record.set(cell.initial);
          const std::vector<std::byte*> slots{record.data()};
          const std::vector<std::int32_t> offsets{0, tokens};
          const Batch batch{offsets, slots};
          const MlstmArgs args{.q = q.tensor(),
                               .k = k.tensor(),
                               .v = v.tensor(),
                               .i = i.tensor(),
                               .log_f = log_f.tensor(),
                               .batch = batch,
                               .state = record.offsets(),
                               .chunk = chunk,
                               .h = h.tensor()};
          Context context(test_device(), 2);
          context.start_measuring();
          mlstm(context, args);
          context.finish_measuring();
          mlstm(context, args);
          const auto near = [&](const std::vector<double>& got, const oracle::Vector& want) {
            EXPECT_LE(max_error(got, want), 1e-5 * max_abs(want));
          };
          // Where l is nearly 0 and so is the floor, h answers to the last bit of everything: the
          // bound has room for twice what float32 inputs and plain float arithmetic do there.
          oracle::MlstmInputs stored = in;
          oracle::MlstmInputsOf<float> single;
          single.heads = in.heads;
          single.dqk = in.dqk;
          single.dv = in.dv;
          const auto both = [](Array& from, oracle::Vector& to, std::vector<float>& to_float) {
            to = from.values();
            to_float = from.floats();
          };
          both(q, stored.q, single.q);
          both(k, stored.k, single.k);
          both(v, stored.v, single.v);
          both(i, stored.i, single.i);
          both(log_f, stored.log_f, single.log_f);
          oracle::MlstmState state = cell.initial;
          const double inputs = max_error(oracle::mlstm_recurrent(stored, state), cell.h);
          oracle::MlstmStateOf<float> float_state;
          float_state.c.assign(cell.initial.c.begin(), cell.initial.c.end());
          float_state.n.assign(cell.initial.n.begin(), cell.initial.n.end());
          float_state.m.assign(cell.initial.m.begin(), cell.initial.m.end());
          const auto naive = oracle::mlstm_recurrent(single, float_state);
          const double arithmetic = max_error({naive.begin(), naive.end()}, cell.h);
          EXPECT_LE(max_error(h.values(), cell.h),
                    1e-5 * max_abs(cell.h) + 2 * (inputs + arithmetic));
          const oracle::MlstmState last = record.state<double>();
          near(last.c, cell.last.c);
          near(last.n, cell.last.n);
          near(last.m, cell.last.m);
        }
  });
}

// To the bit what a record of zeros gives, whose final state nobody reads; with records beside it.
TEST(Mlstm, ASequenceWithoutARecordStartsFromZero) {
  for_each_isa([] {
    const int heads = 2, dqk = 20, dv = 300, tokens = 41;
    std::mt19937 random(9);
    Array q = Array::random(random, DType::f32, {tokens, heads * dqk}), k = q;
    Array v = Array::random(random, DType::f32, {tokens, heads * dv});
    Array gate = Array::random(random, DType::f32, {tokens, heads}, 0.5, -2.0);
    const std::vector<std::int32_t> offsets{0, 30, 31, 41};
    for (MlstmGate kind : {MlstmGate::exponential, MlstmGate::sigmoid})
      for (int threads : {1, 8}) {
        std::vector<std::vector<std::byte>> results;
        for (bool records : {true, false}) {
          std::vector<MlstmRecord> states(3, MlstmRecord({heads, dqk, dv}));
          std::vector<std::byte*> slots;
          for (MlstmRecord& state : states) slots.push_back(state.data());
          if (!records) slots[0] = slots[1] = nullptr;
          const Batch batch{offsets, slots};
          Array h(DType::f32, {tokens, heads * dv}, 3);
          Context context(test_device(), threads);
          test::run<MlstmArgs>(context, mlstm,
                               {.q = q.tensor(),
                                .k = k.tensor(),
                                .v = v.tensor(),
                                .i = gate.tensor(),
                                .log_f = gate.tensor(),
                                .batch = batch,
                                .state = states[0].offsets(),
                                .h = h.tensor(),
                                .gate = kind});
          results.push_back(h.bytes());
          if (kind == MlstmGate::sigmoid) {
            EXPECT_EQ(states[2].m()[0], 0.0) << "m stays 0";
          }
          EXPECT_NE(states[2].c()[0], 0.0F);
          EXPECT_EQ(states[0].c()[0] != 0.0F, records);
        }
        EXPECT_EQ(results[0], results[1]);
      }
  });
}

TEST(Mlstm, RefusesBadArguments) {
  Array wide(DType::f32, {2, 6}), gates(DType::f32, {2, 2}), three(DType::f32, {2, 3});
  std::vector<std::int32_t> offsets{0, 2};
  std::byte* slot = nullptr;
  Context context(test_device(), 1);
  const auto call = [&](Tensor v, Tensor h, std::int64_t chunk) {
    const Batch batch{offsets, {&slot, 1}};
    mlstm(context, {.q = wide.tensor(),
                    .k = wide.tensor(),
                    .v = v,
                    .i = gates.tensor(),
                    .log_f = gates.tensor(),
                    .batch = batch,
                    .state = {},
                    .chunk = chunk,
                    .h = h});
  };
  const Tensor w = wide.tensor();
  expect_refused([&] { call(w, w, 0); }, "mlstm: chunk must be at least 1, found 0");
  expect_refused([&] { call(w, gates.tensor(), 8); },
                 "h must be f32 or bf16[2, 6], found f32[2, 2]");
  expect_refused([&] { call(three.tensor(), w, 8); }, "must be multiples of 2 heads");
  offsets = {0, 1};
  expect_refused([&] { call(w, w, 8); }, "i must be f32[1, 2], found f32[2, 2]");
  offsets = {0, 0};
  expect_refused([&] { call(w, w, 8); }, "offsets must rise");
  offsets = {1, 2};
  expect_refused([&] { call(w, w, 8); }, "offsets[0] must be 0");
  offsets = {0, 1, 2};
  expect_refused([&] { call(w, w, 8); }, "offsets = sequences + 1");
}

}  // namespace
}  // namespace xlstm::ops::test
