#pragma once
// Barriers in shared memory (mbarrier of the PTX ISA) and the fences of asynchronous copies. A
// barrier is 8 bytes and completes a phase when all expected arrivals and bytes have come; waiters
// name the parity of the phase: 0 for the first, 1 for the second, ... A barrier that has never
// completed a phase lets those pass who wait for parity 1.

#include <cuda_runtime.h>

#include <cstdint>

namespace xlstm::ops::cuda {

using SharedAddress = unsigned;  ///< in the window of shared memory, as PTX takes it

__device__ __forceinline__ SharedAddress shared_address(const void* at) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(at));
}

/// By one thread; then barrier_fence_init() by it, and a barrier of the block or cluster.
__device__ __forceinline__ void barrier_init(SharedAddress barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes barriers that this thread has set up known to copies and to the cluster.
__device__ __forceinline__ void barrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(SharedAddress barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives, and makes the phase wait for so many bytes of copies more.
__device__ __forceinline__ void barrier_expect(SharedAddress barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Arrives at the same barrier of block `rank` of the cluster: to say that this thread's copies or
/// products have read what is there. It orders no ordinary writes for the other block: a release
/// for a cluster waits for all writes of the thread, about a microsecond.
__device__ __forceinline__ void barrier_arrive_at(SharedAddress barrier, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// Waits for the end of a phase of this parity: copies that count at it are seen, and what threads
/// of this block wrote before they arrived.
__device__ __forceinline__ void barrier_wait(SharedAddress barrier, unsigned parity) {
  unsigned done = 0;
#if defined(XLSTM_TRAP_LONG_WAITS)
  unsigned tries = 0;
#endif
  while (true) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (done != 0) return;
#if defined(XLSTM_TRAP_LONG_WAITS)
    if (++tries > 1U << 20) asm volatile("trap;");
#endif
  }
}

/// Orders this thread's ordinary writes to shared memory before copies and wgmma that read it;
/// then a barrier, if another thread issues them.
__device__ __forceinline__ void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Barrier `id` (1 to 15) of `threads` threads of the block.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Arrives at it and does not wait; the thread counts like those that do.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Gives registers back, or takes them, so that every thread of the warp group has `kCount`.
template <int kCount>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace xlstm::ops::cuda
