// sLSTM on CUDA where its products may round h (SlstmArgs::product), in every size of head for
// which the bodies keep R somewhere else.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/cuda_device.hpp"
#include "ops/cuda/slstm_cluster_plan.hpp"
#include "ops/cuda/slstm_grid_plan.hpp"
#include "ops/slstm.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {
namespace {

struct Shape {
  int heads, dh;
  std::vector<int> lengths;
  DType weights = DType::bf16;
};

class RoundedProblem {
 public:
  RoundedProblem(Shape shape, unsigned seed, DType product = DType::bf16)
      : shape_(std::move(shape)), product_(product) {
    std::mt19937 random(seed);
    const int d = width();
    offsets_ = {0};
    for (int length : shape_.lengths) offsets_.push_back(offsets_.back() + length);
    wx_ = Array::random(random, DType::f32, {offsets_.back(), 4 * d}, 2.0);
    r_ = Array::random(random, shape_.weights, {shape_.heads * 4 * shape_.dh, shape_.dh},
                       1 / std::sqrt(shape_.dh));
    b_ = Array::random(random, DType::f32, {4 * d});
    for (std::size_t s = 0; s < shape_.lengths.size(); ++s) {
      states_.push_back(Array::random(random, DType::f32, {4 * d}).floats());
      for (int j = 0; j < d; ++j) {
        const auto at = [&](int part) -> float& {
          return states_.back()[static_cast<std::size_t>(part * d + j)];
        };
        at(2) = j % 3 == 0 ? 0.0F : std::fabs(at(2)) + 0.25F;
        at(1) = at(2) * std::tanh(at(1));
        at(0) = std::tanh(at(0));
      }
    }
  }

  int width() const { return shape_.heads * shape_.dh; }
  const Shape& shape() const { return shape_; }
  std::vector<std::vector<float>> states() const { return states_; }

  struct Result {
    std::vector<float> h;
    std::vector<std::vector<float>> after;
    bool operator==(const Result& other) const {
      const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
        return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
      };
      if (!same(h, other.h) || after.size() != other.after.size()) return false;
      for (std::size_t s = 0; s < after.size(); ++s)
        if (!same(after[s], other.after[s])) return false;
      return true;
    }
  };

  /// Tokens [from, to) of sequences [first, first + states): those of each from its own count on
  /// are missing. A graph of the call runs instead of it, `graphs` times from the same states.
  Result run_part(std::size_t first, std::vector<std::vector<float>> states, int from = 0,
                  int to = 1 << 20, int graphs = 0, int null_record = -1) {
    const int d = width();
    std::vector<std::int32_t> ends = {0};
    std::vector<double> rows;
    std::vector<std::byte*> slots;
    const std::vector<float> all = wx_.floats();
    for (std::size_t i = 0; i < states.size(); ++i) {
      const std::int32_t begin = offsets_[first + i] + from;
      const std::int32_t end = std::min(offsets_[first + i] + to, offsets_[first + i + 1]);
      rows.insert(rows.end(), all.begin() + static_cast<std::ptrdiff_t>(begin) * 4 * d,
                  all.begin() + static_cast<std::ptrdiff_t>(end) * 4 * d);
      ends.push_back(ends.back() + end - begin);
      slots.push_back(static_cast<int>(i) == null_record
                          ? nullptr
                          : reinterpret_cast<std::byte*>(states[i].data()));
    }
    const Batch batch{ends, slots};
    Array wx = Array::of(DType::f32, {ends.back(), 4 * d}, rows);
    Array h(DType::f32, {ends.back(), d});
    const auto bytes = static_cast<std::size_t>(d) * sizeof(float);
    const Tensor r = r_.tensor();
    const SlstmArgs args{
        .wx = wx.tensor(),
        .r = Tensor::dense(r.data, r.dtype, {shape_.heads, 4 * shape_.dh, shape_.dh}),
        .b = b_.tensor(),
        .batch = batch,
        .state = {0, bytes, 2 * bytes, 3 * bytes},
        .h = h.tensor(),
        .product = product_};
    Context context(test_device(), 1);
    if (graphs == 0) {
      run_alone(context, slstm, args);
    } else {
      context.start_measuring();
      slstm(context, args);
      context.finish_measuring();
      xlstm::cuda::begin_capture(context.stream(), test_device());
      slstm(context, args);
      void* const graph = xlstm::cuda::end_capture(context.stream(), test_device());
      const auto before = states;
      for (int i = 0; i < graphs; ++i) {
        for (std::size_t s = 0; s < states.size(); ++s)
          std::copy(before[s].begin(), before[s].end(), states[s].begin());
        h.poison();
        xlstm::cuda::launch_graph(graph, context.stream(), test_device());
        context.synchronize();
      }
      xlstm::cuda::destroy_graph(graph, test_device());
    }
    context.synchronize();
    return {h.floats(), std::move(states)};
  }
  Result run_all() { return run_part(0, states_); }

  std::vector<double> exact(std::vector<double>* after) const {
    std::vector<double> h;
    recur<double>(false, &h, after);
    return h;
  }
  std::vector<float> naive(std::vector<float>* after) const {
    std::vector<float> h;
    recur<float>(product_ == DType::bf16, &h, after);
    return h;
  }

 private:
  /// The recurrence in Real, h rounded to the type of R for the products or not.
  template <class Real>
  void recur(bool round, std::vector<Real>* h_out, std::vector<Real>* after) const {
    const int d = width(), dh = shape_.dh;
    const std::vector<double> r = r_.values(), wx = wx_.values(), b = b_.values();
    h_out->assign(static_cast<std::size_t>(offsets_.back()) * d, 0);
    for (std::size_t s = 0; s < shape_.lengths.size(); ++s) {
      std::vector<Real> state(states_[s].begin(), states_[s].end());
      Real *h = state.data(), *c = h + d, *n = c + d, *m = n + d;
      for (int t = offsets_[s]; t < offsets_[s + 1]; ++t) {
        std::vector<Real> x(h, h + d);
        if (round)
          for (Real& value : x) value = static_cast<Real>(rounded(shape_.weights, value));
        for (int j = 0; j < d; ++j) {
          Real raw[4];
          for (int q = 0; q < 4; ++q) {
            Real sum = 0;
            const double* row =
                r.data() + (std::size_t(j / dh) * 4 * dh + q * dh + j % dh) * std::size_t(dh);
            for (int k = 0; k < dh; ++k) sum += static_cast<Real>(row[k]) * x[j / dh * dh + k];
            raw[q] = static_cast<Real>(wx[static_cast<std::size_t>(t) * 4 * d + q * d + j]) +
                     static_cast<Real>(b[static_cast<std::size_t>(q * d + j)]) + sum;
          }
          const Real decayed =
              m[j] + std::min(raw[1], Real(0)) - std::log1p(std::exp(-std::fabs(raw[1])));
          const Real most = n[j] == 0 ? raw[0] : std::max(raw[0], decayed);
          const Real in = std::min(std::exp(raw[0] - most), Real(1));
          const Real keep = std::min(std::exp(decayed - most), Real(1));
          c[j] = keep * c[j] + in * std::tanh(raw[2]);
          n[j] = keep * n[j] + in;
          m[j] = most;
          h[j] = c[j] / n[j] / (1 + std::exp(-raw[3]));
          (*h_out)[static_cast<std::size_t>(t) * d + j] = h[j];
        }
      }
      after->insert(after->end(), state.begin(), state.end());
    }
  }

  Shape shape_;
  DType product_;
  std::vector<std::int32_t> offsets_;
  Array wx_{DType::f32, {1}}, r_{DType::f32, {1}}, b_{DType::f32, {1}};
  std::vector<std::vector<float>> states_;
};

std::vector<Shape> shapes() {
  const std::vector<int> lengths = {7, 1, 12, 3, 9, 2, 5, 11, 4, 8};  // more than a group of 8
  return {{3, 5, lengths},
          {2, 24, lengths},
          {2, 100, lengths},
          {1, 128, {6}},
          {2, 192, lengths, DType::f16},
          {1, 320, {3, 5}},
          {2, 400, {3, 27, 1}},
          {2, 513, {3, 2, 1, 2, 1, 9, 2, 1, 3}},
          {1, 768, {4, 2, 1, 5, 3, 2, 1, 1, 6, 2, 1, 3, 2, 1, 4, 2, 3, 2}},
          {1, 1024, {2, 19}}};
}

TEST(SlstmRounded, IsWithinTwiceTheNaiveError) {
  for (DType product : {DType::bf16, DType::f32}) {
    unsigned seed = 40;
    Errors h_errors, state_errors;
    for (const Shape& shape : shapes())
      for (DType weights : {shape.weights, DType::f32}) {
        Shape s = shape;
        s.weights = weights;
        if (weights == DType::f32 && product == DType::bf16) continue;
        RoundedProblem p(s, ++seed, product);
        const auto got = p.run_all();
        std::vector<double> want_after, after;
        std::vector<float> naive_after;
        const auto want = p.exact(&want_after);
        const auto naive = p.naive(&naive_after);
        for (const auto& state : got.after) after.insert(after.end(), state.begin(), state.end());
        h_errors.add({got.h.begin(), got.h.end()}, want, naive);
        state_errors.add(after, want_after, naive_after);
      }
    h_errors.expect_at_most_twice_naive("h");
    state_errors.expect_at_most_twice_naive("states");
  }
}

TEST(SlstmRounded, BatchesCutsRepeatsAndGraphsChangeNoBit) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape.dh);
    RoundedProblem p(shape, 7);
    const auto together = p.run_all();
    const int repeats = shape.dh < 100 || shape.dh == 192 ? 20 : 2;
    for (int i = 0; i < repeats; ++i) EXPECT_TRUE(p.run_all() == together) << i;
    EXPECT_TRUE(p.run_part(0, p.states(), 0, 1 << 20, 2) == together) << "graph";
    std::size_t at = 0;
    for (std::size_t s = 0; s < p.states().size(); ++s) {
      const int length = shape.lengths[s], cut = length / 2;
      if (s % 5 != 0) {
        at += static_cast<std::size_t>(length * p.width());
        continue;
      }
      auto whole = p.run_part(s, {p.states()[s]}, 0, length);
      EXPECT_EQ(whole.after[0], together.after[s]) << s;
      for (float value : whole.h) ASSERT_EQ(value, together.h[at++]) << s;
      if (cut == 0) continue;
      auto first = p.run_part(s, {p.states()[s]}, 0, cut);
      const auto second = p.run_part(s, first.after, cut, length);
      first.h.insert(first.h.end(), second.h.begin(), second.h.end());
      EXPECT_EQ(first.h, whole.h) << s;
      EXPECT_EQ(second.after, whole.after) << s;
    }
  }
}

TEST(SlstmRounded, ANullRecordIsTheZeroState) {
  RoundedProblem p({2, 24, {4, 5, 3}}, 8);
  auto states = p.states();
  std::fill(states[1].begin(), states[1].end(), 0.0F);
  const auto zero = p.run_part(0, states);
  const auto null = p.run_part(0, p.states(), 0, 1 << 20, 0, 1);
  EXPECT_EQ(null.h, zero.h);
  EXPECT_EQ(null.after[0], zero.after[0]);
  EXPECT_EQ(null.after[1], p.states()[1]);
  EXPECT_EQ(null.after[2], zero.after[2]);
}

TEST(SlstmClusterPlan, ShapesAloneDecide) {
  float number = 0;
  const auto plan = [&](std::int64_t dh, DType type, int parts = 1, int most = 16) {
    return cuda::SlstmClusterPlan(Tensor::dense(&number, type, {2, 4 * dh, dh}), parts, most);
  };
  for (std::int64_t dh = 1; dh <= 1024; ++dh)
    for (DType type : {DType::bf16, DType::f32})
      for (int parts : {1, 3})
        for (int most : {8, 16}) {
          const auto p = plan(dh, type, parts, most);
          if (!p.fits) continue;
          EXPECT_LE(p.blocks, most);
          EXPECT_LE(p.warps, cuda::SlstmClusterPlan::kMostWarps);
          EXPECT_LE(p.shared, cuda::SlstmClusterPlan::kMostShared);
          EXPECT_GE(p.warps * p.blocks, p.tiles) << dh;
          EXPECT_GE(p.columns * (type == DType::f32 ? 32 : 16), dh);
          EXPECT_EQ(p.columns, plan(dh, type, parts, 16).columns) << "the order of sums";
        }
  for (std::int64_t dh : {1, 24, 100, 128, 192, 320, 384}) {
    EXPECT_TRUE(plan(dh, DType::bf16).fits) << dh;
    EXPECT_TRUE(plan(dh, DType::bf16, 3).fits) << dh;
    EXPECT_TRUE(plan(dh, DType::f32).fits) << dh;
  }
  EXPECT_FALSE(plan(385, DType::bf16).fits);
  EXPECT_FALSE(plan(768, DType::f32).fits);
}

TEST(SlstmGridPlan, TakesWideHeadsWhoseProductsMayRound) {
  float number = 0;
  const std::vector<std::int32_t> ends(34);
  const std::vector<std::byte*> slots(33);
  const Batch batch{ends, slots};
  const auto plan = [&](std::int64_t dh, DType type = DType::bf16, DType product = DType::bf16,
                        int multiprocessors = 132) {
    return cuda::SlstmGridPlan(batch, Tensor::dense(&number, type, {2, 4 * dh, dh}), product,
                               multiprocessors);
  };
  for (std::int64_t dh = 385; dh <= 1024; ++dh)
    for (int multiprocessors : {64, 114, 132}) {
      const auto p = plan(dh, DType::bf16, DType::bf16, multiprocessors);
      EXPECT_TRUE(p.fits);
      EXPECT_GE(p.blocks * p.tiles * 4, dh);
      EXPECT_GE(p.teams, 1);
      EXPECT_LE(p.teams * p.blocks, multiprocessors);
      EXPECT_GE(p.pieces * 8 * 16, dh);
      EXPECT_EQ(p.pieces, plan(dh).pieces) << "the order of sums";
      EXPECT_EQ(p.items, 2 * 5);
      EXPECT_EQ(p.scratch(), plan(dh, DType::bf16, DType::bf16, 0).scratch());
      EXPECT_GE(p.scratch(), static_cast<std::size_t>(p.items * 8 * 8 * dh * 2));
    }
  EXPECT_EQ(plan(768).teams, 2);
  EXPECT_EQ(plan(512).teams, 4);
  EXPECT_EQ(plan(1024).teams, 2);
  EXPECT_FALSE(plan(384).fits);
  EXPECT_FALSE(plan(1025).fits);
  EXPECT_FALSE(plan(768, DType::f32).fits);
  EXPECT_FALSE(plan(768, DType::bf16, DType::f32).fits);
  EXPECT_EQ(plan(768, DType::f32).scratch(), 0U);
}

}  // namespace
}  // namespace xlstm::ops::test
