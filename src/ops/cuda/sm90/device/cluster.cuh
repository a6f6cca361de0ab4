#pragma once
// Blocks of one cluster, and each other's shared memory.

#include "ops/cuda/sm90/device/barrier.cuh"

namespace xlstm::ops::cuda {

/// Of this block in its cluster; 0 where it is alone.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// The same without order between what is written before and read after: it waits for no writes.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Waits for all threads of the cluster; what they wrote is seen. Warps come whole.
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

/// The place in block `rank`'s shared memory that `at` is in this block's.
__device__ __forceinline__ SharedAddress cluster_address(SharedAddress at, unsigned rank) {
  SharedAddress remote = 0;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(at), "r"(rank));
  return remote;
}

__device__ __forceinline__ float4 load_cluster(SharedAddress remote) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(remote)
               : "memory");
  return v;
}

/// Writes to where `to` is in the shared memory of a block of the cluster; the bytes count at
/// `barrier` there. No fence: that would wait for all that the thread has stored.
__device__ __forceinline__ void send(SharedAddress to, float a, SharedAddress barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to), "f"(a),
      "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void send(SharedAddress to, float a, float b, SharedAddress barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          to),
      "f"(a), "f"(b), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void send(SharedAddress to, double a, SharedAddress barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f64 [%0], %1, [%2];" ::"r"(to), "d"(a),
      "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void send(SharedAddress to, float4 a, SharedAddress barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(a.x), "f"(a.y), "f"(a.z), "f"(a.w), "r"(barrier)
      : "memory");
}

/// A type of a multiple of 16 bytes. The others read it after cluster_sync().
template <class T>
__device__ __forceinline__ void store_cluster(SharedAddress remote, const T& value) {
  static_assert(sizeof(T) % 16 == 0 && alignof(T) % 16 == 0);
  float4 parts[sizeof(T) / 16];
  __builtin_memcpy(parts, &value, sizeof(T));
#pragma unroll
  for (int x = 0; x < static_cast<int>(sizeof(T) / 16); ++x)
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(remote + 16 * x),
                 "f"(parts[x].x), "f"(parts[x].y), "f"(parts[x].z), "f"(parts[x].w)
                 : "memory");
}

}  // namespace xlstm::ops::cuda
