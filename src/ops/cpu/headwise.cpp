#include "ops/headwise.hpp"

#include <algorithm>
#include <array>

#include "core/convert.hpp"
#include "core/threads.hpp"
#include "ops/cpu/headwise_plan.hpp"
#include "ops/linear.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/headwise.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Tokens [begin, end) of 4 x 4 blocks. w [5][width]: row i holds, for every output, the weight of
/// the i-th input of its block; the last row is the bias.
void headwise_rows(const Tensor& from, const Tensor& to, bool accumulate, const float* w,
                   std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(from.dim(1));
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = from.row<float>(t);
    float* y = to.row<float>(t);
#if HWY_TARGET == HWY_SCALAR
    for (std::size_t j = 0; j < width; ++j) {
      float sum = w[4 * width + j] + (accumulate ? y[j] : 0.0F);
      for (std::size_t i = 0; i < 4; ++i) sum += w[i * width + j] * x[j / 4 * 4 + i];
      y[j] = sum;
    }
#else
    for (std::size_t j = 0; j < width; j += lanes()) {
      const std::size_t n = width - j;
      const VF v = load_up_to(x + j, n);
      VF sum = load_up_to(w + 4 * width + j, n);
      if (accumulate) sum = hn::Add(sum, load_up_to(y + j, n));
      // A vector is groups of 4 lanes, and so are the blocks: Broadcast works within each.
      sum = hn::MulAdd(load_up_to(w + j, n), hn::Broadcast<0>(v), sum);
      sum = hn::MulAdd(load_up_to(w + width + j, n), hn::Broadcast<1>(v), sum);
      sum = hn::MulAdd(load_up_to(w + 2 * width + j, n), hn::Broadcast<2>(v), sum);
      sum = hn::MulAdd(load_up_to(w + 3 * width + j, n), hn::Broadcast<3>(v), sum);
      store_up_to(sum, y + j, n);
    }
#endif
  }
}

/// The gradients of the weights of 4 x 4 blocks, features [begin, end): sums [5][width] as w above,
/// +=. Blocks of tokens keep the error of the sums small.
void headwise_weights(const HeadwiseLinearBackwardArgs& a, float* sums, std::int64_t begin,
                      std::int64_t end) {
  constexpr std::int64_t kBlock = 64;
  const std::int64_t width = a.x.dim(1), tokens = a.x.dim(0);
  for (std::int64_t t0 = 0; t0 < tokens; t0 += kBlock) {
    const std::int64_t t1 = std::min(t0 + kBlock, tokens);
#if HWY_TARGET == HWY_SCALAR
    for (std::int64_t j = begin; j < end; ++j)
      for (std::int64_t i = 0; i < 5; ++i) {
        float sum = 0;
        for (std::int64_t t = t0; t < t1; ++t)
          sum += a.d_y.row<float>(t)[j] * (i < 4 ? a.x.row<float>(t)[j / 4 * 4 + i] : 1.0F);
        sums[i * width + j] += sum;
      }
#else
    for (std::int64_t j = begin; j < end; j += static_cast<std::int64_t>(lanes())) {
      const auto n = static_cast<std::size_t>(end - j);
      VF s0 = hn::Zero(DF()), s1 = s0, s2 = s0, s3 = s0, s4 = s0;
      for (std::int64_t t = t0; t < t1; ++t) {
        const VF x = load_up_to(a.x.row<float>(t) + j, n);
        const VF d_y = load_up_to(a.d_y.row<float>(t) + j, n);
        s0 = hn::MulAdd(d_y, hn::Broadcast<0>(x), s0);
        s1 = hn::MulAdd(d_y, hn::Broadcast<1>(x), s1);
        s2 = hn::MulAdd(d_y, hn::Broadcast<2>(x), s2);
        s3 = hn::MulAdd(d_y, hn::Broadcast<3>(x), s3);
        s4 = hn::Add(s4, d_y);
      }
      const VF all[] = {s0, s1, s2, s3, s4};
      for (std::int64_t i = 0; i < 5; ++i) {
        float* sum = sums + i * width + j;
        store_up_to(hn::Add(load_up_to(sum, n), all[i]), sum, n);
      }
    }
#endif
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(headwise_rows);
HWY_EXPORT(headwise_weights);

namespace {

// Block b as a dense layer. Blocks of a tensor [blocks, out, in] follow each other.
struct Block {
  std::array<Tensor, 1> w, b;
  LinearArgs args;

  Block(const HeadwiseLinearArgs& a, std::int64_t block) : w(), b(), args() {
    const std::int64_t out = a.w.dim(1), in = a.w.dim(2);
    w[0] = Tensor::dense(a.w.rows(block, 1).data, a.w.dtype, {out, in}, a.w.device);
    if (a.b) b[0] = a.b.cols(block * out, out);
    args = {.x = a.x.cols(block * in, in), .w = w, .b = {}, .y = a.y.cols(block * out, out)};
    if (a.b) args.b = b;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
};

// The same block's backward pass.
struct BackwardBlock {
  std::array<Tensor, 1> w, d_w, d_b;
  LinearBackwardArgs args;

  BackwardBlock(const HeadwiseLinearBackwardArgs& a, std::int64_t block)
      : w(), d_w(), d_b(), args() {
    const std::int64_t out = a.w.dim(1), in = a.w.dim(2);
    w[0] = Tensor::dense(a.w.rows(block, 1).data, a.w.dtype, {out, in}, a.w.device);
    d_w[0] = Tensor::dense(a.d_w.rows(block, 1).data, DType::f32, {out, in}, a.w.device);
    if (a.d_b) d_b[0] = a.d_b.cols(block * out, out);
    args = {.x = a.x.cols(block * in, in),
            .w = w,
            .d_y = a.d_y.cols(block * out, out),
            .d_x = a.d_x.cols(block * in, in),
            .accumulate = a.accumulate,
            .d_w = d_w};
    if (a.d_b) args.d_b = d_b;
  }
  BackwardBlock(const BackwardBlock&) = delete;
  BackwardBlock& operator=(const BackwardBlock&) = delete;
};

void all_rows(Context& context, const Tensor& from, const Tensor& to, bool accumulate,
              const float* w) {
  constexpr std::int64_t kElementsPerThread = 1 << 15;  // some 10 us of work
  parallel_ranges(context.threads(), from.dim(0),
                  std::max<std::int64_t>(1, kElementsPerThread / from.dim(1)), [&](Range rows) {
                    HWY_DYNAMIC_DISPATCH(headwise_rows)
                    (from, to, accumulate, w, rows.begin, rows.end);
                  });
}

}  // namespace

std::size_t headwise_workspace_bytes(const Context& context, const HeadwiseLinearArgs& a) {
  if (headwise_by_vectors(a.w)) return static_cast<std::size_t>(5 * a.x.dim(1)) * sizeof(float);
  return linear_workspace(context, Block(a, 0).args);
}

void headwise_linear(Context& context, const HeadwiseLinearArgs& a) {
  if (!headwise_by_vectors(a.w)) {
    for (std::int64_t block = 0; block < a.w.dim(0); ++block)
      cpu::linear(context, Block(a, block).args);
    return;
  }
  const std::int64_t width = a.x.dim(1);
  const ArenaScope scope(context.arena());
  auto* w = reinterpret_cast<float*>(context.arena().take(headwise_workspace_bytes(context, a)));
  for (std::int64_t j = 0; j < width; ++j) {
    for (std::int64_t i = 0; i < 4; ++i) w[i * width + j] = load_f32(a.w, j * 4 + i);
    w[4 * width + j] = a.b ? load_f32(a.b, j) : 0.0F;
  }
  all_rows(context, a.x, a.y, false, w);
}

std::size_t headwise_backward_workspace_bytes(const Context& context,
                                              const HeadwiseLinearBackwardArgs& a) {
  if (headwise_by_vectors(a.w)) return static_cast<std::size_t>(10 * a.x.dim(1)) * sizeof(float);
  return linear_backward_workspace(context, BackwardBlock(a, 0).args);
}

void headwise_linear_backward(Context& context, const HeadwiseLinearBackwardArgs& a) {
  if (!headwise_by_vectors(a.w)) {
    for (std::int64_t block = 0; block < a.w.dim(0); ++block)
      cpu::linear_backward(context, BackwardBlock(a, block).args);
    return;
  }
  const std::int64_t width = a.x.dim(1);
  const ArenaScope scope(context.arena());
  auto* w =
      reinterpret_cast<float*>(context.arena().take(headwise_backward_workspace_bytes(context, a)));
  float* sums = w + 5 * width;
  std::fill_n(sums, 5 * width, 0.0F);
  // Row i of the transposed weights: what d_y's i-th feature of the block gives to each of d_x's.
  for (std::int64_t j = 0; j < width; ++j) {
    for (std::int64_t i = 0; i < 4; ++i)
      w[i * width + j] = load_f32(a.w, (j / 4 * 4 + i) * 4 + j % 4);
    w[4 * width + j] = 0.0F;
  }
  constexpr std::int64_t kGrain = 64;
  parallel_ranges(context.threads(), width, kGrain, [&](Range features) {
    HWY_DYNAMIC_DISPATCH(headwise_weights)(a, sums, features.begin, features.end);
  });
  auto* d_w = a.d_w.as<float>();
  for (std::int64_t j = 0; j < width; ++j) {
    for (std::int64_t i = 0; i < 4; ++i) d_w[j * 4 + i] += sums[i * width + j];
    if (a.d_b) a.d_b.as<float>()[j] += sums[4 * width + j];
  }
  all_rows(context, a.d_y, a.d_x, a.accumulate, w);
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
