// sLSTM on CUDA beside the body of the CPU, in batches that its blocks cut in every way.

#include "ops/slstm.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "ops/cuda/slstm_plan.hpp"
#include "ops/support.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops::test {
namespace {

struct Shape {
  int heads, dh;
  std::vector<int> lengths;
  DType weights = DType::f32, biases = DType::f32;
  int r_gap = 0;       ///< after every row of R
  int null_every = 0;  ///< of so many sequences one has no record
  bool has_bias = true;
};

class SlstmCudaProblem {
 public:
  SlstmCudaProblem(Shape shape, unsigned seed) : shape_(std::move(shape)) {
    std::mt19937 random(seed);
    const int d = width();
    offsets_ = {0};
    for (int length : shape_.lengths) offsets_.push_back(offsets_.back() + length);
    wx_ = Array::random(random, DType::f32, {offsets_.back(), 4 * d}, 2.0);
    r_ = Array::random(random, shape_.weights, {shape_.heads * 4 * shape_.dh, shape_.dh},
                       1 / std::sqrt(shape_.dh), 0.0, shape_.r_gap);
    b_ = Array::random(random, shape_.biases, {4 * d});
    for (std::size_t s = 0; s < shape_.lengths.size(); ++s) {
      states_.push_back(Array::random(random, DType::f32, {4 * d}).floats());
      for (int j = 0; j < d; ++j) {
        float& n = states_.back()[static_cast<std::size_t>(2 * d + j)];
        n = j % 3 == 0 ? 0.0F : std::fabs(n) + 0.25F;
      }
    }
  }

  struct Result {
    std::vector<std::vector<float>> h, after;  ///< of each sequence; no record: as it was
    int group = 0;
    bool keeps_r = false;
  };

  /// Sequences [first, first + states), from their tokens `skip` on and at most `most` of them.
  Result run_part(Device device, std::size_t first, std::vector<std::vector<float>> states,
                  int skip = 0, int most = 1 << 20) {
    const int d = width();
    std::vector<std::int32_t> ends = {0};
    std::vector<std::byte*> slots;
    std::vector<double> rows;
    const std::vector<float> wx_values = wx_.floats();
    for (std::size_t i = 0; i < states.size(); ++i) {
      const std::size_t s = first + i;
      const int begin = offsets_[s] + skip, count = std::min(most, offsets_[s + 1] - begin);
      const auto from = wx_values.begin() + static_cast<std::ptrdiff_t>(begin) * 4 * d;
      rows.insert(rows.end(), from, from + static_cast<std::ptrdiff_t>(count) * 4 * d);
      ends.push_back(ends.back() + count);
      const bool has_record = shape_.null_every == 0 || static_cast<int>(s) % shape_.null_every > 0;
      slots.push_back(has_record ? reinterpret_cast<std::byte*>(states[i].data()) : nullptr);
    }
    const Batch batch{ends, slots};
    Array wx = Array::of(DType::f32, {ends.back(), 4 * d}, rows, 5);
    Array h(DType::f32, {ends.back(), d}, 2);
    const auto bytes = static_cast<std::size_t>(d) * sizeof(float);
    const SlstmArgs args{.wx = wx.tensor(),
                         .r = r(),
                         .b = shape_.has_bias ? b_.tensor() : Tensor{},
                         .batch = batch,
                         .state = {.h = 3 * bytes, .c = 0, .n = 2 * bytes, .m = bytes},
                         .h = h.tensor()};
    Context context(device, 1);
    run<SlstmArgs>(context, slstm, args);
    if (!device.is_cpu()) {
      EXPECT_EQ(slstm_workspace(context, args), 0U);
      EXPECT_EQ(context.arena().capacity(), 0U);
    }
    EXPECT_TRUE(h.gaps_untouched());
    Result result;
    const std::vector<float> all = h.floats();
    for (std::size_t i = 0; i < states.size(); ++i)
      result.h.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(ends[i]) * d,
                            all.begin() + static_cast<std::ptrdiff_t>(ends[i + 1]) * d);
    result.after = std::move(states);
    const cuda::SlstmPlan plan(batch, args.r);
    result.group = plan.group;
    result.keeps_r = plan.keeps_r;
    return result;
  }
  Result run_all(Device device) { return run_part(device, 0, states_); }

  int width() const { return shape_.heads * shape_.dh; }
  const std::vector<int>& lengths() const { return shape_.lengths; }
  const std::vector<std::vector<float>>& states() const { return states_; }

 private:
  Tensor r() {
    Tensor t = r_.tensor();
    const std::int64_t row = t.row_stride();
    t.rank = 3;
    t.size = {shape_.heads, 4 * shape_.dh, shape_.dh};
    t.stride = {4 * shape_.dh * row, row, 1};
    return t;
  }

  Shape shape_;
  std::vector<std::int32_t> offsets_;
  Array wx_{DType::f32, {1}}, r_{DType::f32, {1}}, b_{DType::f32, {1}};
  std::vector<std::vector<float>> states_;
};

/// 1 to `longest` tokens in turn.
std::vector<int> mixed_lengths(int sequences, int longest) {
  std::vector<int> lengths;
  for (int s = 0; s < sequences; ++s) lengths.push_back(1 + 11 * s % longest);
  return lengths;
}

void expect_near(const std::vector<std::vector<float>>& got,
                 const std::vector<std::vector<float>>& want, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t s = 0; s < got.size(); ++s) {
    const std::vector<double> w(want[s].begin(), want[s].end());
    EXPECT_LE(max_error({got[s].begin(), got[s].end()}, w), 2e-5 * std::max(1.0, max_abs(w)))
        << what << " of sequence " << s;
  }
}

void expect_as_on_cpu(const Shape& shape, unsigned seed, int group, bool keeps_r) {
  SCOPED_TRACE(testing::Message() << "DH " << shape.dh << ", " << to_string(shape.weights) << ", "
                                  << shape.lengths.size() << " sequences");
  SlstmCudaProblem p(shape, seed);
  const auto want = p.run_all({}), got = p.run_all(test_device());
  EXPECT_EQ(got.group, group);
  EXPECT_EQ(got.keeps_r, keeps_r);
  expect_near(got.h, want.h, "h");
  expect_near(got.after, want.after, "the state");
}

constexpr DType kF32 = DType::f32, kBf16 = DType::bf16, kF16 = DType::f16;

TEST(SlstmCuda, IsAsOnTheCpu) {
  expect_as_on_cpu({1, 1, mixed_lengths(17, 17)}, 1, 1, true);
  expect_as_on_cpu({3, 7, mixed_lengths(5, 9), kBf16, kF32, 0, 2}, 2, 1, true);
  expect_as_on_cpu({2, 33, mixed_lengths(7, 12), kF16, kBf16, 3}, 3, 1, true);
  expect_as_on_cpu({2, 192, mixed_lengths(3, 7), kBf16, kF16, 0, 3}, 4, 1, false);
  expect_as_on_cpu({1, 192, {4}, kF32, kF32, 0, 0, false}, 5, 1, false);
  expect_as_on_cpu({1, 192, {3}, kF16, kF32, 1}, 6, 1, false);  // rows that are no whole fours
  expect_as_on_cpu({1, 1024, {2}, kF16}, 7, 1, false);
}

TEST(SlstmCuda, GroupsOfSequencesAreAsOnTheCpu) {
  expect_as_on_cpu({130, 1, mixed_lengths(17, 17), kF16, kF16, 0, 4}, 11, 8, true);
  expect_as_on_cpu({40, 7, mixed_lengths(17, 17), kBf16, kF32, 0, 5}, 12, 8, true);
  expect_as_on_cpu({20, 33, mixed_lengths(13, 5), kF32, kBf16, 1, 6}, 13, 4, true);
  expect_as_on_cpu({32, 65, mixed_lengths(17, 2)}, 14, 8, false);
  expect_as_on_cpu({19, 192, mixed_lengths(7, 2), kF16, kF32, 0, 0, false}, 15, 2, false);
}

// Groups, kept R and whole fours are matters of speed alone.
TEST(SlstmCuda, BatchesAndCutsChangeNoBit) {
  for (const Shape& shape :
       {Shape{40, 7, mixed_lengths(17, 6), kBf16}, {20, 33, mixed_lengths(13, 4), kF16}}) {
    SCOPED_TRACE(shape.dh);
    SlstmCudaProblem p(shape, 21);
    const auto together = p.run_all(test_device());
    EXPECT_GE(together.group, 4);
    for (std::size_t s = 0; s < p.lengths().size(); s += 3) {
      const auto alone = p.run_part(test_device(), s, {p.states()[s]});
      EXPECT_EQ(alone.group, 1);
      EXPECT_EQ(alone.h[0], together.h[s]) << s;
      EXPECT_EQ(alone.after[0], together.after[s]) << s;
      std::vector<float> h;
      std::vector<std::vector<float>> state = {p.states()[s]};
      for (int t = 0; t < p.lengths()[s]; ++t) {
        const auto token = p.run_part(test_device(), s, state, t, 1);
        EXPECT_FALSE(token.keeps_r);
        h.insert(h.end(), token.h[0].begin(), token.h[0].end());
        state = token.after;
      }
      EXPECT_EQ(h, together.h[s]) << s;
      EXPECT_EQ(state[0], together.after[s]) << s;
    }
  }
}

TEST(SlstmCuda, NanStaysInItsSequenceOfAGroup) {
  SlstmCudaProblem p({40, 7, mixed_lengths(17, 4), kBf16}, 31);
  auto states = p.states();
  std::fill(states[5].begin(), states[5].end(), NAN);
  const auto before = p.run_all(test_device());
  const auto got = p.run_part(test_device(), 0, states);
  EXPECT_EQ(got.group, 8);
  for (std::size_t s = 0; s < states.size(); ++s)
    if (s != 5) {
      EXPECT_EQ(got.h[s], before.h[s]) << s;
    }
  for (float h : got.h[5]) EXPECT_TRUE(std::isnan(h));
}

TEST(SlstmCuda, RefusesWhatItLacks) {
  const std::vector<std::int32_t> offsets = {0, 1};
  std::byte* const none = nullptr;
  const Batch batch{offsets, {&none, 1}};
  float number = 0;
  const auto refused = [&](std::int64_t dh, bool saved) {
    const auto tensor = [&](std::int64_t columns) {
      return Tensor::dense(&number, DType::f32, {1, columns});
    };
    SlstmArgs args{.wx = tensor(4 * dh),
                   .r = Tensor::dense(&number, DType::f16, {1, 4 * dh, dh}),
                   .b = {},
                   .batch = batch,
                   .state = {},
                   .h = tensor(dh)};
    if (saved)
      args.saved = {
          .gates = tensor(4 * dh), .closed = tensor(dh), .c = tensor(dh), .n = tensor(dh)};
    Context context(test_device(), 1);
    try {
      slstm(context, args);
      return false;
    } catch (const Error& error) {
      return error.code() == ErrorCode::unsupported;
    }
  };
  EXPECT_TRUE(refused(4, true));
  EXPECT_TRUE(refused(4096, false));
}

}  // namespace
}  // namespace xlstm::ops::test
