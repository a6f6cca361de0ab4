// What `new` gives in this program lies in pinned memory of the host, which every card reads and
// writes in place: tests of single ops hand kernels the tensors that they hand the CPU.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>

namespace {

constexpr std::size_t kBytes = std::size_t{1} << 30;  // at a time
constexpr std::size_t kMostTimes = 16;
constexpr std::size_t kHeader = 16;  // before every block: the logarithm of its size

// Blocks are powers of two; those given back are kept in a list for each size.
struct Pool {
  std::array<std::byte*, kMostTimes> memory = {};
  std::size_t times = 0, used = 0;  // of the last
  std::array<void*, 64> free = {};
  std::mutex mutex;

  Pool() { grow(); }
  bool grow() {
    void* more = nullptr;
    if (times == kMostTimes || cudaHostAlloc(&more, kBytes, cudaHostAllocDefault) != cudaSuccess)
      return false;
    memory[times++] = static_cast<std::byte*>(more);
    used = 0;
    return true;
  }
  bool owns(const void* p) const {
    return std::any_of(memory.begin(), memory.begin() + static_cast<std::ptrdiff_t>(times),
                       [p](const std::byte* at) { return p >= at && p < at + kBytes; });
  }
  void* take(std::size_t bytes, std::size_t alignment) {
    const std::size_t first = alignment > kHeader ? alignment : kHeader;
    const std::size_t size = std::bit_ceil(bytes + first);
    const auto power = static_cast<std::size_t>(std::countr_zero(size));
    const std::lock_guard<std::mutex> lock(mutex);
    std::byte* block = static_cast<std::byte*>(free[power]);
    if (block != nullptr) {
      free[power] = *static_cast<void**>(free[power]);
    } else {
      std::size_t at = (used + 255) / 256 * 256;
      if (at + size > kBytes) {
        if (size > kBytes || !grow()) return nullptr;
        at = 0;
      }
      block = memory[times - 1] + at;
      used = at + size;
    }
    std::byte* p = block + first;
    reinterpret_cast<std::size_t*>(p)[-1] = power;
    reinterpret_cast<std::size_t*>(p)[-2] = first;
    return p;
  }
  /// @return whether it was from here
  bool give(void* p) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!owns(p)) return false;
    const std::size_t power = static_cast<std::size_t*>(p)[-1];
    void* block = static_cast<std::byte*>(p) - static_cast<std::size_t*>(p)[-2];
    *static_cast<void**>(block) = free[power];
    free[power] = block;
    return true;
  }
};

Pool* pool = nullptr;

void* take(std::size_t bytes, std::size_t alignment) {
  void* p = pool != nullptr ? pool->take(bytes, alignment) : nullptr;
  if (p == nullptr) p = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  return p;
}
void give(void* p) {
  if (pool == nullptr || !pool->give(p)) std::free(p);
}

}  // namespace

namespace xlstm {

/// From now on. @return whether the card has such memory
bool pin_new_memory() {
  alignas(Pool) static std::byte memory[sizeof(Pool)];
  Pool* made = new (memory) Pool;
  if (made->times > 0) pool = made;
  return pool != nullptr;
}

}  // namespace xlstm

void* operator new(std::size_t bytes) {
  void* p = take(bytes, kHeader);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  void* p = take(bytes, static_cast<std::size_t>(alignment));
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return take(bytes, kHeader);
}
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return take(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { give(p); }
void operator delete(void* p, std::size_t) noexcept { give(p); }
void operator delete(void* p, std::align_val_t) noexcept { give(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give(p); }
