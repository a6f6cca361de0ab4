#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/mlstm.hpp"
#include "ops/mlstm_gradient.hpp"
#include "ops/mlstm_problem.hpp"

namespace xlstm::ops::test {
namespace {

constexpr CellKind kKinds[] = {{MlstmGate::exponential, true, true},
                               {MlstmGate::exponential, true, false},
                               {MlstmGate::sigmoid, true, true},
                               {MlstmGate::sigmoid, true, false},
                               {MlstmGate::sigmoid, false, true}};

std::string name(const CellKind& kind) {
  return std::string(kind.gate == MlstmGate::sigmoid ? "sigmoid" : "exponential") +
         (kind.normalise ? "" : ", not normalised") + (kind.exact ? "" : ", frozen");
}

/// How sequences begin and end.
enum class States { none, initial, both };

/// One backward pass over a ragged batch.
class Backward {
 public:
  Backward(MlstmShape shape, std::vector<int> lengths, Regime regime, CellKind kind, States states,
           unsigned seed)
      : problem(shape, lengths, regime, seed, states != States::none),
        shape_(shape),
        kind_(kind),
        states_(states) {
    const std::int64_t tokens = problem.i.values().size() / shape.heads;
    std::mt19937 random(seed + 1);
    d_h = Array::random(random, DType::f32, {tokens, shape.heads * shape.dv}, 1.0, 0.0, 2);
    if (kind.gate == MlstmGate::sigmoid)
      for (std::int64_t t = 0; t < tokens; ++t)
        for (int head = 0; head < shape.heads; ++head)
          problem.i.set(
              t, head,
              oracle::log_sigmoid(problem.i.values()[std::size_t(t * shape.heads + head)]));
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      initial_.emplace_back(shape);
      initial_.back().set(problem.float_state(s));
      if (kind.gate == MlstmGate::sigmoid) std::ranges::fill(initial_.back().m(), 0.0);
      d_last_.emplace_back(shape);
      if (states == States::both) d_last_.back().fill(random);
    }
  }

  /// h by the forward op, then all gradients.
  void run(int threads, std::int64_t chunk) {
    const std::int64_t qk = shape_.heads * shape_.dqk, v = shape_.heads * shape_.dv;
    const auto tokens = std::int64_t(problem.i.values().size()) / shape_.heads;
    for (Array* array : {&h, &d_v}) *array = Array(DType::f32, {tokens, v}, 3);
    for (Array* array : {&d_q, &d_k}) *array = Array(DType::f32, {tokens, qk}, 1);
    for (Array* array : {&d_i, &d_log_f}) *array = Array(DType::f32, {tokens, shape_.heads}, 2);
    std::vector<MlstmRecord> forward = initial_, initial = initial_;
    d_records = d_last_;
    std::vector<std::int32_t> offsets{0};
    std::vector<std::byte*> forward_slots, slots, d_slots;
    const auto slot = [&](MlstmRecord& record) {
      return states_ == States::none ? nullptr : record.data();
    };
    for (std::size_t s = 0; s < initial_.size(); ++s) {
      offsets.push_back(offsets.back() + problem.lengths()[s]);
      forward_slots.push_back(slot(forward[s]));
      slots.push_back(slot(initial[s]));
      d_slots.push_back(states_ == States::both ? slot(d_records[s]) : nullptr);
    }
    const Batch forward_batch{offsets, forward_slots}, batch{offsets, slots};
    const MlstmStateOffsets& at = initial_.front().offsets();
    const Tensor all = problem.qkv.tensor();
    Context context({}, threads);
    const MlstmArgs cell{.q = all.cols(0, qk),
                         .k = all.cols(qk, qk),
                         .v = all.cols(2 * qk, v),
                         .i = problem.i.tensor(),
                         .log_f = problem.log_f.tensor(),
                         .batch = forward_batch,
                         .state = at,
                         .chunk = chunk,
                         .h = h.tensor(),
                         .gate = kind_.gate,
                         .normalise = kind_.normalise};
    test::run<MlstmArgs>(context, mlstm, cell);
    if (poison_h) poison_h(h);
    test::run<MlstmBackwardArgs>(context, mlstm_backward,
                                 {.q = cell.q,
                                  .k = cell.k,
                                  .v = cell.v,
                                  .i = cell.i,
                                  .log_f = cell.log_f,
                                  .batch = batch,
                                  .state = at,
                                  .d_slots = d_slots,
                                  .chunk = chunk,
                                  .gate = kind_.gate,
                                  .normalise = kind_.normalise,
                                  .exact = kind_.exact,
                                  .h = h.tensor(),
                                  .d_h = d_h.tensor(),
                                  .d_q = d_q.tensor(),
                                  .d_k = d_k.tensor(),
                                  .d_v = d_v.tensor(),
                                  .d_i = d_i.tensor(),
                                  .d_log_f = d_log_f.tensor()});
    for (Array* array : {&d_q, &d_k, &d_v, &d_i, &d_log_f}) EXPECT_TRUE(array->gaps_untouched());
    EXPECT_EQ(initial, initial_) << "the initial states are only read";
    if (states_ != States::both) {
      EXPECT_EQ(d_records, d_last_);
    }
  }

  /// Rows of sequence s of all gradients, then those of its initial state.
  std::vector<std::vector<double>> gradients(std::size_t s) {
    std::vector<std::vector<double>> result;
    std::int64_t first = 0;
    for (std::size_t before = 0; before < s; ++before) first += problem.lengths()[before];
    for (Array* array : {&d_q, &d_k, &d_v, &d_i, &d_log_f}) {
      const std::vector<double> all = array->values();
      const auto width =
          std::int64_t(all.size() * std::size_t(shape_.heads) / problem.i.values().size());
      result.emplace_back(all.begin() + first * width,
                          all.begin() + (first + problem.lengths()[s]) * width);
    }
    const oracle::MlstmState d = d_records[s].state<double>();
    result.insert(result.end(), {d.c, d.n, d.m});
    return result;
  }

  /// The largest |d_h h| of a token and head.
  double largest_product() {
    const std::vector<double> a = d_h.values(), b = h.values();
    double most = 0;
    for (std::size_t at = 0; at < a.size(); at += std::size_t(shape_.dv)) {
      double sum = 0;
      for (std::size_t x = at; x < at + std::size_t(shape_.dv); ++x) sum += a[x] * b[x];
      most = std::max(most, std::abs(sum));
    }
    return most;
  }

  template <class Real>
  std::vector<std::vector<Real>> reference(std::size_t s) {
    oracle::MlstmInputsOf<Real> in;
    const oracle::MlstmInputsOf<float> single = problem.float_inputs(s);
    in.heads = single.heads;
    in.dqk = single.dqk;
    in.dv = single.dv;
    in.eps = Real(1e-6F);
    in.q.assign(single.q.begin(), single.q.end());
    in.k.assign(single.k.begin(), single.k.end());
    in.v.assign(single.v.begin(), single.v.end());
    in.i.assign(single.i.begin(), single.i.end());
    in.log_f.assign(single.log_f.begin(), single.log_f.end());
    std::int64_t first = 0;
    for (std::size_t before = 0; before < s; ++before) first += problem.lengths()[before];
    const std::vector<double> all = d_h.values();
    const std::int64_t width = shape_.heads * shape_.dv;
    const std::vector<Real> d(all.begin() + first * width,
                              all.begin() + (first + problem.lengths()[s]) * width);
    const auto g =
        mlstm_gradients<Real>(in, initial_[s].state<Real>(), d, d_last_[s].state<Real>(), kind_);
    std::vector<std::vector<Real>> result{g.q, g.k, g.v, g.i, g.log_f};
    if (states_ == States::both) {
      result.push_back(g.state.c);
      result.push_back(g.state.n);
      result.push_back(g.state.m);
    }
    return result;
  }

  MlstmProblem problem;
  Array d_h{DType::f32, {1}}, h = d_h, d_q = d_h, d_k = d_h, d_v = d_h, d_i = d_h, d_log_f = d_h;
  std::vector<MlstmRecord> d_records;
  std::function<void(Array&)> poison_h;

 private:
  MlstmShape shape_;
  CellKind kind_;
  States states_;
  std::vector<MlstmRecord> initial_, d_last_;
};

constexpr const char* kNames[] = {"d_q", "d_k", "d_v", "d_i", "d_log_f", "d_C", "d_n", "d_m"};

/// Compares with the recurrent form in double, beside the same in plain float.
class Comparison {
 public:
  /// All sequences of a batch together: the gradients of one alone may be 0 but for rounding, as
  /// that of q is for a single token.
  void add(Backward& backward) {
    std::vector<std::vector<double>> got(8), want(8);
    std::vector<std::vector<float>> naive(8);
    const auto append = [](auto& all, const auto& some) {
      for (std::size_t i = 0; i < some.size(); ++i)
        all[i].insert(all[i].end(), some[i].begin(), some[i].end());
    };
    for (std::size_t s = 0; s < backward.problem.lengths().size(); ++s) {
      const auto exact = backward.reference<double>(s);
      append(want, exact);
      auto some = backward.gradients(s);
      some.resize(exact.size());
      append(got, some);
      append(naive, backward.reference<float>(s));
      used_ = exact.size();
    }
    const double products = backward.largest_product();
    for (std::size_t i = 0; i < used_; ++i) {
      const double scale = std::max(max_abs(want[i]), is_gate(i) ? products : 1e-30);
      engine_[i] = std::max(engine_[i], max_error(got[i], want[i]) / scale);
      naive_[i] =
          std::max(naive_[i], max_error({naive[i].begin(), naive[i].end()}, want[i]) / scale);
    }
  }
  /// Within a few times the naive error. Gates' gradients are sums over tokens of differences
  /// around d_h h, of which rounding is left where h does not depend on a gate. `vanishing`: that
  /// is so for q and k too, as after one token that outweighs all others: h is its +-v.
  void expect_near_naive(bool vanishing = false) const {
    for (std::size_t i = 0; i < used_; ++i) {
      EXPECT_LT(naive_[i], vanishing ? 0.1 : 0.01) << kNames[i];
      const double slack = !is_gate(i) ? 4e-7 : vanishing ? 2e-4 : 1e-5;
      EXPECT_LE(engine_[i], 4 * naive_[i] + slack) << kNames[i];
    }
  }

 private:
  static bool is_gate(std::size_t i) { return i == 3 || i == 4; }

  double engine_[8] = {}, naive_[8] = {};
  std::size_t used_ = 0;
};

// The reference above by central differences: every input, and the initial state.
TEST(MlstmBackward, ReferenceMatchesCentralDifferences) {
  for (CellKind kind : kKinds) {
    if (!kind.exact) continue;
    SCOPED_TRACE(name(kind));
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    const auto draw = [&](std::size_t count, double mean) {
      std::vector<double> values(count);
      for (double& value : values) value = mean + normal(random);
      return values;
    };
    const int tokens = 6;
    oracle::MlstmInputs in;
    in.heads = 2;
    in.dqk = 3;
    in.dv = 2;
    in.eps = 0.1;  // or the gradients through m would be lost
    in.q = draw(tokens * 6, 0);
    in.k = draw(tokens * 6, 0);
    in.v = draw(tokens * 4, 0);
    in.i = draw(tokens * 2, 0);
    in.log_f = draw(tokens * 2, 1);
    for (double& f : in.log_f) f = oracle::log_sigmoid(f);
    if (kind.gate == MlstmGate::sigmoid)
      for (double& i : in.i) i = oracle::log_sigmoid(i);
    oracle::MlstmState initial(2, 3, 2), d_last(2, 3, 2);
    initial.c = draw(initial.c.size(), 0);
    initial.n = draw(initial.n.size(), 0);
    d_last.c = draw(d_last.c.size(), 0);
    d_last.n = draw(d_last.n.size(), 0);
    if (kind.gate == MlstmGate::exponential) {
      initial.m = draw(2, 0);
      d_last.m = draw(2, 0);
    }
    const oracle::Vector d_h = draw(tokens * 4, 0);
    const auto loss = [&] {
      oracle::MlstmState last = initial;
      const oracle::Vector h = mlstm_cell<double>(in, last, kind);
      double sum = 0;
      const auto add = [&sum](const oracle::Vector& a, const oracle::Vector& b) {
        for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
      };
      add(d_h, h);
      add(d_last.c, last.c);
      add(d_last.n, last.n);
      add(d_last.m, last.m);
      return sum;
    };
    auto g = mlstm_gradients<double>(in, initial, d_h, d_last, kind);
    std::vector<std::pair<oracle::Vector*, oracle::Vector*>> pairs{
        {&in.q, &g.q},           {&in.k, &g.k},         {&in.v, &g.v},
        {&in.i, &g.i},           {&in.log_f, &g.log_f}, {&initial.c, &g.state.c},
        {&initial.n, &g.state.n}};
    if (kind.gate == MlstmGate::exponential) pairs.emplace_back(&initial.m, &g.state.m);
    for (std::size_t p = 0; p < pairs.size(); ++p)
      for (std::size_t at = 0; at < pairs[p].first->size(); ++at) {
        double& x = (*pairs[p].first)[at];
        const double before = x, step = 1e-5;
        x = before + step;
        const double up = loss();
        x = before - step;
        const double down = loss();
        x = before;
        EXPECT_NEAR((*pairs[p].second)[at], (up - down) / (2 * step), 1e-6)
            << kNames[p] << " " << at;
      }
  }
}

TEST(MlstmBackward, MatchesTheReferenceInEveryRegime) {
  for_each_isa([] {
    for (CellKind kind : kKinds)
      for (Regime regime : kRegimes) {
        SCOPED_TRACE(name(kind) + ", " + to_string(regime));
        Comparison comparison;
        for (int chunk : {1, 7, 16, 64})
          for (States states : {States::none, States::both}) {
            Backward backward({2, 16, 24}, {77, 1, 64, 2}, regime, kind, states, 1);
            backward.run(2, chunk);
            comparison.add(backward);
          }
        comparison.expect_near_naive(regime == Regime::one_huge && kind.exact);
      }
  });
}

TEST(MlstmBackward, MatchesTheReferenceAtEveryShape) {
  for_each_isa([] {
    unsigned seed = 0;
    Comparison comparison;
    for (MlstmShape shape : {MlstmShape{1, 1, 1}, MlstmShape{3, 5, 7}, MlstmShape{1, 17, 130},
                             MlstmShape{2, 33, 300}, MlstmShape{5, 16, 31}})
      for (int threads : {1, 3})
        for (States states : {States::none, States::initial, States::both}) {
          Backward backward(shape, {1, 40, 3}, Regime::typical, kKinds[0], states, ++seed);
          backward.run(threads, 16);
          comparison.add(backward);
        }
    comparison.expect_near_naive();
  });
}

// To the bit: not the number of threads, not the other sequences of a batch.
TEST(MlstmBackward, ThreadsChangeNoBit) {
  for (MlstmShape shape : {MlstmShape{1, 24, 300}, MlstmShape{3, 16, 40}}) {
    Backward backward(shape, {50, 1, 130, 2}, Regime::typical, kKinds[0], States::both, 4);
    backward.run(1, 32);
    std::vector<std::vector<std::vector<double>>> want;
    for (std::size_t s = 0; s < 4; ++s) want.push_back(backward.gradients(s));
    for (int threads : {2, 3, 8}) {
      backward.run(threads, 32);
      for (std::size_t s = 0; s < 4; ++s) EXPECT_EQ(backward.gradients(s), want[s]) << threads;
    }
  }
}

// A NaN stays in its sequence and head.
TEST(MlstmBackward, NanStaysInItsSequenceAndHead) {
  for_each_isa([] {
    for (int chunk : {1, 16, 64})
      for (int input = 0; input < 7; ++input) {  // q, k, v, i, log f, h, d_h
        SCOPED_TRACE("chunk " + std::to_string(chunk) + ", input " + std::to_string(input));
        Backward backward({2, 20, 24}, {40, 40, 3}, Regime::typical, kKinds[0], States::both, 5);
        backward.run(2, chunk);
        const auto first = backward.gradients(0), clean = backward.gradients(1);
        const auto last = backward.gradients(2);
        const int row = 40 + 21;  // head 0 of the second sequence
        if (input < 3) backward.problem.qkv.set(row, 40 * input + 3, NAN);
        if (input == 3) backward.problem.i.set(row, 0, NAN);
        if (input == 4) backward.problem.log_f.set(row, 0, NAN);
        if (input == 5) backward.poison_h = [](Array& h) { h.set(row, 3, NAN); };
        if (input == 6) backward.d_h.set(row, 3, NAN);
        backward.run(2, chunk);
        EXPECT_EQ(backward.gradients(0), first);
        EXPECT_EQ(backward.gradients(2), last);
        const auto got = backward.gradients(1);
        const std::size_t widths[] = {20, 20, 24, 1, 1};
        bool any = false;
        for (std::size_t i = 0; i < 5; ++i)
          for (std::size_t at = 0; at < got[i].size(); ++at) {
            if (at / widths[i] % 2 == 0)
              any = any || std::isnan(got[i][at]);
            else
              EXPECT_EQ(got[i][at], clean[i][at]) << kNames[i] << " " << at;
          }
        EXPECT_TRUE(any);
      }
  });
}

TEST(MlstmBackward, RefusesBadArguments) {
  Array wide(DType::f32, {2, 6}), gates(DType::f32, {2, 2});
  const std::vector<std::int32_t> offsets{0, 2};
  std::byte* slot = nullptr;
  Context context({}, 1);
  const Tensor w = wide.tensor(), g = gates.tensor();
  const auto call = [&](Tensor d_q, bool normalise, std::size_t records) {
    const Batch batch{offsets, {&slot, 1}};
    const std::vector<std::byte*> d_slots(records);
    mlstm_backward(context, {.q = w,
                             .k = w,
                             .v = w,
                             .i = g,
                             .log_f = g,
                             .batch = batch,
                             .state = {},
                             .d_slots = d_slots,
                             .normalise = normalise,
                             .h = w,
                             .d_h = w,
                             .d_q = d_q,
                             .d_k = w,
                             .d_v = w,
                             .d_i = g,
                             .d_log_f = g});
  };
  expect_refused([&] { call(g, true, 0); }, "d_q must be f32[2, 6], found f32[2, 2]");
  expect_refused([&] { call(w, false, 0); }, "the exponential gate needs the denominator");
  expect_refused([&] { call(w, true, 2); }, "one for each of 1 sequences, found 2");
}

}  // namespace
}  // namespace xlstm::ops::test
