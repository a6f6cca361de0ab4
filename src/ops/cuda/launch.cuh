#pragma once
// How every kernel of the ops is launched.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "core/context.hpp"
#include "xlstm/error.hpp"

// Shared memory whose size the launch says, in a kernel: XLSTM_DYNAMIC_SHARED(float, tile);
#if defined(XLSTM_CUDA_EMULATED)
#define XLSTM_DYNAMIC_SHARED(Type, name) \
  Type* const name = reinterpret_cast<Type*>(::cuda_emulator::dynamic_shared())
#else
#define XLSTM_DYNAMIC_SHARED(Type, name)                         \
  extern __shared__ __align__(128) unsigned char name##_bytes[]; \
  Type* const name = reinterpret_cast<Type*>(name##_bytes)
#endif

namespace xlstm::ops::cuda {

struct Grid {
  std::int64_t x = 1;  ///< blocks, below 2^31; y and z below 2^16
  std::int64_t y = 1;
  std::int64_t z = 1;
  int threads = 128;         ///< of a block, in x
  std::size_t shared = 0;    ///< bytes of XLSTM_DYNAMIC_SHARED
  int cluster = 1;           ///< blocks in x of a cluster; more than one with Level::sm90 alone
  bool cooperative = false;  ///< all blocks run at once, as those that wait for each other must
  bool overlap = false;      ///< begins while the kernel before it ends; it calls grid_wait()
  /// Blocks of the next kernel may begin beside its own, also those that take nearly all shared
  /// memory: a multiprocessor divides its memory anew only when it is idle.
  bool beside = false;
};

constexpr std::int64_t blocks_for(std::int64_t count, std::int64_t per_block) {
  return (count + per_block - 1) / per_block;
}

/// Makes a device that of the calling thread while it lives: a stream takes no kernels from others.
class CurrentDevice {
 public:
  explicit CurrentDevice(Device device) {
    changed_ = cudaGetDevice(&before_) == cudaSuccess && before_ != device.index &&
               cudaSetDevice(device.index) == cudaSuccess;
  }
  ~CurrentDevice() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_;
};

// fmt, and so core/check.hpp, does not compile with nvcc: .cu files throw Error with plain strings.

[[noreturn]] inline void fail_launch(const Context& context, const char* name,
                                     const std::string& why) {
  throw Error(ErrorCode::internal,
              std::string(name) + " on " + to_string(context.device()) + ": " + why);
}

/// Launches `kernel` on the stream of `context`. @throws Error(internal) naming `name`
template <class... Parameters, class... Arguments>
void launch(Context& context, const char* name, const Grid& grid, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  // What follows cuts them to 32 bits. CUDA itself refuses a grid without blocks.
  if (grid.x > 0x7FFFFFFF || grid.y > 0xFFFF || grid.z > 0xFFFF)
    fail_launch(context, name,
                "a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                    std::to_string(grid.z) + " blocks");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared;
  config.stream = static_cast<cudaStream_t>(context.stream());
  cudaLaunchAttribute attributes[3] = {};
  config.attrs = attributes;
  if (grid.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(grid.cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  if (grid.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (grid.overlap) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  const CurrentDevice current(context.device());
  constexpr std::size_t kUnasked = std::size_t{48} << 10;
  cudaError_t error = cudaSuccess;
  if (grid.shared > kUnasked)  // no work of the stream: a graph may be captured meanwhile
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared));
  if (error == cudaSuccess && grid.beside)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess && grid.cluster > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess)
    error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // later calls start clean
  fail_launch(context, name, cudaGetErrorString(error));
}

}  // namespace xlstm::ops::cuda
