#pragma once
// A barrier for threads that meet every few microseconds.

#include <atomic>
#include <thread>

namespace xlstm {

/// Reusable; all calls of wait() name the same number of members.
class SpinBarrier {
 public:
  void wait(int members) noexcept {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins > kSpins)
        std::this_thread::yield();  // somebody has no core
      else
        pause();
    }
  }

 private:
  static constexpr int kSpins = 4000;
  static void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

}  // namespace xlstm
