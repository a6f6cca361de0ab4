#include "allocation_counter.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

// glibc lets a program put its own functions in place of malloc and reach the library's by these
// names. The sanitizers do the same, so they must stay alone.
// On a card `new` gives other memory (tests/cuda/pinned_memory.cpp).
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(XLSTM_TEST_ON_CARD)
#define XLSTM_COUNTS_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define XLSTM_COUNTS_ALLOCATIONS 0
#endif
#endif
#if !defined(XLSTM_COUNTS_ALLOCATIONS) && defined(__GLIBC__)
#define XLSTM_COUNTS_ALLOCATIONS 1
#endif

namespace {
std::atomic<long> allocations{0};
}  // namespace

#if XLSTM_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t n, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  ++allocations;
  return __libc_calloc(n, size);
}
void* realloc(void* old, std::size_t size) {
  ++allocations;
  return __libc_realloc(old, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
}
#endif

namespace xlstm::testing {

AllocationCounter::AllocationCounter() : before_(allocations.load()) {}
long AllocationCounter::count() const { return allocations.load() - before_; }
bool AllocationCounter::works() { return XLSTM_COUNTS_ALLOCATIONS != 0; }

namespace {

TEST(AllocationCounterTest, SeesNewAndAlignedNew) {
  const AllocationCounter counter;
  const auto values = std::make_unique<std::vector<int>>(1000);
  void* aligned = ::operator new(512, std::align_val_t(256));
  ::operator delete(aligned, std::align_val_t(256));
  EXPECT_EQ(counter.count() >= 3, AllocationCounter::works());
}

}  // namespace
}  // namespace xlstm::testing
