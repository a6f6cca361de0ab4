// Products of many rows by bf16 dot products (AVX512-BF16): both operands are copied, piece by
// piece, into the order in which the kernel reads them. The unit is a pair of neighbouring values
// of K, the 32 bits that one lane of vdpbf16ps multiplies.

#include <algorithm>

#include "core/check.hpp"
#include "core/cpu_features.hpp"
#include "core/threads.hpp"
#include "ops/cpu/matmul.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
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

constexpr int kLanes = 16;
// A tile of y: kRows rows of two vectors, 24 of 32 registers.
constexpr int kRows = 12;
constexpr int kColumns = 2 * kLanes;
// K is cut so that a panel of W (kColumns x kPairs, 64 KB) stays in the second-level cache while
// all rows of x pass it; rows are cut so that x, 1.5 MB, stays near too.
constexpr std::int64_t kPairs = 512;
constexpr std::int64_t kBlockTiles = 64;
// Columns that a thread takes at a time. Threads take the next ones when they are done: on a shared
// machine equal shares do not take equal time.
constexpr std::int64_t kTaskColumns = 128;

std::int64_t pairs_of(std::int64_t k) { return (k + 1) / 2; }
std::int64_t tiles_of(std::int64_t m) { return (m + kRows - 1) / kRows; }

// out[p][i] = pair p of row i for 16 rows and 16 pairs; rows past `rows` and values past `k` are 0.
// Only the first `width` of the 16 columns are stored, `width` apart.
XLSTM_BF16_TARGET void transpose(const std::uint16_t* from, std::int64_t stride, std::int64_t rows,
                                 std::int64_t k, std::int64_t pairs, std::int64_t width,
                                 std::uint32_t* out) {
  const __mmask32 mask = k >= 32 ? ~__mmask32{0} : static_cast<__mmask32>((1U << k) - 1U);
  __m512i a[kLanes], b[kLanes];
  XLSTM_UNROLL
  for (int i = 0; i < kLanes; ++i)
    a[i] = i < rows ? _mm512_maskz_loadu_epi16(mask, from + i * stride) : _mm512_setzero_si512();
  XLSTM_UNROLL
  for (int i = 0; i < kLanes; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  XLSTM_UNROLL
  for (int i = 0; i < kLanes; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 g + j] holds, in its 128-bit lane l, pair 4 l + j of rows 4 g to 4 g + 3.
  XLSTM_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512i even01 = _mm512_shuffle_i32x4(a[j], a[4 + j], _MM_SHUFFLE(2, 0, 2, 0));
    const __m512i even23 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], _MM_SHUFFLE(2, 0, 2, 0));
    const __m512i odd01 = _mm512_shuffle_i32x4(a[j], a[4 + j], _MM_SHUFFLE(3, 1, 3, 1));
    const __m512i odd23 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], _MM_SHUFFLE(3, 1, 3, 1));
    b[j] = _mm512_shuffle_i32x4(even01, even23, _MM_SHUFFLE(2, 0, 2, 0));
    b[8 + j] = _mm512_shuffle_i32x4(even01, even23, _MM_SHUFFLE(3, 1, 3, 1));
    b[4 + j] = _mm512_shuffle_i32x4(odd01, odd23, _MM_SHUFFLE(2, 0, 2, 0));
    b[12 + j] = _mm512_shuffle_i32x4(odd01, odd23, _MM_SHUFFLE(3, 1, 3, 1));
  }
  const auto store = static_cast<__mmask16>((1U << std::min<std::int64_t>(width, kLanes)) - 1U);
  XLSTM_UNROLL
  for (int p = 0; p < kLanes; ++p)
    if (p < pairs) _mm512_mask_storeu_epi32(out + p * width, store, b[p]);
}

// `pairs` pairs of `rows` rows from column `column` on, as out[pair][row] with rows `width` apart.
XLSTM_BF16_TARGET void pack(const Tensor& t, std::int64_t row, std::int64_t rows,
                            std::int64_t column, std::int64_t pairs, std::int64_t width,
                            std::uint32_t* out) {
  const std::int64_t stride = t.row_stride();
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const std::uint16_t* from = t.as<std::uint16_t>() + (row + i) * stride + column;
    for (std::int64_t p = 0; p < pairs; p += kLanes)
      transpose(from + 2 * p, stride, rows - i, t.dim(1) - column - 2 * p,
                std::min<std::int64_t>(kLanes, pairs - p), width, out + p * width + i);
  }
}

struct TileArgs {
  const std::uint32_t* x;  ///< [pairs][kRows]
  const std::uint32_t* w;  ///< [pairs][kColumns]
  std::int64_t pairs;
  float* y;
  std::int64_t y_stride;
  __mmask16 first, second;  ///< columns of the two vectors that exist
  bool accumulate;
};

template <int R>
XLSTM_BF16_TARGET void tile(const TileArgs& t) {
  __m512 sum[2 * R];
  XLSTM_UNROLL
  for (int j = 0; j < 2 * R; ++j) sum[j] = _mm512_setzero_ps();
  XLSTM_UNROLL
  for (int r = 0; r < R; ++r) {  // y is needed last, but comes from furthest away
    _mm_prefetch(reinterpret_cast<const char*>(t.y + r * t.y_stride), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(t.y + r * t.y_stride + kLanes), _MM_HINT_T0);
  }
  const std::uint32_t* x = t.x;
  const std::uint32_t* w = t.w;
  for (std::int64_t p = 0; p < t.pairs; ++p) {
    const auto w0 = (__m512bh)_mm512_loadu_si512(w);
    const auto w1 = (__m512bh)_mm512_loadu_si512(w + kLanes);
    XLSTM_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto xr = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r]));
      sum[2 * r] = _mm512_dpbf16_ps(sum[2 * r], xr, w0);
      sum[2 * r + 1] = _mm512_dpbf16_ps(sum[2 * r + 1], xr, w1);
    }
    x += kRows;
    w += kColumns;
  }
  XLSTM_UNROLL
  for (int r = 0; r < R; ++r) {
    float* y = t.y + r * t.y_stride;
    if (t.accumulate) {
      sum[2 * r] = _mm512_add_ps(sum[2 * r], _mm512_maskz_loadu_ps(t.first, y));
      sum[2 * r + 1] = _mm512_add_ps(sum[2 * r + 1], _mm512_maskz_loadu_ps(t.second, y + kLanes));
    }
    _mm512_mask_storeu_ps(y, t.first, sum[2 * r]);
    _mm512_mask_storeu_ps(y + kLanes, t.second, sum[2 * r + 1]);
  }
}

using Tile = void (*)(const TileArgs&);
constexpr Tile kTiles[kRows] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};

__mmask16 mask_of(std::int64_t columns) {
  return columns >= kLanes
             ? __mmask16{0xFFFF}
             : static_cast<__mmask16>((1U << std::max<std::int64_t>(columns, 0)) - 1U);
}

// Asks for share `part` of `parts` of the panel that comes next, from memory.
void prefetch_share(const Tensor& w, std::int64_t part, std::int64_t parts) {
  constexpr std::int64_t kLine = 32;  // values of a cache line
  const std::int64_t lines = (w.dim(1) + kLine - 1) / kLine;
  const std::int64_t all = w.dim(0) * lines;
  for (std::int64_t i = all * part / parts; i < all * (part + 1) / parts; ++i)
    _mm_prefetch(reinterpret_cast<const char*>(w.row<std::uint16_t>(i / lines) + i % lines * kLine),
                 _MM_HINT_T1);
}

// Columns [begin, end) of y.
void multiply(const MatmulArgs& args, const std::uint32_t* x, std::int64_t begin,
              std::int64_t end) {
  const std::int64_t m = args.x.dim(0), tiles = tiles_of(m), pairs = pairs_of(args.x.dim(1));
  alignas(64) std::uint32_t panel[kPairs * kColumns];
  for (std::int64_t block = 0; block < tiles; block += kBlockTiles) {
    const std::int64_t block_end = std::min(block + kBlockTiles, tiles);
    for (std::int64_t p = 0; p < pairs; p += kPairs) {
      const std::int64_t depth = std::min(kPairs, pairs - p);
      for (std::int64_t j = begin; j < end; j += kColumns) {
        pack(args.w, j, std::min<std::int64_t>(kColumns, end - j), 2 * p, depth, kColumns, panel);
        const std::int64_t next = std::min(j + kColumns, end);
        const Tensor next_w = args.w.rows(next, std::min<std::int64_t>(kColumns, end - next))
                                  .cols(2 * p, std::min(2 * depth, args.w.dim(1) - 2 * p));
        for (std::int64_t i = block; i < block_end; ++i) {
          prefetch_share(next_w, i - block, block_end - block);
          const std::int64_t row = m * i / tiles;
          kTiles[m * (i + 1) / tiles - row - 1]({.x = x + (i * pairs + p) * kRows,
                                                 .w = panel,
                                                 .pairs = depth,
                                                 .y = args.y.row<float>(row) + j,
                                                 .y_stride = args.y.row_stride(),
                                                 .first = mask_of(end - j),
                                                 .second = mask_of(end - j - kLanes),
                                                 .accumulate = p > 0 || args.accumulate});
        }
      }
    }
  }
}

bool cpu_has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & (1U << 22)) != 0;  // AMX-BF16
}

}  // namespace

bool packed_bf16_is_fastest(DType x, DType w) {
  static const bool amx = cpu_has_amx();
  return x == DType::bf16 && w == DType::bf16 && active_isa() == Isa::avx512_bf16 && !amx;
}

std::size_t packed_bf16_workspace(std::int64_t m, std::int64_t k) {
  return static_cast<std::size_t>(tiles_of(m) * pairs_of(k) * kRows) * sizeof(std::uint32_t);
}

void pack_bf16(const Tensor& x, int threads, std::byte* workspace) {
  const std::int64_t tiles = tiles_of(x.dim(0)), pairs = pairs_of(x.dim(1));
  auto* packed = reinterpret_cast<std::uint32_t*>(workspace);
  parallel_for(threads, tiles, [&](std::int64_t i) {
    const std::int64_t row = x.dim(0) * i / tiles;
    pack(x, row, x.dim(0) * (i + 1) / tiles - row, 0, pairs, kRows, packed + i * pairs * kRows);
  });
}

void packed_bf16_matmul(const MatmulArgs& args, int threads, const std::byte* packed_x) {
  const std::int64_t n = args.w.dim(0);
  const auto* x = reinterpret_cast<const std::uint32_t*>(packed_x);
  // Few columns: smaller tasks, so that every thread has several.
  const std::int64_t share = n / (4 * threads) / kColumns * kColumns;
  const std::int64_t columns = std::clamp<std::int64_t>(share, kColumns, kTaskColumns);
  parallel_for(threads, (n + columns - 1) / columns, [&](std::int64_t i) {
    multiply(args, x, i * columns, std::min(n, (i + 1) * columns));
  });
}

}  // namespace xlstm::ops::cpu

#else

namespace xlstm::ops::cpu {

bool packed_bf16_is_fastest(DType, DType) { return false; }
std::size_t packed_bf16_workspace(std::int64_t, std::int64_t) { return 0; }
void pack_bf16(const Tensor&, int, std::byte*) {}
void packed_bf16_matmul(const MatmulArgs&, int, const std::byte*) {
  fail(ErrorCode::internal, "bf16 dot products on a CPU without them");
}

}  // namespace xlstm::ops::cpu

#endif
