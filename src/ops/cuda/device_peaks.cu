#include "ops/device_peaks.hpp"

#include <algorithm>
#include <vector>

#include "core/buffer.hpp"
#include "core/cuda_device.hpp"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/launch.cuh"

namespace xlstm {
namespace {

using ops::cuda::Grid;

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;

// --- kernels; each writes what it computed, so that none of it is dead ---

struct alignas(16) Pack {
  unsigned at[4];
};

// All threads together read `packs` packs, kInFlight of each before the first is needed.
__global__ void __launch_bounds__(kThreads)
    read_kernel(const Pack* from, std::int64_t packs, unsigned* sums) {
  constexpr int kInFlight = 8;
  const std::int64_t threads = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t me = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  unsigned sum = 0;
  for (std::int64_t first = me; first < packs; first += kInFlight * threads) {
    Pack loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const std::int64_t at = first + i * threads;
      loaded[i] = at < packs ? from[at] : Pack{};
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i)
      sum += loaded[i].at[0] ^ loaded[i].at[1] ^ loaded[i].at[2] ^ loaded[i].at[3];
  }
  sums[me] = sum;
}

// Sums that do not wait for each other.
constexpr int kTiles = 8;
constexpr int kFloats = 16;

// Numbers near +-1 and of either sign: zeros would need less power, and so run at a higher clock.
__device__ unsigned some_bf16_pair(unsigned seed) {
  const unsigned bits = (seed + 1) * 2654435761U;
  return 0x3F803F80U | (bits & 0x807F807FU);
}

__global__ void __launch_bounds__(kThreads) mma_kernel(int rounds, float* sums) {
  const std::int64_t me = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const auto seed = static_cast<unsigned>(me) * 6;
  unsigned a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = some_bf16_pair(seed + static_cast<unsigned>(i));
  for (int i = 0; i < 2; ++i) b[i] = some_bf16_pair(seed + 4 + static_cast<unsigned>(i));
  float c[kTiles][4] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) ops::cuda::mma_bf16(c[tile], a, b);
  }
  float sum = 0;
  for (int tile = 0; tile < kTiles; ++tile)
    for (int i = 0; i < 4; ++i) sum += c[tile][i];
  sums[me] = sum;
}

__global__ void __launch_bounds__(kThreads) fma_kernel(int rounds, float* sums) {
  const std::int64_t me = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  float c[kFloats];
  for (int i = 0; i < kFloats; ++i) c[i] = 1e-3F * static_cast<float>(threadIdx.x + i);
  const float a = 0.999F + 1e-6F * static_cast<float>(threadIdx.x), b = 0.5F;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kFloats; ++i) c[i] = fmaf(a, c[i], b);
  }
  float sum = 0;
  for (int i = 0; i < kFloats; ++i) sum += c[i];
  sums[me] = sum;
}

// --- timing ---

void check(cudaError_t error, const char* call, Device device) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw Error(ErrorCode::internal,
              to_string(device) + ": " + call + ": " + cudaGetErrorString(error));
}

// Events, the number of multiprocessors, and room for a number of every thread.
class Meter {
 public:
  explicit Meter(Device device) : context_(device, 1) {
    context_.stream();  // says what is wrong with the device
    check(cudaGetDevice(&before_), "cudaGetDevice", device);
    check(cudaSetDevice(device.index), "cudaSetDevice", device);
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device.index), "cudaGetDeviceProperties", device);
    multiprocessors_ = properties.multiProcessorCount;
    check(cudaEventCreate(&begin_), "cudaEventCreate", device);
    check(cudaEventCreate(&end_), "cudaEventCreate", device);
    sums_ = Buffer(static_cast<std::size_t>(threads()) * sizeof(float), device);
  }
  ~Meter() {
    if (begin_ != nullptr) static_cast<void>(cudaEventDestroy(begin_));
    if (end_ != nullptr) static_cast<void>(cudaEventDestroy(end_));
    static_cast<void>(cudaSetDevice(before_));
  }
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  std::int64_t threads() const {
    return std::int64_t{multiprocessors_} * kBlocksPerMultiprocessor * kThreads;
  }
  template <class T>
  T* sums() const {
    return reinterpret_cast<T*>(sums_.data());
  }

  /// Milliseconds of every launch, at least three, until `seconds` are over; one more comes first.
  template <class Kernel, class... Arguments>
  std::vector<double> time(const char* name, double seconds, Kernel* kernel,
                           Arguments... arguments) {
    const Device device = context_.device();
    const auto stream = static_cast<cudaStream_t>(context_.stream());
    const Grid grid{.x = threads() / kThreads, .threads = kThreads};
    ops::cuda::launch(context_, name, grid, kernel, arguments...);
    std::vector<double> all;
    for (double total = 0; all.size() < 3 || total < 1e3 * seconds;) {
      check(cudaEventRecord(begin_, stream), "cudaEventRecord", device);
      ops::cuda::launch(context_, name, grid, kernel, arguments...);
      check(cudaEventRecord(end_, stream), "cudaEventRecord", device);
      check(cudaEventSynchronize(end_), name, device);
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime", device);
      all.push_back(std::max(1e-6, static_cast<double>(milliseconds)));
      total += all.back();
    }
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  Context context_;
  int before_ = 0, multiprocessors_ = 0;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  Buffer sums_;
};

}  // namespace

double measure_device_read_bandwidth(Device device, double seconds, std::size_t bytes) {
  Meter meter(device);
  if (bytes == 0) {
    constexpr std::size_t kMost = std::size_t{1} << 31;
    bytes = std::min(kMost, cuda::memory(device).free / 4);
  }
  const auto packs = static_cast<std::int64_t>(bytes / sizeof(Pack));
  const Buffer memory(bytes, device, true);
  const auto times =
      meter.time("read_bandwidth", seconds, read_kernel,
                 reinterpret_cast<const Pack*>(memory.data()), packs, meter.sums<unsigned>());
  return static_cast<double>(packs) * sizeof(Pack) / times[times.size() / 2] / 1e6;
}

double measure_device_bf16_peak(Device device, double seconds, int rounds) {
  Meter meter(device);
  const double best =
      meter.time("bf16_peak", seconds, mma_kernel, rounds, meter.sums<float>()).front();
  constexpr double kOperations = 2.0 * 16 * 8 * 16;  // of a warp
  return static_cast<double>(meter.threads() / 32) * rounds * kTiles * kOperations / best / 1e6;
}

double measure_device_f32_peak(Device device, double seconds, int rounds) {
  Meter meter(device);
  const double best =
      meter.time("f32_peak", seconds, fma_kernel, rounds, meter.sums<float>()).front();
  return static_cast<double>(meter.threads()) * rounds * kFloats * 2 / best / 1e6;
}

}  // namespace xlstm
