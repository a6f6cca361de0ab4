#include "ops/conv.hpp"

#include <algorithm>
#include <cstring>

#include "core/threads.hpp"
#include "ops/cpu/convert.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/conv.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Channels [begin, end) of all sequences; taps [K + 1][C], the last row is the bias.
void conv_channels(const CausalConvArgs& a, const float* taps, std::int64_t begin,
                   std::int64_t end) {
  const std::int64_t width = a.w.dim(0), kernel = a.w.dim(2), past = kernel - 1;
  for (std::int64_t s = 0; s < a.batch.sequences(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    const std::int64_t first = a.batch.offsets[at], tokens = a.batch.offsets[at + 1] - first;
    std::byte* slot = a.batch.slots[at];
    auto* window = slot == nullptr ? nullptr : reinterpret_cast<float*>(slot + a.window);
    // Input t of this sequence; before the first token the window's, or nothing without a record.
    const auto input = [&](std::int64_t t) -> const float* {
      if (t >= 0) return a.x.row<float>(first + t);
      return window == nullptr ? nullptr : window + (past + t) * width;
    };
    for (std::int64_t t = 0; t < tokens; ++t) {
      float* y = a.y.row<float>(first + t);
      for (std::int64_t c = begin; c < end; c += static_cast<std::int64_t>(lanes())) {
        const auto n = static_cast<std::size_t>(end - c);
        VF sum = load_up_to(taps + kernel * width + c, n);
        for (std::int64_t r = 0; r < kernel; ++r) {
          const float* x = input(t - past + r);
          if (x != nullptr)
            sum = hn::MulAdd(load_up_to(taps + r * width + c, n), load_up_to(x + c, n), sum);
        }
        if (a.silu) sum = hn::Mul(sum, sigmoid(sum));
        store_up_to(sum, y + c, n);
      }
    }
    if (window == nullptr) continue;
    // Oldest first, so that a window longer than the text moves down onto itself.
    for (std::int64_t r = 0; r < past; ++r)
      std::memmove(window + r * width + begin, input(tokens - past + r) + begin,
                   static_cast<std::size_t>(end - begin) * sizeof(float));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(conv_channels);

void causal_conv(Context& context, const CausalConvArgs& a) {
  const std::int64_t width = a.w.dim(0), kernel = a.w.dim(2);
  const ArenaScope scope(context.arena());
  auto* taps = reinterpret_cast<float*>(context.arena().take(causal_conv_workspace(context, a)));
  for (std::int64_t c = 0; c < width; ++c)
    for (std::int64_t r = 0; r < kernel; ++r) taps[r * width + c] = load_f32(a.w, c * kernel + r);
  for (std::int64_t c = 0; c < width; ++c) taps[kernel * width + c] = a.b ? load_f32(a.b, c) : 0.0F;
  // Some 10 us of work for each thread, and whole vectors.
  constexpr std::int64_t kWork = 1 << 15, kGrain = 64;
  const std::int64_t grain =
      std::max(kGrain, kWork / std::max<std::int64_t>(1, a.batch.tokens()) / kGrain * kGrain);
  parallel_ranges(context.threads(), width, grain, [&](Range channels) {
    HWY_DYNAMIC_DISPATCH(conv_channels)(a, taps, channels.begin, channels.end);
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
