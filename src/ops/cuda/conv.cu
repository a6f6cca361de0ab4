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

// A thread for every token and channel. That of a sequence's first token has all those that read
// the window, and so may move it on when they are done.
__global__ void causal_conv_kernel(Matrix<const float> x, Weights w, Weights b, DeviceBatch batch,
                                   std::size_t window_at, bool silu, Matrix<float> y,
                                   std::int64_t width, std::int64_t kernel) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (c >= width) return;
  const std::int64_t token = blockIdx.x, past = kernel - 1;
  const std::int64_t s = sequence_of(batch, token);
  const std::int64_t first = batch.offsets[s], tokens = batch.offsets[s + 1] - first;
  const std::int64_t begin = token - first;
  if (begin > 0 && begin < past) return;
  const std::int64_t end = begin > 0 ? begin + 1 : min(tokens, max(past, std::int64_t{1}));

  std::byte* slot = batch.slots[s];
  float* window = slot == nullptr ? nullptr : reinterpret_cast<float*>(slot + window_at);
  const Channel inputs{x, first, c, past, width, window};
  for (std::int64_t t = begin; t < end; ++t) {
    float sum = b.at_or(0.0F, c);
    for (std::int64_t r = 0; r < kernel; ++r)
      if (inputs.has(t - past + r)) sum = fmaf(w.at(c * kernel + r), inputs.at(t - past + r), sum);
    y.row(first + t)[c] = silu ? sum * sigmoid(sum) : sum;
  }
  if (begin > 0 || window == nullptr) return;
  // Oldest first, so that a window longer than the text moves down onto itself.
  for (std::int64_t r = 0; r < past; ++r) window[r * width + c] = inputs.at(tokens - past + r);
}

}  // namespace

void causal_conv(Context& context, const CausalConvArgs& a) {
  const std::int64_t width = a.w.dim(0);
  if (a.x.count() == 0) return;
  launch(context, "causal_conv",
         {.x = a.batch.tokens(), .y = blocks_for(width, kThreads), .threads = kThreads},
         causal_conv_kernel, Matrix<const float>(a.x), Weights(a.w), Weights(a.b),
         DeviceBatch(a.batch), a.window, a.silu, Matrix<float>(a.y), width, a.w.dim(2));
}

}  // namespace xlstm::ops::cuda
