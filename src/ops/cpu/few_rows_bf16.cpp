// Dot products of bf16 pairs (AVX512-BF16). Highway 1.0.3 has no target that admits these
// instructions, so they are used directly, in functions that are marked for them.

#include "core/check.hpp"
#include "ops/cpu/few_rows_kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own _mm512_undefined_*() for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define XLSTM_BF16_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")))
#define XLSTM_UNROLL _Pragma("GCC unroll 24")

namespace xlstm::ops::cpu {
namespace {

// Adds the upper half of a vector to its lower half until 4 lanes are left.
XLSTM_BF16_TARGET inline __m128 fold(__m512 v) {
  const __m512 swapped = _mm512_shuffle_f32x4(v, v, _MM_SHUFFLE(1, 0, 3, 2));
  const __m256 half = _mm512_castps512_ps256(_mm512_add_ps(v, swapped));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// The sums over the lanes of R (4 or 1) vectors, stored at y[r * step]; the same order for any R.
template <int R>
XLSTM_BF16_TARGET inline void store_sums(const __m512* sum, bool accumulate, float* y,
                                         std::int64_t step) {
  const __m128 a = fold(sum[0]);
  const __m128 b = R == 1 ? a : fold(sum[R == 1 ? 0 : 1]);
  const __m128 c = R == 1 ? a : fold(sum[R == 1 ? 0 : 2]);
  const __m128 d = R == 1 ? a : fold(sum[R == 1 ? 0 : 3]);
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  alignas(16) float dots[4];
  _mm_store_ps(dots, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
  for (int r = 0; r < R; ++r) y[r * step] = accumulate ? y[r * step] + dots[r] : dots[r];
}

// R rows of W with C rows of x. Every loop over the arrays of vectors is unrolled completely: only
// then do they stay in registers.
template <int R, int C>
XLSTM_BF16_TARGET void tile(const TileArgs& a) {
  const std::uint16_t* w[R];
  const std::uint16_t* x[C];
  XLSTM_UNROLL
  for (int r = 0; r < R; ++r) w[r] = static_cast<const std::uint16_t*>(a.w) + r * a.w_stride;
  XLSTM_UNROLL
  for (int c = 0; c < C; ++c) x[c] = static_cast<const std::uint16_t*>(a.x) + c * a.x_stride;

  __m512 sum[C * R];
  XLSTM_UNROLL
  for (int j = 0; j < C * R; ++j)
    sum[j] = a.first ? _mm512_setzero_ps() : _mm512_loadu_ps(a.sums + j * kMaxLanes);
  std::int64_t prefetch = a.prefetch_begin;
  for (std::int64_t i = 0; i < a.k; i += 32) {
    if (prefetch < a.prefetch_end) {
      XLSTM_UNROLL
      for (int r = 0; r < R; ++r)
        _mm_prefetch(reinterpret_cast<const char*>(w[r]) + kPrefetchAhead + prefetch, _MM_HINT_T1);
      prefetch += kCacheLine;
    }
    const auto mask =
        i + 32 <= a.k ? ~__mmask32{0} : static_cast<__mmask32>((1U << (a.k - i)) - 1U);
    __m512bh xv[C];
    XLSTM_UNROLL
    for (int c = 0; c < C; ++c) xv[c] = (__m512bh)_mm512_loadu_si512(x[c] + i);
    XLSTM_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto wv = (__m512bh)_mm512_maskz_loadu_epi16(mask, w[r] + i);
      XLSTM_UNROLL
      for (int c = 0; c < C; ++c) sum[c * R + r] = _mm512_dpbf16_ps(sum[c * R + r], wv, xv[c]);
    }
  }
  if (a.last) {
    XLSTM_UNROLL
    for (int c = 0; c < C; ++c) XLSTM_UNROLL
    for (int r = 0; r < R; r += 4)
      store_sums<R == 1 ? 1 : 4>(sum + c * R + r, a.accumulate, a.y + c * a.y_stride + r * a.y_step,
                                 a.y_step);
  } else {
    XLSTM_UNROLL
    for (int j = 0; j < C * R; ++j) _mm512_storeu_ps(a.sums + j * kMaxLanes, sum[j]);
  }
}

template <int R>
constexpr std::array<Tile, kMaxTileColumns> tiles() {
  return {tile<R, 1>, tile<R, 2>, tile<R, 3>};
}

}  // namespace

const TileTable& bf16_dot_tiles() {
  static const TileTable table{kMaxTileRows, kMaxTileColumns, {tiles<kMaxTileRows>(), tiles<1>()}};
  return table;
}

}  // namespace xlstm::ops::cpu

#else

namespace xlstm::ops::cpu {
const TileTable& bf16_dot_tiles() {
  fail(ErrorCode::internal, "bf16 dot products on a CPU without them");
}
}  // namespace xlstm::ops::cpu

#endif
