#include "ops/conv.hpp"

#include <algorithm>
#include <cstring>

#include "core/convert.hpp"
#include "core/threads.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/conv.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Where the inputs of one sequence lie: those before the first token are its window's.
struct Inputs {
  const Tensor& x;
  std::int64_t first, past, width;
  const float* window;

  Inputs(const Tensor& x_, const Batch& batch, std::int64_t sequence, std::size_t window_at,
         std::int64_t past_)
      : x(x_),
        first(batch.offsets[static_cast<std::size_t>(sequence)]),
        past(past_),
        width(x_.dim(1)),
        window(nullptr) {
    const std::byte* slot = batch.slots[static_cast<std::size_t>(sequence)];
    if (slot != nullptr) window = reinterpret_cast<const float*>(slot + window_at);
  }
  /// Input t of the sequence, t >= -past; null where there is none.
  HWY_INLINE const float* at(std::int64_t t) const {
    if (t >= 0) return x.row<float>(first + t);
    return window == nullptr ? nullptr : window + (past + t) * width;
  }
};

/// b + sum_r w[:, r] x_(t - past + r), channels [c, c + n).
HWY_INLINE VF conv_sum(const Inputs& inputs, const float* taps, std::int64_t t, std::int64_t c,
                       std::size_t n) {
  const std::int64_t width = inputs.width, kernel = inputs.past + 1;
  VF sum = load_up_to(taps + kernel * width + c, n);
  for (std::int64_t r = 0; r < kernel; ++r) {
    const float* x = inputs.at(t - inputs.past + r);
    if (x != nullptr)
      sum = hn::MulAdd(load_up_to(taps + r * width + c, n), load_up_to(x + c, n), sum);
  }
  return sum;
}

/// Channels [begin, end) of all sequences; taps [K + 1][C], the last row is the bias.
void conv_channels(const CausalConvArgs& a, const float* taps, std::int64_t begin,
                   std::int64_t end) {
  const std::int64_t width = a.w.dim(0), kernel = a.w.dim(2), past = kernel - 1;
  for (std::int64_t s = 0; s < a.batch.sequences(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    const std::int64_t first = a.batch.offsets[at], tokens = a.batch.offsets[at + 1] - first;
    std::byte* slot = a.batch.slots[at];
    auto* window = slot == nullptr ? nullptr : reinterpret_cast<float*>(slot + a.window);
    const Inputs inputs(a.x, a.batch, s, a.window, past);
    for (std::int64_t t = 0; t < tokens; ++t) {
      float* y = a.y.row<float>(first + t);
      for (std::int64_t c = begin; c < end; c += static_cast<std::int64_t>(lanes())) {
        const auto n = static_cast<std::size_t>(end - c);
        VF sum = conv_sum(inputs, taps, t, c, n);
        if (a.silu) sum = hn::Mul(sum, sigmoid(sum));
        store_up_to(sum, y + c, n);
      }
    }
    if (window == nullptr) continue;
    // Oldest first, so that a window longer than the text moves down onto itself.
    for (std::int64_t r = 0; r < past; ++r)
      std::memmove(window + r * width + begin, inputs.at(tokens - past + r) + begin,
                   static_cast<std::size_t>(end - begin) * sizeof(float));
  }
}

/// Channels [begin, end); d_taps [K + 1][C] +=, window_gradient [K - 1][C] is scratch.
void conv_backward_channels(const CausalConvBackwardArgs& a, const float* taps, float* d_taps,
                            float* window_gradient, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kBlock = 64;  // tokens per partial sum: the error stays small
  const std::int64_t width = a.w.dim(0), kernel = a.w.dim(2), past = kernel - 1;
  const auto step = static_cast<std::int64_t>(lanes());
  for (std::int64_t s = 0; s < a.batch.sequences(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    const std::int64_t first = a.batch.offsets[at], tokens = a.batch.offsets[at + 1] - first;
    const Inputs inputs(a.x, a.batch, s, a.window, past);
    std::byte* d_slot = a.d_slots.empty() ? nullptr : a.d_slots[at];
    auto* d_window = d_slot == nullptr ? nullptr : reinterpret_cast<float*>(d_slot + a.window);
    // The gradient of input t of the sequence; null where nobody wants it.
    const auto d_input = [&](std::int64_t t) -> float* {
      if (t >= 0) return a.d_x.row<float>(first + t);
      return d_window == nullptr ? nullptr : window_gradient + (past + t) * width;
    };
    if (d_window != nullptr) {
      // The final window is the last inputs, some of which may be of the initial one.
      for (std::int64_t r = 0; r < past; ++r)
        std::fill(window_gradient + r * width + begin, window_gradient + r * width + end, 0.0F);
      for (std::int64_t r = 0; r < past; ++r)
        for (std::int64_t c = begin; c < end; ++c)
          d_input(tokens - past + r)[c] += d_window[r * width + c];
    }
    for (std::int64_t t0 = 0; t0 < tokens; t0 += kBlock) {
      const std::int64_t t1 = std::min(t0 + kBlock, tokens);
      for (std::int64_t c = begin; c < end; c += step) {
        const auto n = static_cast<std::size_t>(end - c);
        VF d_bias = hn::Zero(DF());
        for (std::int64_t t = t0; t < t1; ++t) {
          float* d_s = a.d_y.row<float>(first + t) + c;
          VF d = load_up_to(d_s, n);
          if (a.silu) {
            d = hn::Mul(d, silu_slope(conv_sum(inputs, taps, t, c, n)));
            store_up_to(d, d_s, n);
          }
          d_bias = hn::Add(d_bias, d);
        }
        float* sum = d_taps + kernel * width + c;
        store_up_to(hn::Add(load_up_to(sum, n), d_bias), sum, n);
        for (std::int64_t r = 0; r < kernel; ++r) {
          const VF tap = load_up_to(taps + r * width + c, n);
          VF d_tap = hn::Zero(DF());
          for (std::int64_t t = t0; t < t1; ++t) {
            const VF d = load_up_to(a.d_y.row<float>(first + t) + c, n);
            const float* x = inputs.at(t - past + r);
            if (x != nullptr) d_tap = hn::MulAdd(d, load_up_to(x + c, n), d_tap);
            float* d_x = d_input(t - past + r);
            if (d_x != nullptr) store_up_to(hn::MulAdd(tap, d, load_up_to(d_x + c, n)), d_x + c, n);
          }
          sum = d_taps + r * width + c;
          store_up_to(hn::Add(load_up_to(sum, n), d_tap), sum, n);
        }
      }
    }
    if (d_window == nullptr) continue;
    for (std::int64_t r = 0; r < past; ++r)
      std::memcpy(d_window + r * width + begin, window_gradient + r * width + begin,
                  static_cast<std::size_t>(end - begin) * sizeof(float));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(conv_channels);
HWY_EXPORT(conv_backward_channels);

namespace {

/// taps [K + 1][C]: tap after tap, then the bias.
void widen_taps(const Tensor& w, const Tensor& b, float* taps) {
  const std::int64_t width = w.dim(0), kernel = w.dim(2);
  for (std::int64_t c = 0; c < width; ++c)
    for (std::int64_t r = 0; r < kernel; ++r) taps[r * width + c] = load_f32(w, c * kernel + r);
  for (std::int64_t c = 0; c < width; ++c) taps[kernel * width + c] = b ? load_f32(b, c) : 0.0F;
}

/// Channels for a thread: some 10 us of work, and whole vectors.
std::int64_t channel_grain(const Batch& batch) {
  constexpr std::int64_t kWork = 1 << 15, kGrain = 64;
  return std::max(kGrain, kWork / std::max<std::int64_t>(1, batch.tokens()) / kGrain * kGrain);
}

}  // namespace

void causal_conv(Context& context, const CausalConvArgs& a) {
  const ArenaScope scope(context.arena());
  auto* taps = reinterpret_cast<float*>(context.arena().take(causal_conv_workspace(context, a)));
  widen_taps(a.w, a.b, taps);
  parallel_ranges(context.threads(), a.w.dim(0), channel_grain(a.batch), [&](Range channels) {
    HWY_DYNAMIC_DISPATCH(conv_channels)(a, taps, channels.begin, channels.end);
  });
}

void causal_conv_backward(Context& context, const CausalConvBackwardArgs& a) {
  const std::int64_t width = a.w.dim(0), kernel = a.w.dim(2);
  const ArenaScope scope(context.arena());
  auto* taps =
      reinterpret_cast<float*>(context.arena().take(causal_conv_backward_workspace(context, a)));
  float* d_taps = taps + (kernel + 1) * width;
  float* window_gradient = d_taps + (kernel + 1) * width;
  widen_taps(a.w, a.b, taps);
  std::fill_n(d_taps, (kernel + 1) * width, 0.0F);
  parallel_ranges(context.threads(), width, channel_grain(a.batch), [&](Range channels) {
    HWY_DYNAMIC_DISPATCH(conv_backward_channels)
    (a, taps, d_taps, window_gradient, channels.begin, channels.end);
  });
  for (std::int64_t c = 0; c < width; ++c) {
    for (std::int64_t r = 0; r < kernel; ++r)
      a.d_w.as<float>()[c * kernel + r] += d_taps[r * width + c];
    if (a.d_b) a.d_b.as<float>()[c] += d_taps[kernel * width + c];
  }
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
