#pragma once
// Owners of memory: Buffer (one allocation) and Arena (a bump allocator over one Buffer).

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

#include "xlstm/device.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm {

/// Every allocation starts on this many bytes; so does every tensor of an Arena.
inline constexpr std::size_t kAlignment = 256;
/// Row strides of Arena tensors are multiples of this many bytes (bulk copies demand it).
inline constexpr std::size_t kRowAlignment = 16;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
/// What `bytes` take where the next thing is aligned, too.
constexpr std::size_t aligned(std::size_t bytes) { return round_up(bytes, kAlignment); }

/// Owns one block of memory on one device. Move-only. Content is uninitialised unless `zero`.
class Buffer {
 public:
  Buffer() = default;
  /// @throws Error(out_of_memory) naming the size
  explicit Buffer(std::size_t bytes, Device device = {}, bool zero = false);
  /// Memory of the host that copies to and from the CUDA device `peer` go through at full speed and
  /// on their own; plain memory if `peer` is the CPU. @throws Error(out_of_memory)
  static Buffer on_host_for(Device peer, std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  Device device() const noexcept { return device_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  Device device_;
  bool pinned_ = false;
};

/// Copies between memory of any two devices and waits for it.
void copy_memory(void* to, Device to_device, const void* from, Device from_device,
                 std::size_t bytes);

/// Memory for all of these tensors, dense and so far without any, one after the other, zeros; each
/// starts on kAlignment bytes.
Buffer place_tensors(std::span<Tensor* const> tensors);

/// A bump allocator for what lives no longer than a step. In measuring mode it hands out addresses
/// that must not be read, and peak() afterwards says how much the same calls need.
class Arena {
 public:
  explicit Arena(Device device = {}) : device_(device) {}

  /// Grows the memory to at least `bytes`; only while nothing is taken.
  void reserve(std::size_t bytes);
  /// Starts counting instead of handing out memory, until stop_measuring().
  void start_measuring();
  /// Returns the peak since start_measuring() and goes back to handing out memory.
  std::size_t stop_measuring();

  /// `bytes` of memory, aligned to kAlignment. @throws Error(internal) beyond what was reserved
  std::byte* take(std::size_t bytes);
  /// A tensor whose rows start on multiples of kRowAlignment.
  Tensor tensor(DType dtype, std::initializer_list<std::int64_t> sizes);

  /// Position to come back to with rewind(); what was taken since is free again.
  std::size_t mark() const noexcept { return used_; }
  void rewind(std::size_t mark) noexcept { used_ = mark; }
  std::size_t capacity() const noexcept { return buffer_.size(); }
  std::size_t peak() const noexcept { return peak_; }

 private:
  Device device_;
  Buffer buffer_;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
  bool measuring_ = false;
};

/// Gives back on destruction what was taken from an arena since construction.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  std::size_t mark_;
};

}  // namespace xlstm
