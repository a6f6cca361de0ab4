#include "ops/headwise.hpp"

#include <algorithm>
#include <array>

#include "core/threads.hpp"
#include "ops/cpu/convert.hpp"
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
void headwise_rows(const HeadwiseLinearArgs& a, const float* w, std::int64_t begin,
                   std::int64_t end) {
  const auto width = static_cast<std::size_t>(a.x.dim(1));
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = a.x.row<float>(t);
    float* y = a.y.row<float>(t);
#if HWY_TARGET == HWY_SCALAR
    for (std::size_t j = 0; j < width; ++j) {
      float sum = w[4 * width + j];
      for (std::size_t i = 0; i < 4; ++i) sum += w[i * width + j] * x[j / 4 * 4 + i];
      y[j] = sum;
    }
#else
    for (std::size_t j = 0; j < width; j += lanes()) {
      const std::size_t n = width - j;
      const VF v = load_up_to(x + j, n);
      VF sum = load_up_to(w + 4 * width + j, n);
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

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(headwise_rows);

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

}  // namespace

std::size_t headwise_workspace_bytes(const Context& context, const HeadwiseLinearArgs& a) {
  if (headwise_by_vectors(a)) return static_cast<std::size_t>(5 * a.x.dim(1)) * sizeof(float);
  return linear_workspace(context, Block(a, 0).args);
}

void headwise_linear(Context& context, const HeadwiseLinearArgs& a) {
  if (!headwise_by_vectors(a)) {
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
  constexpr std::int64_t kElementsPerThread = 1 << 15;  // some 10 us of work
  parallel_ranges(context.threads(), a.x.dim(0),
                  std::max<std::int64_t>(1, kElementsPerThread / width), [&](Range rows) {
                    HWY_DYNAMIC_DISPATCH(headwise_rows)(a, w, rows.begin, rows.end);
                  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
