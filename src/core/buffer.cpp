#include "core/buffer.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "core/check.hpp"
#include "core/cuda_device.hpp"

namespace xlstm {
namespace {

// Measuring hands out addresses near this one: not null, aligned, never mapped.
constexpr std::uintptr_t kMeasuringBase = std::uintptr_t{1} << 56;

}  // namespace

Buffer::Buffer(std::size_t bytes, Device device, bool zero) : size_(bytes), device_(device) {
  if (bytes == 0) return;
  if (!device.is_cpu()) {
    data_ = static_cast<std::byte*>(cuda::allocate(bytes, device, zero));
    return;
  }
  data_ =
      static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kAlignment), std::nothrow));
  XLSTM_CHECK(data_ != nullptr, out_of_memory, "out of memory: could not allocate {} bytes", bytes);
  if (zero) std::memset(data_, 0, bytes);
}

Buffer Buffer::on_host_for(Device peer, std::size_t bytes) {
  if (peer.is_cpu() || bytes == 0) return Buffer(bytes);
  Buffer buffer;
  buffer.data_ = static_cast<std::byte*>(cuda::allocate_pinned(bytes, peer));
  buffer.size_ = bytes;
  buffer.pinned_ = true;
  return buffer;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      device_(other.device_),
      pinned_(other.pinned_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(device_, other.device_);
  std::swap(pinned_, other.pinned_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (pinned_)
    cuda::release_pinned(data_);
  else if (device_.is_cpu())
    ::operator delete(data_, std::align_val_t(kAlignment));
  else
    cuda::release(data_, device_);
}

void copy_memory(void* to, Device to_device, const void* from, Device from_device,
                 std::size_t bytes) {
  if (bytes == 0) return;
  if (to_device.is_cpu() && from_device.is_cpu()) {
    std::memcpy(to, from, bytes);
    return;
  }
  const Device device = to_device.is_cpu() ? from_device : to_device;
  cuda::copy(to, from, bytes, nullptr, device);
  cuda::synchronize(nullptr, device);
}

Buffer place_tensors(std::span<Tensor* const> tensors) {
  std::size_t bytes = 0;
  for (const Tensor* t : tensors) bytes += aligned(t->bytes());
  Buffer buffer(bytes, {}, true);
  std::byte* at = buffer.data();
  for (Tensor* t : tensors) {
    t->data = at;
    at += aligned(t->bytes());
  }
  return buffer;
}

void Arena::reserve(std::size_t bytes) {
  XLSTM_ASSERT(used_ == 0 && !measuring_);
  if (bytes <= buffer_.size()) return;
  buffer_ = Buffer();  // free first: the old content is dead and the peak should not hold both
  buffer_ = Buffer(aligned(bytes), device_);
}

void Arena::start_measuring() {
  XLSTM_ASSERT(used_ == 0);
  measuring_ = true;
  peak_ = 0;
}

std::size_t Arena::stop_measuring() {
  measuring_ = false;
  used_ = 0;
  return std::exchange(peak_, 0);
}

std::byte* Arena::take(std::size_t bytes) {
  const std::size_t begin = used_;
  used_ += aligned(bytes);
  peak_ = std::max(peak_, used_);
  if (measuring_) return reinterpret_cast<std::byte*>(kMeasuringBase + begin);
  XLSTM_ASSERT(used_ <= buffer_.size());
  return buffer_.data() + begin;
}

Tensor Arena::tensor(DType dtype, std::initializer_list<std::int64_t> sizes) {
  Tensor t = Tensor::dense(nullptr, dtype, sizes, device_);
  const std::size_t element = size_of(dtype);
  std::int64_t step = 1;
  for (int d = t.rank - 1; d >= 0; --d) {
    const auto i = static_cast<std::size_t>(d);
    t.stride[i] = step;
    step *= t.size[i];
    if (d == t.rank - 1 && t.rank > 1)
      step = static_cast<std::int64_t>(
          round_up(static_cast<std::size_t>(step) * element, kRowAlignment) / element);
  }
  t.data = take(static_cast<std::size_t>(step) * element);
  return t;
}

}  // namespace xlstm
