#pragma once
// Copies of boxes of a matrix between device and shared memory (cp.async.bulk.tensor of the PTX
// ISA). One thread issues a copy. A tensor map (ops/cuda/sm90/tensor_map.cuh) says the box; columns
// and rows outside the matrix are zeros in a load and left out in a store. In shared memory a row
// of a box is 128 bytes, and its 16-byte unit u lies at unit u ^ (row % 8): the box begins at a
// multiple of 1024 bytes.

#include <cuda.h>

#include <cstdint>

#include "ops/cuda/sm90/device/barrier.cuh"

namespace xlstm::ops::cuda {

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// For data that is read once: it leaves the second-level cache first.
__device__ __forceinline__ std::uint64_t evict_first() {
  std::uint64_t policy = 0;
  asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
  return policy;
}
/// Loads the box whose first element is [row, column]; its bytes count at `barrier`.
__device__ __forceinline__ void load_box(SharedAddress to, const CUtensorMap* map, int row,
                                         int column, SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void load_box(SharedAddress to, const CUtensorMap* map, int row,
                                         int column, SharedAddress barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}
/// The same into the same place of every block of the cluster whose bit is set in `ranks`,
/// counted at the same barrier of each.
__device__ __forceinline__ void load_box_to(unsigned ranks, SharedAddress to,
                                            const CUtensorMap* map, int row, int column,
                                            SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<std::uint16_t>(ranks))
      : "memory");
}

/// Boxes of one head of a matrix [rows, heads, columns of a head] (head_box_map): columns outside
/// the head are zeros too.
__device__ __forceinline__ void load_head_box(SharedAddress to, const CUtensorMap* map, int row,
                                              int head, int column, SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(column), "r"(head), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void load_head_box_to(unsigned ranks, SharedAddress to,
                                                 const CUtensorMap* map, int row, int head,
                                                 int column, SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(column), "r"(head), "r"(row), "r"(barrier),
      "h"(static_cast<std::uint16_t>(ranks))
      : "memory");
}

/// Asks the second-level cache for such a box.
__device__ __forceinline__ void prefetch_head_box(const CUtensorMap* map, int row, int head,
                                                  int column) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(map),
               "r"(column), "r"(head), "r"(row)
               : "memory");
}

/// Loads `bytes` that lie together, whole units of 16 bytes at both ends.
__device__ __forceinline__ void load_bytes(SharedAddress to, const void* from, unsigned bytes,
                                           SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Asks the second-level cache for bytes that lie together, as load_bytes() takes them.
__device__ __forceinline__ void prefetch_bytes(const void* from, unsigned bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

/// Copies `bytes` of this block's shared memory to another block's; both addresses there are
/// cluster_address()es. The barrier counts the bytes.
__device__ __forceinline__ void send_bytes(SharedAddress to, SharedAddress from, unsigned bytes,
                                           SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to),
      "r"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Stores a box that fence_async() has published, or adds it to what is there.
__device__ __forceinline__ void store_box(SharedAddress from, const CUtensorMap* map, int row,
                                          int column) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(column), "r"(row), "r"(from)
      : "memory");
}
__device__ __forceinline__ void store_head_box(SharedAddress from, const CUtensorMap* map, int row,
                                               int head, int column) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
      "r"(column), "r"(head), "r"(row), "r"(from)
      : "memory");
}
__device__ __forceinline__ void add_box(SharedAddress from, const CUtensorMap* map, int row,
                                        int column) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%1, %2}], "
      "[%3];" ::"l"(map),
      "r"(column), "r"(row), "r"(from)
      : "memory");
}

/// Ends a group of this thread's stores.
__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Waits until at most kGroups of this thread's groups still read shared memory.
template <int kGroups>
__device__ __forceinline__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}
/// Waits until all of this thread's stores are done.
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/// Where 16-byte unit `unit` of row `row` lies in a box, in bytes.
__device__ __forceinline__ unsigned box_offset(int row, int unit) {
  return static_cast<unsigned>(row * 128 + (unit ^ (row & 7)) * 16);
}

}  // namespace xlstm::ops::cuda
