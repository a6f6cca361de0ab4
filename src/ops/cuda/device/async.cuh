#pragma once
// Copies from device into shared memory that a thread does not wait for: cp.async of the PTX ISA.

#include <cuda_runtime.h>

namespace xlstm::ops::cuda {

/// Copies 16 bytes, at multiples of 16, or reads nothing and writes zeros if `exists` is false.
__device__ __forceinline__ void copy_async_16([[maybe_unused]] void* to,
                                              [[maybe_unused]] const void* from,
                                              [[maybe_unused]] bool exists) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(exists ? 16 : 0)
               : "memory");
#elif defined(XLSTM_CUDA_EMULATED)
  cuda_emulator::copy_async_16(to, from, exists);
#endif
}

/// Ends a group of this thread's copies.
__device__ __forceinline__ void end_copy_group() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until all of this thread's groups but the last kLeft are done.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace xlstm::ops::cuda
