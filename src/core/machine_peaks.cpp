#include "core/machine_peaks.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/buffer.hpp"
#include "core/cpu_features.hpp"
#include "core/threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/machine_peaks.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef XLSTM_CORE_MACHINE_PEAKS_BLOCK
#define XLSTM_CORE_MACHINE_PEAKS_BLOCK
namespace xlstm {
constexpr std::int64_t kBlockWords = 8192;  // 64 KiB
}
#endif

HWY_BEFORE_NAMESPACE();
namespace xlstm {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Reads `count` words, a multiple of kBlockWords, and returns their sum, so that nothing of the
// reading can be left out. Eight streams at once, with the next block on its way into the
// second-level cache, are faster than one long stream on every machine tried.
std::uint64_t read_words(const std::uint64_t* words, std::int64_t count) {
  const hn::ScalableTag<std::uint64_t> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr std::int64_t kStream = kBlockWords / 8;
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (std::int64_t block = 0; block < count; block += kBlockWords) {
    const std::uint64_t* from = words + block;
    const std::int64_t next = block + kBlockWords < count ? kBlockWords : 0;
    for (std::int64_t i = 0; i < kStream; i += 8) {
      HWY_UNROLL(8)
      for (int s = 0; s < 8; ++s) __builtin_prefetch(from + next + s * kStream + i, 0, 2);
      for (std::int64_t j = i; j < i + 8; j += lanes) {
        HWY_UNROLL(2)
        for (int s = 0; s < 8; s += 4) {
          a = hn::Add(a, hn::Load(d, from + s * kStream + j));
          b = hn::Add(b, hn::Load(d, from + (s + 1) * kStream + j));
          c = hn::Add(c, hn::Load(d, from + (s + 2) * kStream + j));
          e = hn::Add(e, hn::Load(d, from + (s + 3) * kStream + j));
        }
      }
    }
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

// 12 independent chains hide the latency of a multiply-add on every CPU of the last ten years.
// Returns operations; the sums go to `sink` so that they are computed.
double multiply_add(std::int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto x = hn::Set(d, sink[0]), y = hn::Set(d, sink[1]);
  // Different starts: equal chains would be computed once.
  auto s0 = hn::Set(d, 0.0F);
  auto s1 = hn::Set(d, 1.0F);
  auto s2 = hn::Set(d, 2.0F);
  auto s3 = hn::Set(d, 3.0F);
  auto s4 = hn::Set(d, 4.0F);
  auto s5 = hn::Set(d, 5.0F);
  auto s6 = hn::Set(d, 6.0F);
  auto s7 = hn::Set(d, 7.0F);
  auto s8 = hn::Set(d, 8.0F);
  auto s9 = hn::Set(d, 9.0F);
  auto s10 = hn::Set(d, 10.0F);
  auto s11 = hn::Set(d, 11.0F);
  for (std::int64_t i = 0; i < rounds; ++i) {
    s0 = hn::MulAdd(x, y, s0);
    s1 = hn::MulAdd(x, y, s1);
    s2 = hn::MulAdd(x, y, s2);
    s3 = hn::MulAdd(x, y, s3);
    s4 = hn::MulAdd(x, y, s4);
    s5 = hn::MulAdd(x, y, s5);
    s6 = hn::MulAdd(x, y, s6);
    s7 = hn::MulAdd(x, y, s7);
    s8 = hn::MulAdd(x, y, s8);
    s9 = hn::MulAdd(x, y, s9);
    s10 = hn::MulAdd(x, y, s10);
    s11 = hn::MulAdd(x, y, s11);
  }
  const auto sum = hn::Add(
      hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), hn::Add(hn::Add(s4, s5), hn::Add(s6, s7))),
      hn::Add(hn::Add(s8, s9), hn::Add(s10, s11)));
  sink[2] = hn::GetLane(hn::SumOfLanes(d, sum));
  return 24.0 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm {
namespace {

HWY_EXPORT(read_words);
HWY_EXPORT(multiply_add);

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__x86_64__)
// As multiply_add(), with dot products of pairs.
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))) double dot_bf16(
    std::int64_t rounds, float* sink) {
  const auto x = (__m512bh)_mm512_set1_ps(sink[0]);
  const auto y = (__m512bh)_mm512_set1_ps(sink[1]);
  __m512 s0 = _mm512_set1_ps(0.0F);
  __m512 s1 = _mm512_set1_ps(1.0F);
  __m512 s2 = _mm512_set1_ps(2.0F);
  __m512 s3 = _mm512_set1_ps(3.0F);
  __m512 s4 = _mm512_set1_ps(4.0F);
  __m512 s5 = _mm512_set1_ps(5.0F);
  __m512 s6 = _mm512_set1_ps(6.0F);
  __m512 s7 = _mm512_set1_ps(7.0F);
  __m512 s8 = _mm512_set1_ps(8.0F);
  __m512 s9 = _mm512_set1_ps(9.0F);
  __m512 s10 = _mm512_set1_ps(10.0F);
  __m512 s11 = _mm512_set1_ps(11.0F);
  for (std::int64_t i = 0; i < rounds; ++i) {
    s0 = _mm512_dpbf16_ps(s0, x, y);
    s1 = _mm512_dpbf16_ps(s1, x, y);
    s2 = _mm512_dpbf16_ps(s2, x, y);
    s3 = _mm512_dpbf16_ps(s3, x, y);
    s4 = _mm512_dpbf16_ps(s4, x, y);
    s5 = _mm512_dpbf16_ps(s5, x, y);
    s6 = _mm512_dpbf16_ps(s6, x, y);
    s7 = _mm512_dpbf16_ps(s7, x, y);
    s8 = _mm512_dpbf16_ps(s8, x, y);
    s9 = _mm512_dpbf16_ps(s9, x, y);
    s10 = _mm512_dpbf16_ps(s10, x, y);
    s11 = _mm512_dpbf16_ps(s11, x, y);
  }
  const __m512 sum = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
  sink[2] = _mm512_cvtss_f32(sum);
  return 24.0 * 32.0 * static_cast<double>(rounds);
}
#endif

// Best of many short runs of all threads at once.
template <class Loop>
double best_rate(int threads, double seconds, Loop&& loop) {
  double best = 0;
  const double end = now() + seconds;
  do {
    std::vector<double> operations(static_cast<std::size_t>(threads));
    const double start = now();
    parallel_for(threads, threads, [&](std::int64_t i) {
      float numbers[3] = {1.0F, 0.0F, 0.0F};
      operations[static_cast<std::size_t>(i)] = loop(100000, numbers);
    });
    const double elapsed = now() - start;
    double sum = 0;
    for (double n : operations) sum += n;
    best = std::max(best, sum / elapsed / 1e9);
  } while (now() < end);
  return best;
}

}  // namespace

double measure_read_bandwidth(int threads, double seconds) {
  active_isa();
  // Each thread's part is larger than its share of any cache, and even one thread's than any cache.
  const std::size_t bytes =
      (std::size_t{64} << 20) * static_cast<std::size_t>(std::max(2, threads));
  const Buffer buffer(bytes, {}, true);
  const auto* words = reinterpret_cast<const std::uint64_t*>(buffer.data());
  const auto count = static_cast<std::int64_t>(bytes / sizeof(std::uint64_t));
  std::vector<double> rates;
  std::uint64_t sum = 0;
  const double end = now() + seconds;
  do {
    const double start = now();
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : sum)
    for (int i = 0; i < threads; ++i) {
      const Range range = split_range(count, threads, i, kBlockWords);
      sum += HWY_DYNAMIC_DISPATCH(read_words)(words + range.begin, range.end - range.begin);
    }
    rates.push_back(static_cast<double>(bytes) / (now() - start) / 1e9);
  } while (sum == 0 && now() < end);  // the buffer is zero, but the compiler cannot know
  std::nth_element(rates.begin(), rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2),
                   rates.end());
  return rates[rates.size() / 2];
}

double measure_f32_peak(int threads, double seconds) {
  active_isa();
  return best_rate(threads, seconds, [](std::int64_t rounds, float* numbers) {
    return HWY_DYNAMIC_DISPATCH(multiply_add)(rounds, numbers);
  });
}

double measure_bf16_peak(int threads, double seconds) {
#if defined(__x86_64__)
  if (active_isa() == Isa::avx512_bf16) return best_rate(threads, seconds, dot_bf16);
#endif
  return measure_f32_peak(threads, seconds);
}

}  // namespace xlstm
#endif  // HWY_ONCE
