#include "ops/conv.hpp"

#include "ops/cuda/device/batch.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 128;

/// The sequence that owns a token: offsets[s] <= token < offsets[s + 1].
__device__ std::int64_t sequence_of(const DeviceBatch& batch, std::int64_t token) {
  std::int64_t low = 0, high = batch.sequences;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (batch.offsets[middle] <= token ? low : high) = middle;
  }
  return low;
}

/// One channel of one sequence. Inputs before the first token are the window's.
struct Channel {
  Matrix<const float> x;
  std::int64_t first, c, past, width;
  float* window;  ///< [past, width], or null

  __device__ bool has(std::int64_t t) const { return t >= 0 || window != nullptr; }
  /// Input t of the sequence, t >= -past.
  __device__ float at(std::int64_t t) const {
    return t >= 0 ? x.row(first + t)[c] : window[(past + t) * width + c];
  }
};

/// The convolution of one channel of one sequence.
struct Convolution {
  Channel inputs;
  Weights w;
  float bias;
  std::int64_t kernel;
  bool silu;
  float* to;  ///< of the sequence's first token
  std::int64_t stride;

  __device__ void write(std::int64_t t, float sum) const {
    to[t * stride] = silu ? sum * sigmoid(sum) : sum;
  }
  /// Token t, whatever it reads.
  __device__ void any(std::int64_t t) const {
    float sum = bias;
    for (std::int64_t r = 0; r < kernel; ++r) {
      const std::int64_t from = t - inputs.past + r;
      if (inputs.has(from)) sum = fmaf(w.at(inputs.c * kernel + r), inputs.at(from), sum);
    }
    write(t, sum);
  }
  /// Tokens [from, end), kRun at most, all of whose inputs are tokens; those are read at once.
  template <int kKernel, int kRun>
  __device__ void run(std::int64_t from, std::int64_t end, const float (&taps)[kKernel]) const {
    constexpr int kPast = kKernel - 1;
    float x[kPast + kRun];
#pragma unroll
    for (int i = 0; i < kPast + kRun; ++i)
      x[i] = from - kPast + i < end ? inputs.at(from - kPast + i) : 0.0F;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (from + i >= end) break;
      float sum = bias;
#pragma unroll
      for (int r = 0; r < kKernel; ++r) sum = fmaf(taps[r], x[i + r], sum);
      write(from + i, sum);
    }
  }
};

// A thread takes kRun tokens of a channel. That of a sequence's first token has all those that read
// the window, and so may move it on when they are done.
// kKernel: taps, which are in registers; 0: any number.
template <int kKernel, int kRun>
__global__ void causal_conv_kernel(Matrix<const float> x, Weights w, Weights b, DeviceBatch batch,
                                   std::size_t window_at, bool silu, Matrix<float> y,
                                   std::int64_t width, std::int64_t kernel) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (c >= width) return;
  const std::int64_t past = kernel - 1;
  std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kRun;
  const std::int64_t stop = min(token + kRun, std::int64_t{batch.offsets[batch.sequences]});
  Convolution conv{
      {x, 0, c, past, width, nullptr}, w, b.at_or(0.0F, c), kernel, silu, nullptr, y.stride};
  [[maybe_unused]] float taps[kKernel > 0 ? kKernel : 1];
  if constexpr (kKernel > 0) {
#pragma unroll
    for (int r = 0; r < kKernel; ++r) taps[r] = w.at(c * kernel + r);
  }

  for (std::int64_t s = sequence_of(batch, token); token < stop; ++s) {
    const std::int64_t first = batch.offsets[s], tokens = batch.offsets[s + 1] - first;
    std::byte* slot = batch.slots[s];
    conv.inputs.first = first;
    conv.inputs.window = slot == nullptr ? nullptr : reinterpret_cast<float*>(slot + window_at);
    conv.to = y.row(first) + c;
    if (token == first) {
      const std::int64_t some = min(tokens, max(past, std::int64_t{1}));
      for (std::int64_t t = 0; t < some; ++t) conv.any(t);
      // Oldest first, so that a window longer than the text moves down onto itself.
      if (float* window = conv.inputs.window; window != nullptr)
        for (std::int64_t r = 0; r < past; ++r)
          window[r * width + c] = conv.inputs.at(tokens - past + r);
    }
    const std::int64_t from = max(token - first, max(past, std::int64_t{1}));
    const std::int64_t end = min(stop - first, tokens);
    if constexpr (kKernel > 0) {
      if (from < end) conv.template run<kKernel, kRun>(from, end, taps);
    } else {
      for (std::int64_t t = from; t < end; ++t) conv.any(t);
    }
    token = first + tokens;
  }
}

}  // namespace

void causal_conv(Context& context, const CausalConvArgs& a) {
  const std::int64_t width = a.w.dim(0);
  if (a.x.count() == 0) return;
  constexpr int kRun = 16;             // tokens of a thread, where there are many
  constexpr std::int64_t kMany = 512;  // tokens that leave enough threads so
  const bool many = a.batch.tokens() >= kMany, usual = a.w.dim(2) == 4;
  launch(context, "causal_conv",
         {.x = blocks_for(a.batch.tokens(), many ? kRun : 1),
          .y = blocks_for(width, kThreads),
          .threads = kThreads},
         usual  ? many ? causal_conv_kernel<4, kRun> : causal_conv_kernel<4, 1>
          : many ? causal_conv_kernel<0, kRun>
                : causal_conv_kernel<0, 1>,
         Matrix<const float>(a.x), Weights(a.w), Weights(a.b), DeviceBatch(a.batch), a.window,
         a.silu, Matrix<float>(a.y), width, a.w.dim(2));
}

}  // namespace xlstm::ops::cuda
