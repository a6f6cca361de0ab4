#pragma once
// Threads: loops over OpenMP, with the number of threads always explicit.

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdint>

namespace xlstm {

/// Cores that this process may run on, counting hyper-threads of one core once; at least 1.
int physical_cores() noexcept;

/// Rows [begin, end) of `n` that thread `index` of `threads` works on: contiguous, near equal, and
/// borders on multiples of `grain`.
struct Range {
  std::int64_t begin;
  std::int64_t end;
};
constexpr Range split_range(std::int64_t n, int threads, int index, std::int64_t grain = 1) {
  const std::int64_t units = (n + grain - 1) / grain;
  const std::int64_t begin = units * index / threads * grain;
  const std::int64_t end = units * (index + 1) / threads * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

/// Runs body(i) for i in [0, n), dynamically distributed. The body must not throw.
template <class Body>
void parallel_for(int threads, std::int64_t n, Body&& body) {
  if (threads <= 1 || n <= 1) {
    for (std::int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t i = 0; i < n; ++i) body(i);
}

/// Runs body(range) once per thread over a static split of [0, n). The body must not throw.
template <class Body>
void parallel_ranges(int threads, std::int64_t n, std::int64_t grain, Body&& body) {
  if (threads <= 1 || n <= grain) {
    body(Range{0, n});
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    const Range range = split_range(n, threads, i, grain);
    if (range.begin < range.end) body(range);
  }
}

/// Runs body(index, members) on up to `threads` threads at once. All members run at the same time,
/// so they may wait for each other; there may be fewer than asked for. The body must not throw.
template <class Body>
void parallel_team(int threads, Body&& body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  (void)threads;
  body(0, 1);
}

}  // namespace xlstm
