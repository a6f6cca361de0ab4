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

constexpr int kRun = 16;  ///< tokens of a thread, where there are many
constexpr std::int64_t kMany = 512;

/// The convolution of one channel. A kernel of kKernel taps keeps them, and the inputs that the
/// next token needs too, in registers; 0: any other.
template <int kKernel>
struct Convolution {
  Channel inputs;
  Weights w;
  float bias;
  std::int64_t kernel;
  bool silu;
  float* to;  ///< of the sequence's first token
  std::int64_t stride;
  float taps[kKernel > 0 ? kKernel : 1], held[kKernel > 0 ? kKernel : 1];

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
  /// Token t >= past; `again`: behind a call for t - 1.
  __device__ void next(std::int64_t t, bool again) {
    if constexpr (kKernel == 0) {
      any(t);
    } else {
#pragma unroll
      for (int r = 0; r < kKernel - 1; ++r)
        held[r] = again ? held[r + 1] : inputs.at(t - (kKernel - 1) + r);
      held[kKernel - 1] = inputs.at(t);
      float sum = bias;
#pragma unroll
      for (int r = 0; r < kKernel; ++r) sum = fmaf(taps[r], held[r], sum);
      write(t, sum);
    }
  }
};

// A thread takes `run` tokens of a channel. That of a sequence's first token has all those that
// read the window, and so may move it on when they are done.
template <int kKernel>
__global__ void causal_conv_kernel(Matrix<const float> x, Weights w, Weights b, DeviceBatch batch,
                                   std::size_t window_at, bool silu, Matrix<float> y,
                                   std::int64_t width, std::int64_t kernel, int run) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (c >= width) return;
  const std::int64_t past = kernel - 1;
  std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * run;
  const std::int64_t stop = min(token + run, std::int64_t{batch.offsets[batch.sequences]});
  Convolution<kKernel> conv{{x, 0, c, past, width, nullptr},
                            w,
                            b.at_or(0.0F, c),
                            kernel,
                            silu,
                            nullptr,
                            y.stride,
                            {},
                            {}};
#pragma unroll
  for (int r = 0; r < kKernel; ++r) conv.taps[r] = w.at(c * kernel + r);

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
#pragma unroll 4
    for (std::int64_t t = from; t < end; ++t) conv.next(t, t > from);
    token = first + tokens;
  }
}

}  // namespace

void causal_conv(Context& context, const CausalConvArgs& a) {
  const std::int64_t width = a.w.dim(0);
  if (a.x.count() == 0) return;
  const int run = a.batch.tokens() >= kMany ? kRun : 1;
  launch(context, "causal_conv",
         {.x = blocks_for(a.batch.tokens(), run),
          .y = blocks_for(width, kThreads),
          .threads = kThreads},
         a.w.dim(2) == 4 ? causal_conv_kernel<4> : causal_conv_kernel<0>, Matrix<const float>(a.x),
         Weights(a.w), Weights(a.b), DeviceBatch(a.batch), a.window, a.silu, Matrix<float>(a.y),
         width, a.w.dim(2), run);
}

}  // namespace xlstm::ops::cuda
