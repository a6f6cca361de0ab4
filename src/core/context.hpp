#pragma once
// Context: where and how an operation runs. Passed to every op.

#include <memory>

#include "core/buffer.hpp"
#include "xlstm/device.hpp"

namespace xlstm {

/// Device, thread count and scratch memory of one execution. One forward pass at a time.
class Context {
 public:
  /// @param threads  0: one per physical core
  explicit Context(Device device = {}, int threads = 0);

  Device device() const noexcept { return device_; }
  int threads() const noexcept { return threads_; }
  Arena& arena() noexcept { return arena_; }

  /// Where ops of a CUDA device queue their work (core/cuda_device.hpp); null on the CPU. It is
  /// made when first asked for: measuring needs no device.
  /// @throws Error(unsupported), Error(not_found) for a device that this build or machine lacks
  void* stream() const;
  /// kSignals numbers on a CUDA device, zeros whenever none of its kernels runs: blocks that wait
  /// for one another count there, and leave zeros. Null on the CPU.
  unsigned* signals() const;
  static constexpr int kSignals = 1024;
  /// Waits until the work of all ops so far is done. @throws Error(internal) if some failed
  void synchronize() const;

  /// While measuring, ops check their arguments and count their workspace, but run nothing: the
  /// same forward pass then says how much memory it needs.
  bool measuring() const noexcept { return measuring_; }
  void start_measuring();
  /// Ends measuring and returns what was counted.
  std::size_t stop_measuring();
  /// Ends measuring and reserves what was counted.
  void finish_measuring();

 private:
  Device device_;
  int threads_;
  Arena arena_;
  bool measuring_ = false;
  mutable std::shared_ptr<void> stream_;
  mutable Buffer signals_;
};

}  // namespace xlstm
