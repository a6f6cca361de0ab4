#pragma once
// Inputs, states and runs of the sLSTM for tests on a CUDA device, where its products may round h.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/cuda_device.hpp"
#include "ops/mlstm_problem.hpp"
#include "ops/slstm.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {

struct SlstmShape {
  int heads, dh;
  std::vector<int> lengths;
  DType weights = DType::bf16;
};

class RoundedProblem {
 public:
  /// @param regime  of i and f before the stabiliser, of each unit by itself; typical: none, all of
  ///                wx is normal
  RoundedProblem(SlstmShape shape, unsigned seed, DType product = DType::bf16,
                 Regime regime = Regime::typical)
      : shape_(std::move(shape)), product_(product) {
    std::mt19937 random(seed);
    const int d = width();
    offsets_ = {0};
    for (int length : shape_.lengths) offsets_.push_back(offsets_.back() + length);
    wx_ = Array::random(random, DType::f32, {offsets_.back(), 4 * d}, 2.0);
    r_ = Array::random(random, shape_.weights, {shape_.heads * 4 * shape_.dh, shape_.dh},
                       1 / std::sqrt(shape_.dh));
    b_ = Array::random(random, DType::f32, {4 * d}, regime == Regime::constant ? 0.0 : 1.0);
    if (regime != Regime::typical) set_gates(regime, random);
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
  const SlstmShape& shape() const { return shape_; }
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
  /// `constant` are zeros in z and o, too.
  void set_gates(Regime regime, std::mt19937& random) {
    const int d = width();
    for (std::size_t s = 0; s < shape_.lengths.size(); ++s)
      for (int t = 0; t < shape_.lengths[s]; ++t)
        for (int j = 0; j < d; ++j) {
          const MlstmGates gates = random_gates(regime, t, shape_.lengths[s], random);
          const std::int64_t row = offsets_[s] + t;
          wx_.set(row, j, gates.i);
          wx_.set(row, d + j, gates.f);
          if (regime != Regime::constant) continue;
          wx_.set(row, 2 * d + j, 0);
          wx_.set(row, 3 * d + j, 0);
        }
  }
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

  SlstmShape shape_;
  DType product_;
  std::vector<std::int32_t> offsets_;
  Array wx_{DType::f32, {1}}, r_{DType::f32, {1}}, b_{DType::f32, {1}};
  std::vector<std::vector<float>> states_;
};

}  // namespace xlstm::ops::test
