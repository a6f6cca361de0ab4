#pragma once
// Kernels that begin while the one before them ends (Grid::overlap in launch.cuh).

namespace xlstm::ops::cuda {

/// Waits until the kernels before this one in its stream are done and their writes are seen. Every
/// kernel that is launched with overlap calls it in every thread before it touches anything but
/// parameters and weights: also one that needs nothing, or its successor would not wait for those
/// before it.
__device__ __forceinline__ void grid_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel begin as soon as all blocks of this one have said so or ended, and there is
/// room for it.
__device__ __forceinline__ void grid_trigger() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Asks the second-level cache for the 128 bytes at `at`, which hold weights that are read later.
__device__ __forceinline__ void prefetch([[maybe_unused]] const void* at) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

/// Asks for what is at `at` in the first-level cache.
__device__ __forceinline__ void prefetch_first([[maybe_unused]] const void* at) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(at));
#endif
}

}  // namespace xlstm::ops::cuda
