// Products in float32 arithmetic. sgemm(): any size, best for the small ones of the mLSTM cell: no
// packing of A at all, and of B only where its columns are not vectors already. packed_matmul():
// linear layers of many rows, whatever the dtype of W; widening W is a part of packing it.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "core/convert.hpp"
#include "core/threads.hpp"
#include "ops/cpu/matmul.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/sgemm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/load-inl.hpp"

namespace xlstm::ops::cpu {
#ifndef XLSTM_OPS_CPU_SGEMM_ARGS
#define XLSTM_OPS_CPU_SGEMM_ARGS
namespace {

// op(A)[i][p] = a[i * row + p * column], and so on for B.
struct Operand {
  const float* data;
  std::int64_t row, column;
};
struct SgemmArgs {
  std::int64_t m, n, k;
  float alpha;
  Operand a, b;
  float beta;
  const float* from;  // what beta multiplies, rows ldc apart as those of c
  float* c;
  std::int64_t ldc;
};

// sgemm() cuts K so that a panel of B stays in the first-level cache while all rows of A pass it.
constexpr std::int64_t kDepth = 256;
// packed_matmul() cuts K and the rows of x so that this much of x stays in the second-level cache
// while all panels of W pass it; deeper than kDepth because every cut reads and writes y once more.
constexpr std::int64_t kPackedDepth = 512;
constexpr std::int64_t kPackedRows = 384;

// packed_matmul() between its two phases: x in tiles of rows, each [K][rows of a tile].
struct PackedArgs {
  Tensor x, w, y;
  bool accumulate;
  float* packed;
};

}  // namespace
#endif
}  // namespace xlstm::ops::cpu

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// A tile of C is kRows rows of two vectors: 24 of 32 registers, or 12 of 16.
constexpr int kRows = HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON ? 12 : 6;
constexpr int kMaxColumns = 2 * HWY_MAX_BYTES / static_cast<int>(sizeof(float));

struct TileArgs {
  Operand a;           // at the tile's first row and the panel's first depth
  const float* b;      // two vectors wide
  std::int64_t b_row;  // elements between its rows
  std::int64_t k;
  float alpha, beta;
  const float* from;  // as in SgemmArgs
  float* c;
  std::int64_t ldc;
};

template <int R>
void tile(const TileArgs& t) {
  const D d;
  const std::size_t lanes = hn::Lanes(d);
  V sum[2 * R];
  HWY_UNROLL(24)
  for (int j = 0; j < 2 * R; ++j) sum[j] = hn::Zero(d);
  const float* HWY_RESTRICT b = t.b;
  const float* HWY_RESTRICT a = t.a.data;
  HWY_UNROLL(12)
  for (int r = 0; r < R; ++r) {  // C is needed last, but comes from furthest away
    __builtin_prefetch(t.c + r * t.ldc, 1);
    __builtin_prefetch(t.c + r * t.ldc + lanes, 1);
  }
  for (std::int64_t p = 0; p < t.k; ++p) {
    const V b0 = hn::LoadU(d, b);
    const V b1 = hn::LoadU(d, b + lanes);
    b += t.b_row;
    HWY_UNROLL(12)
    for (int r = 0; r < R; ++r) {
      const V ar = hn::Set(d, a[r * t.a.row]);
      sum[2 * r] = hn::MulAdd(ar, b0, sum[2 * r]);
      sum[2 * r + 1] = hn::MulAdd(ar, b1, sum[2 * r + 1]);
    }
    a += t.a.column;
  }
  const V alpha = hn::Set(d, t.alpha);
  const V beta = hn::Set(d, t.beta);
  HWY_UNROLL(12)
  for (int r = 0; r < R; ++r) {
    float* c = t.c + r * t.ldc;
    V c0 = hn::Mul(alpha, sum[2 * r]);
    V c1 = hn::Mul(alpha, sum[2 * r + 1]);
    if (t.beta != 0.0F) {
      const float* from = t.from + r * t.ldc;
      c0 = hn::MulAdd(beta, hn::LoadU(d, from), c0);
      c1 = hn::MulAdd(beta, hn::LoadU(d, from + lanes), c1);
    }
    hn::StoreU(c0, d, c);
    hn::StoreU(c1, d, c + lanes);
  }
}

HWY_INLINE float load_one(const float* from) { return *from; }
HWY_INLINE float load_one(const hwy::bfloat16_t* from) {
  return bf16_to_f32(*reinterpret_cast<const std::uint16_t*>(from));
}
HWY_INLINE float load_one(const hwy::float16_t* from) {
  return f16_to_f32(*reinterpret_cast<const std::uint16_t*>(from));
}

using Tile = void (*)(const TileArgs&);
constexpr Tile kTiles[12] = {
    tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
    tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>,
#endif
};

// k rows of as many columns as `from` has rows, `width` apart and zero past them: the transpose of
// rows `stride` apart.
template <class From>
void pack_rows(const From* from, std::int64_t stride, std::int64_t rows, std::int64_t k,
               std::int64_t width, float* HWY_RESTRICT out) {
  std::int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  for (; j + 4 <= rows; j += 4) {
    const From* HWY_RESTRICT row = from + j * stride;
    std::int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
      const auto r0 = load_as_f32(d, row + p);
      const auto r1 = load_as_f32(d, row + stride + p);
      const auto r2 = load_as_f32(d, row + 2 * stride + p);
      const auto r3 = load_as_f32(d, row + 3 * stride + p);
      const auto lower01 = hn::InterleaveLower(d, r0, r1);
      const auto lower23 = hn::InterleaveLower(d, r2, r3);
      const auto upper01 = hn::InterleaveUpper(d, r0, r1);
      const auto upper23 = hn::InterleaveUpper(d, r2, r3);
      float* to = out + p * width + j;
      hn::StoreU(hn::ConcatLowerLower(d, lower23, lower01), d, to);
      hn::StoreU(hn::ConcatUpperUpper(d, lower23, lower01), d, to + width);
      hn::StoreU(hn::ConcatLowerLower(d, upper23, upper01), d, to + 2 * width);
      hn::StoreU(hn::ConcatUpperUpper(d, upper23, upper01), d, to + 3 * width);
    }
    for (; p < k; ++p)
      for (std::int64_t i = 0; i < 4; ++i) out[p * width + j + i] = load_one(row + i * stride + p);
  }
#endif
  for (std::int64_t p = 0; p < k; ++p) {
    for (std::int64_t i = j; i < rows; ++i) out[p * width + i] = load_one(from + i * stride + p);
    for (std::int64_t i = rows; i < width; ++i) out[p * width + i] = 0.0F;
  }
}

void pack_rows(const Tensor& t, std::int64_t row, std::int64_t rows, std::int64_t column,
               std::int64_t k, std::int64_t width, float* out) {
  const std::int64_t at = row * t.row_stride() + column;
  if (t.dtype == DType::f32)
    pack_rows(t.as<float>() + at, t.row_stride(), rows, k, width, out);
  else if (t.dtype == DType::bf16)
    pack_rows(t.as<hwy::bfloat16_t>() + at, t.row_stride(), rows, k, width, out);
  else
    pack_rows(t.as<hwy::float16_t>() + at, t.row_stride(), rows, k, width, out);
}

// A panel of B: k rows, `width` apart and zero past `columns`.
void pack(const Operand& b, std::int64_t k, std::int64_t columns, std::int64_t width,
          float* HWY_RESTRICT out) {
  if (b.row == 1) {
    pack_rows(b.data, b.column, columns, k, width, out);
    return;
  }
  for (std::int64_t p = 0; p < k; ++p) {
    const float* from = b.data + p * b.row;
    for (std::int64_t i = 0; i < columns; ++i) out[p * width + i] = from[i * b.column];
    for (std::int64_t i = columns; i < width; ++i) out[p * width + i] = 0.0F;
  }
}

// One tile, through a buffer if it sticks out of C on the right.
void bordered_tile(TileArgs t, std::int64_t rows, std::int64_t columns, std::int64_t width) {
  if (columns == width) {
    kTiles[rows - 1](t);
    return;
  }
  HWY_ALIGN float border[kRows * kMaxColumns];
  float* c = t.c;
  const std::int64_t ldc = t.ldc;
  if (t.beta != 0.0F)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t q = 0; q < width; ++q)
        border[r * width + q] = q < columns ? t.from[r * ldc + q] : 0.0F;
  t.from = t.c = border;
  t.ldc = width;
  kTiles[rows - 1](t);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t q = 0; q < columns; ++q) c[r * ldc + q] = border[r * width + q];
}

void sgemm_body(const SgemmArgs& g) {
  const auto width = static_cast<std::int64_t>(2 * hn::Lanes(D()));
  const std::int64_t tiles = (g.m + kRows - 1) / kRows;
  HWY_ALIGN float panel[kDepth * kMaxColumns];
  for (std::int64_t j = 0; j < g.n; j += width) {
    const std::int64_t columns = std::min(width, g.n - j);
    for (std::int64_t p = 0; p < g.k; p += kDepth) {
      const std::int64_t depth = std::min(kDepth, g.k - p);
      const Operand b{g.b.data + p * g.b.row + j * g.b.column, g.b.row, g.b.column};
      const bool packed = b.column != 1 || columns < width;
      if (packed) pack(b, depth, columns, width, panel);
      for (std::int64_t i = 0; i < tiles; ++i) {
        const std::int64_t row = g.m * i / tiles;
        bordered_tile({.a = {g.a.data + row * g.a.row + p * g.a.column, g.a.row, g.a.column},
                       .b = packed ? panel : b.data,
                       .b_row = packed ? width : b.row,
                       .k = depth,
                       .alpha = g.alpha,
                       .beta = p == 0 ? g.beta : 1.0F,
                       .from = (p == 0 ? g.from : g.c) + row * g.ldc + j,
                       .c = g.c + row * g.ldc + j,
                       .ldc = g.ldc},
                      g.m * (i + 1) / tiles - row, columns, width);
      }
    }
  }
}

std::int64_t tile_rows() { return kRows; }

// Phase 1 of packed_matmul(): tile `i` of `tiles`.
void pack_x(const PackedArgs& a, std::int64_t i, std::int64_t tiles) {
  const std::int64_t k = a.x.dim(1);
  const std::int64_t row = a.x.dim(0) * i / tiles;
  pack_rows(a.x, row, a.x.dim(0) * (i + 1) / tiles - row, 0, k, kRows, a.packed + i * k * kRows);
}

// Asks for the `part`th of `parts` shares of `rows` rows of `bytes` bytes.
void prefetch_share(const char* from, std::int64_t stride, std::int64_t rows, std::int64_t bytes,
                    std::int64_t part, std::int64_t parts) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t lines = (bytes + kLine - 1) / kLine;
  for (std::int64_t i = rows * lines * part / parts; i < rows * lines * (part + 1) / parts; ++i)
    __builtin_prefetch(from + i / lines * stride + i % lines * kLine, 0, 2);
}

// Phase 2: columns [begin, end) of y.
void multiply_packed(const PackedArgs& a, std::int64_t tiles, std::int64_t begin,
                     std::int64_t end) {
  const auto width = static_cast<std::int64_t>(2 * hn::Lanes(D()));
  const std::int64_t m = a.x.dim(0);
  const std::int64_t k = a.x.dim(1);
  const auto w_size = static_cast<std::int64_t>(size_of(a.w.dtype));
  constexpr std::int64_t kBlockTiles = kPackedRows / kRows;
  HWY_ALIGN float panel[kPackedDepth * kMaxColumns];
  for (std::int64_t block = 0; block < tiles; block += kBlockTiles) {
    const std::int64_t block_tiles = std::min(kBlockTiles, tiles - block);
    for (std::int64_t p = 0; p < k; p += kPackedDepth) {
      const std::int64_t depth = std::min(kPackedDepth, k - p);
      for (std::int64_t j = begin; j < end; j += width) {
        const std::int64_t columns = std::min(width, end - j);
        pack_rows(a.w, j, columns, p, depth, width, panel);
        // The next panel of W comes from memory while this one is multiplied.
        const std::int64_t next = std::min(j + width, end);
        const Tensor next_w = a.w.rows(next, std::min(width, end - next)).cols(p, depth);
        for (std::int64_t i = 0; i < block_tiles; ++i) {
          prefetch_share(static_cast<const char*>(next_w.data), next_w.row_stride() * w_size,
                         next_w.dim(0), depth * w_size, i, block_tiles);
          const std::int64_t row = m * (block + i) / tiles;
          bordered_tile({.a = {a.packed + ((block + i) * k + p) * kRows, 1, kRows},
                         .b = panel,
                         .b_row = width,
                         .k = depth,
                         .alpha = 1.0F,
                         .beta = p > 0 || a.accumulate ? 1.0F : 0.0F,
                         .from = a.y.row<float>(row) + j,
                         .c = a.y.row<float>(row) + j,
                         .ldc = a.y.row_stride()},
                        m * (block + i + 1) / tiles - row, columns, width);
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {
namespace {
HWY_EXPORT(sgemm_body);
HWY_EXPORT(tile_rows);
HWY_EXPORT(pack_x);
HWY_EXPORT(multiply_packed);
}  // namespace

void sgemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
           const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
           std::int64_t ldc) {
  sgemm_from(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, c, ldc);
}

void sgemm_from(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
                const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                const float* from, float* c, std::int64_t ldc) {
  if (k == 0) {  // an empty sum
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        c[i * ldc + j] = beta == 0.0F ? 0.0F : beta * from[i * ldc + j];
    return;
  }
  HWY_DYNAMIC_DISPATCH(sgemm_body)
  ({.m = m,
    .n = n,
    .k = k,
    .alpha = alpha,
    .a = {a, ta ? 1 : lda, ta ? lda : 1},
    .b = {b, tb ? 1 : ldb, tb ? ldb : 1},
    .beta = beta,
    .from = from,
    .c = c,
    .ldc = ldc});
}

void threaded_gemm(const GemmArgs& args, int threads) {
  constexpr std::int64_t kTileRows = 192, kTileColumns = 128;
  const std::int64_t m = args.c.dim(0), n = args.c.dim(1);
  const std::int64_t across = (n + kTileColumns - 1) / kTileColumns;
  const std::int64_t down = (m + kTileRows - 1) / kTileRows;
  parallel_for(threads, down * across, [&](std::int64_t tile) {
    const std::int64_t i = tile / across * kTileRows, j = tile % across * kTileColumns;
    sgemm(args.transpose_a, false, std::min(kTileRows, m - i), std::min(kTileColumns, n - j),
          args.b.dim(0), 1.0F, args.transpose_a ? args.a.as<float>() + i : args.a.row<float>(i),
          args.a.row_stride(), args.b.as<float>() + j, args.b.row_stride(),
          args.accumulate ? 1.0F : 0.0F, args.c.row<float>(i) + j, args.c.row_stride());
  });
}

std::size_t packed_matmul_workspace(std::int64_t m, std::int64_t k) {
  const std::int64_t most = HWY_DYNAMIC_DISPATCH(tile_rows)();
  return static_cast<std::size_t>((m + most - 1) / most * most * k) * sizeof(float);
}

void packed_matmul(const MatmulArgs& args, int threads, std::byte* workspace) {
  const std::int64_t most = HWY_DYNAMIC_DISPATCH(tile_rows)();
  const std::int64_t tiles = (args.x.dim(0) + most - 1) / most;
  const PackedArgs packed{args.x, args.w, args.y, args.accumulate,
                          reinterpret_cast<float*>(workspace)};
  parallel_for(threads, tiles, [&](std::int64_t i) {
    HWY_DYNAMIC_DISPATCH(pack_x)(packed, i, tiles);
  });
  parallel_ranges(threads, args.w.dim(0), 32, [&](Range range) {
    HWY_DYNAMIC_DISPATCH(multiply_packed)(packed, tiles, range.begin, range.end);
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
