#include "ops/activation.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;

struct Silu {
  __device__ static float of(float x) { return x / (1.0F + expf(-x)); }
};
struct Gelu {
  __device__ static float of(float x) {
    constexpr float kRoot = 0.70710678F, kRest = 1.2101617e-8F;  // 1 / sqrt(2) in two parts
    const float t = -x * kRoot;
    float value = erfcf(t);
    // Far below 0 the rounding of t shows: the slope there is many times the value.
    if (fabsf(t) < 16.0F) {
      const float rest = fmaf(-x, kRoot, -t) - x * kRest;
      value = fmaf(-1.1283792F * expf(-t * t), rest, value);
    }
    return 0.5F * x * value;
  }
};
struct Relu {  // NaN stays NaN
  __device__ static float of(float x) { return x < 0 ? 0.0F : x; }
};
struct Relu2 {
  __device__ static float of(float x) { return Relu::of(x) * Relu::of(x); }
};
struct Sigmoid {
  __device__ static float of(float x) { return sigmoid(x); }
};

// y = f(gate) up, a thread an element.
template <class F, class Y>
__global__ void gated_kernel(Matrix<const float> gate, Matrix<const float> up, Matrix<Y> y,
                             std::int64_t width) {
  const std::int64_t t = blockIdx.x;
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (j < width) store(y.row(t) + j, F::of(gate.row(t)[j]) * up.row(t)[j]);
}

template <class F>
void gated(Context& context, const char* name, const Tensor& gate, const Tensor& up,
           const Tensor& y) {
  if (gate.count() == 0) return;
  with_type(y.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, name,
           {.x = gate.dim(0), .y = blocks_for(gate.dim(1), kThreads), .threads = kThreads},
           gated_kernel<F, Y>, Matrix<const float>(gate), Matrix<const float>(up), Matrix<Y>(y),
           gate.dim(1));
  });
}

__global__ void soft_cap_kernel(Matrix<float> x, std::int64_t width, float cap) {
  grid_wait();
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  float* row = x.row(blockIdx.x);
  if (j < width) row[j] = cap * tanhf(row[j] / cap);
}

}  // namespace

void swiglu(Context& context, const SwigluArgs& a) {
  gated<Silu>(context, "swiglu", a.gate, a.up, a.y);
}

void gated_activation(Context& context, const GatedActivationArgs& a) {
  constexpr const char* kName = "gated_activation";
  switch (a.kind) {
    case Activation::gelu: return gated<Gelu>(context, kName, a.gate, a.up, a.y);
    case Activation::relu: return gated<Relu>(context, kName, a.gate, a.up, a.y);
    case Activation::relu2: return gated<Relu2>(context, kName, a.gate, a.up, a.y);
    case Activation::sigmoid: return gated<Sigmoid>(context, kName, a.gate, a.up, a.y);
    case Activation::silu: return gated<Silu>(context, kName, a.gate, a.up, a.y);
  }
}

void soft_cap(Context& context, const SoftCapArgs& a) {
  if (a.x.count() == 0) return;
  launch(context, "soft_cap",
         {.x = a.x.dim(0),
          .y = blocks_for(a.x.dim(1), kThreads),
          .threads = kThreads,
          .overlap = true},
         soft_cap_kernel, Matrix<float>(a.x), a.x.dim(1), a.cap);
}

}  // namespace xlstm::ops::cuda
