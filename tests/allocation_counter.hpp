#pragma once
// Counts the allocations of the whole process, whatever they come from.

namespace xlstm::testing {

/// Allocations (malloc and everything above it) of all threads since the object was made. Always 0
/// under a sanitizer, whose allocator cannot be counted.
class AllocationCounter {
 public:
  AllocationCounter();
  long count() const;
  /// False under a sanitizer.
  static bool works();

 private:
  long before_;
};

}  // namespace xlstm::testing
