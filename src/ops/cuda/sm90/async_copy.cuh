#pragma once
// Copies of 16 bytes from device memory to shared memory that a thread does not wait for (cp.async
// of the PTX ISA).

#include <cuda_runtime.h>

#include <cstdint>

namespace xlstm::ops::cuda::sm90 {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// For what is read once: it makes no room for itself in the second-level cache.
__device__ __forceinline__ std::uint64_t evict_first_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// Copies 16 bytes, or puts zeros where `exists` is false.
__device__ __forceinline__ void async_copy(std::uint32_t to, const void* from, bool exists,
                                           std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to),
               "l"(from), "r"(exists ? 16 : 0), "l"(policy)
               : "memory");
}

/// Copies 16 bytes of a line of 128 that is needed as a whole, if not all at once.
__device__ __forceinline__ void async_copy_of_line(std::uint32_t to, const void* from,
                                                   std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from), "l"(policy)
               : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits for this thread's copies, but those of the last `kPending` groups.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace xlstm::ops::cuda::sm90
