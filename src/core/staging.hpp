#pragma once
// Copies to a CUDA device at the speed of its bus.

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "xlstm/device.hpp"

namespace xlstm {

/// Memory of the host that a CUDA device copies from on its own, in pieces, and a stream: while the
/// device copies from some, the host fills others.
class Staging {
 public:
  /// @param total    bytes to copy in all: if they are few, so is the memory
  /// @param threads  that make the memory's pages
  /// @throws Error(out_of_memory)
  Staging(Device device, std::size_t total, int threads);
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  /// Waits for copies that are under way.
  ~Staging();

  /// Memory to fill, at least kAlignment bytes. Waits until it was copied.
  std::span<std::byte> room();
  /// Queues a copy of the first bytes of room(), which is other memory then. What is small shares a
  /// piece.
  void send(std::byte* to, std::size_t bytes);
  /// Has what is queued on another stream from now on wait for all copies so far.
  void wait_on(void* stream);
  /// Has copies from now on wait for the work before the event's last record().
  void wait_for(void* event);

 private:
  std::byte* piece(std::size_t index) const noexcept;

  Device device_;
  std::size_t piece_bytes_, pieces_;
  std::shared_ptr<std::byte> memory_;  // outlives the stream
  std::shared_ptr<void> stream_;
  std::shared_ptr<void> all_copied_;           // events
  std::vector<std::shared_ptr<void>> copied_;  // of each piece
  std::size_t turn_ = 0, used_ = 0;            // the piece being filled, and bytes of it
};

}  // namespace xlstm
