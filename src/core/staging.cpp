#include "core/staging.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "core/buffer.hpp"
#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "core/threads.hpp"

namespace xlstm {
namespace {

// With four pieces of 8 MB a bus of 55 GB/s is full; less memory leaves it idle while threads begin
// and end to fill a piece, and more takes longer to make.
constexpr std::size_t kPiece = std::size_t{8} << 20, kPieces = 4;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

// CUDA's own pinned memory has pages of 4 KB, made one after the other: 0.35 ms for each MB. Pages
// of 2 MB that are there are pinned in a fifteenth of that. Null where the system forbids it.
std::shared_ptr<std::byte> pinned_huge_pages(Device device, std::size_t bytes, int threads) {
  bytes = round_up(bytes, kHugePage);
  std::shared_ptr<std::byte> memory(static_cast<std::byte*>(std::aligned_alloc(kHugePage, bytes)),
                                    std::free);
  if (memory == nullptr) return nullptr;
  static_cast<void>(::madvise(memory.get(), bytes, MADV_HUGEPAGE));  // a wish
  parallel_for(threads, static_cast<std::int64_t>(bytes / kHugePage), [&](std::int64_t i) {
    constexpr std::size_t kPage = 4096;
    std::byte* const page = memory.get() + static_cast<std::size_t>(i) * kHugePage;
    for (std::size_t at = 0; at < kHugePage; at += kPage) page[at] = std::byte{};
  });
  try {
    cuda::pin(memory.get(), bytes, device);
  } catch (const Error&) {
    return nullptr;
  }
  std::byte* const begin = memory.get();
  return {begin, [memory = std::move(memory)](std::byte* m) { cuda::unpin(m); }};
}

std::shared_ptr<std::byte> pinned(Device device, std::size_t bytes, int threads) {
  if (bytes >= kHugePage)
    if (std::shared_ptr<std::byte> memory = pinned_huge_pages(device, bytes, threads))
      return memory;
  auto buffer = std::make_shared<Buffer>(Buffer::on_host_for(device, bytes));
  return {buffer, buffer->data()};
}

}  // namespace

Staging::Staging(Device device, std::size_t total, int threads)
    : device_(device),
      piece_bytes_(std::clamp(aligned(total), kAlignment, kPiece)),
      pieces_(std::clamp((total + piece_bytes_ - 1) / piece_bytes_, std::size_t{1}, kPieces)),
      memory_(pinned(device, pieces_ * piece_bytes_, threads)),
      stream_(cuda::shared_stream(device)),
      all_copied_(cuda::shared_event(device)) {
  for (std::size_t i = 0; i < pieces_; ++i) copied_.push_back(cuda::shared_event(device));
}

Staging::~Staging() {
  try {
    cuda::synchronize(stream_.get(), device_);
  } catch (const Error&) {  // whoever waits for the other stream gets it, too
  }
}

std::byte* Staging::piece(std::size_t index) const noexcept {
  return memory_.get() + index * piece_bytes_;
}

std::span<std::byte> Staging::room() {
  if (used_ == piece_bytes_) {
    cuda::record(copied_[turn_].get(), stream_.get(), device_);
    turn_ = (turn_ + 1) % pieces_;
    cuda::wait(copied_[turn_].get(), device_);
    used_ = 0;
  }
  return {piece(turn_) + used_, piece_bytes_ - used_};
}

void Staging::send(std::byte* to, std::size_t bytes) {
  XLSTM_ASSERT(bytes > 0 && bytes <= piece_bytes_ - used_);
  cuda::copy(to, piece(turn_) + used_, bytes, stream_.get(), device_);
  used_ = std::min(piece_bytes_, used_ + aligned(bytes));
}

void Staging::wait_on(void* stream) {
  cuda::record(all_copied_.get(), stream_.get(), device_);
  cuda::wait_on_stream(stream, all_copied_.get(), device_);
}

void Staging::wait_for(void* event) { cuda::wait_on_stream(stream_.get(), event, device_); }

}  // namespace xlstm
