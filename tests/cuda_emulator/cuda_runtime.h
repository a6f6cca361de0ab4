#pragma once
// CUDA on the CPU, for tests: the .cu files of this project compile as C++ against this header and
// run thread by thread, so that kernels are held to the oracle on machines without a card. It has
// what the project uses and no more. Blocks run on the threads of OpenMP; the threads of a block
// are fibers of one of them, which change at barriers and warp operations alone. A warp runs until
// all its lanes wait for the block; the environment variable CUDA_EMULATOR_ORDER says in which
// order blocks, warps and lanes go: forward (the default), reverse or shuffle. What has another
// result in another order lacks a barrier. Device memory is ordinary memory, full of NaN at first;
// streams and graphs run at once.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define XLSTM_CUDA_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace cuda_emulator {

constexpr int kWarp = 32;

/// Where the fiber that runs now is in its grid.
struct Position {
  dim3 thread, block, block_dim, grid_dim;
};
inline thread_local constinit Position position = {};
inline int lane() {
  const dim3 &at = position.thread, &size = position.block_dim;
  return static_cast<int>((at.x + size.x * (at.y + size.y * at.z)) % kWarp);
}

/// The line of a kernel that calls a barrier or a warp operation: all who meet there must have come
/// to the same one.
using Site = std::source_location;

/// Bytes that XLSTM_DYNAMIC_SHARED names: those of the block that runs now.
std::byte* dynamic_shared();

/// Waits for all threads of the block.
void sync_block(const Site& site);

/// What the lanes of a warp have told each other.
struct Lanes {
  const std::byte* values;  ///< 16 bytes a lane; valid until this thread's next warp operation
  unsigned present;         ///< lanes that have come, that is, have not ended

  template <class T>
  T of(int lane) const {
    if ((present >> lane & 1U) == 0) ended(lane);
    T value;
    std::memcpy(&value, values + 16 * lane, sizeof(T));
    return value;
  }
  [[noreturn]] static void ended(int lane);
};
struct alignas(16) Words {
  std::byte bytes[16];
};
/// Waits for the lanes that `mask` names.
Lanes exchange_words(unsigned mask, const Words& words, const Site& site);
template <class T>
Lanes exchange(unsigned mask, const T& value, const Site& site) {
  static_assert(sizeof(T) <= sizeof(Words));
  Words words = {};
  std::memcpy(words.bytes, &value, sizeof(T));
  return exchange_words(mask, words, site);
}

/// Runs `thread` once for every thread of the grid.
void run_grid(dim3 grid, dim3 block, std::size_t shared, const std::function<void()>& thread);
/// Bytes of dynamic shared memory that `kernel` may have: 48 KB until it has asked for more.
std::size_t most_shared(const void* kernel);
void set_most_shared(const void* kernel, std::size_t bytes);

template <dim3 Position::*kWhich, unsigned dim3::*kAxis>
struct Coordinate {
  operator unsigned() const { return position.*kWhich.*kAxis; }
};
template <dim3 Position::*kWhich>
struct Coordinates {
  Coordinate<kWhich, &dim3::x> x;
  Coordinate<kWhich, &dim3::y> y;
  Coordinate<kWhich, &dim3::z> z;
};

}  // namespace cuda_emulator

inline constexpr cuda_emulator::Coordinates<&cuda_emulator::Position::thread> threadIdx{};
inline constexpr cuda_emulator::Coordinates<&cuda_emulator::Position::block> blockIdx{};
inline constexpr cuda_emulator::Coordinates<&cuda_emulator::Position::block_dim> blockDim{};
inline constexpr cuda_emulator::Coordinates<&cuda_emulator::Position::grid_dim> gridDim{};

inline void __syncthreads(cuda_emulator::Site site = cuda_emulator::Site::current()) {
  cuda_emulator::sync_block(site);
}
inline void __syncwarp(unsigned mask = ~0U,
                       cuda_emulator::Site site = cuda_emulator::Site::current()) {
  cuda_emulator::exchange(mask, 0, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32,
              cuda_emulator::Site site = cuda_emulator::Site::current()) {
  const auto all = cuda_emulator::exchange(mask, value, site);
  const int base = cuda_emulator::lane() / width * width;
  return all.template of<T>(base + from % width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  cuda_emulator::Site site = cuda_emulator::Site::current()) {
  const auto all = cuda_emulator::exchange(mask, value, site);
  const int me = cuda_emulator::lane(), from = me ^ bits;
  return all.template of<T>(from / width == me / width ? from : me);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32,
                   cuda_emulator::Site site = cuda_emulator::Site::current()) {
  const auto all = cuda_emulator::exchange(mask, value, site);
  const int me = cuda_emulator::lane(), from = me + delta;
  return all.template of<T>(from / width == me / width ? from : me);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32,
                 cuda_emulator::Site site = cuda_emulator::Site::current()) {
  const auto all = cuda_emulator::exchange(mask, value, site);
  const int me = cuda_emulator::lane(), from = me - delta;
  return all.template of<T>(from >= me / width * width ? from : me);
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_emulator::Site site = cuda_emulator::Site::current()) {
  const auto all = cuda_emulator::exchange(mask, predicate, site);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i)
    if ((mask & all.present) >> i & 1U && all.of<int>(i) != 0) result |= 1U << i;
  return result;
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_emulator::Site site = cuda_emulator::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_emulator::Site site = cuda_emulator::Site::current()) {
  return __ballot_sync(mask, predicate == 0, site) == 0;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
// Never part of a multiply-add, whatever the compiler does with others.
inline float __fadd_rn(float a, float b) {
  const volatile float x = a, y = b;
  return x + y;
}
inline float __fmul_rn(float a, float b) {
  const volatile float product = a * b;
  return product;
}
using std::max;
using std::min;

// --- the runtime: every call succeeds, or says that memory is out or that a stream is captured ---

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101,
  cudaErrorIllegalState = 401,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 12
};
constexpr int cudaSharedmemCarveoutMaxShared = 100;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaHostAllocPortable = 1;
struct CUstream_st {};
using cudaStream_t = CUstream_st*;

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  std::size_t totalGlobalMem;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
inline constexpr unsigned cudaHostAllocDefault = 0;
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

// Events know when they were recorded by the clock of the host.
using cudaEvent_t = struct CUevent_st*;
cudaError_t cudaEventCreate(cudaEvent_t* event);
constexpr unsigned cudaEventDisableTiming = 2;
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);

template <class T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int bytes) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;  // a wish
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  cuda_emulator::set_most_shared(reinterpret_cast<const void*>(kernel),
                                 static_cast<std::size_t>(bytes));
  return cudaSuccess;
}

// A graph is the list of what was launched while a stream was being captured. As on a card, one
// thread's capture ends in an error if that thread allocates memory or waits for the stream.
struct CUgraph_st {
  std::vector<std::function<void()>> nodes;
};
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraph_st*;
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
namespace cuda_emulator {
/// Runs `work`, or notes it down while `stream` is captured.
cudaError_t submit(cudaStream_t stream, std::function<void()> work);
}  // namespace cuda_emulator

// Kernels never overlap here, and there are neither clusters nor blocks that wait for others.
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int cooperative;
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->dynamicSmemBytes > cuda_emulator::most_shared(reinterpret_cast<const void*>(kernel)))
    return cudaErrorInvalidValue;
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  return cuda_emulator::submit(config->stream, [kernel, values, launch = *config] {
    cuda_emulator::run_grid(launch.gridDim, launch.blockDim, launch.dynamicSmemBytes,
                            [&] { std::apply(kernel, values); });
  });
}

#include "mma.hpp"
