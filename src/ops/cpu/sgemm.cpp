// Products of float32 matrices of any size, best for the small ones of the mLSTM cell: no packing
// of A at all, and of B only where its columns are not vectors already.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "core/threads.hpp"
#include "ops/cpu/matmul.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/sgemm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

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
  float* c;
  std::int64_t ldc;
};

// Depth of the panel of B that stays in the first-level cache while all rows of A pass it.
constexpr std::int64_t kDepth = 256;

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
      c0 = hn::MulAdd(beta, hn::LoadU(d, c), c0);
      c1 = hn::MulAdd(beta, hn::LoadU(d, c + lanes), c1);
    }
    hn::StoreU(c0, d, c);
    hn::StoreU(c1, d, c + lanes);
  }
}

using Tile = void (*)(const TileArgs&);
constexpr Tile kTiles[12] = {
    tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON
    tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>,
#endif
};

// k rows of `columns` columns of B, rows `width` apart and zero past `columns`.
void pack(const Operand& b, std::int64_t k, std::int64_t columns, std::int64_t width,
          float* HWY_RESTRICT out) {
  std::int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  if (b.row == 1) {  // columns are contiguous: transpose blocks of 4 x 4
    const hn::FixedTag<float, 4> d;
    for (; j + 4 <= columns; j += 4) {
      const float* HWY_RESTRICT from = b.data + j * b.column;
      std::int64_t p = 0;
      for (; p + 4 <= k; p += 4) {
        const auto c0 = hn::LoadU(d, from + p);
        const auto c1 = hn::LoadU(d, from + b.column + p);
        const auto c2 = hn::LoadU(d, from + 2 * b.column + p);
        const auto c3 = hn::LoadU(d, from + 3 * b.column + p);
        const auto lower01 = hn::InterleaveLower(d, c0, c1);
        const auto lower23 = hn::InterleaveLower(d, c2, c3);
        const auto upper01 = hn::InterleaveUpper(d, c0, c1);
        const auto upper23 = hn::InterleaveUpper(d, c2, c3);
        float* to = out + p * width + j;
        hn::StoreU(hn::ConcatLowerLower(d, lower23, lower01), d, to);
        hn::StoreU(hn::ConcatUpperUpper(d, lower23, lower01), d, to + width);
        hn::StoreU(hn::ConcatLowerLower(d, upper23, upper01), d, to + 2 * width);
        hn::StoreU(hn::ConcatUpperUpper(d, upper23, upper01), d, to + 3 * width);
      }
      for (; p < k; ++p)
        for (std::int64_t i = 0; i < 4; ++i) out[p * width + j + i] = from[i * b.column + p];
    }
  }
#endif
  for (std::int64_t p = 0; p < k; ++p) {
    const float* from = b.data + p * b.row;
    for (std::int64_t i = j; i < columns; ++i) out[p * width + i] = from[i * b.column];
    for (std::int64_t i = columns; i < width; ++i) out[p * width + i] = 0.0F;
  }
}

void sgemm_body(const SgemmArgs& g) {
  const auto width = static_cast<std::int64_t>(2 * hn::Lanes(D()));
  const std::int64_t tiles = (g.m + kRows - 1) / kRows;
  HWY_ALIGN float panel[kDepth * kMaxColumns];
  HWY_ALIGN float border[kRows * kMaxColumns];
  for (std::int64_t j = 0; j < g.n; j += width) {
    const std::int64_t columns = std::min(width, g.n - j);
    for (std::int64_t p = 0; p < g.k; p += kDepth) {
      const std::int64_t depth = std::min(kDepth, g.k - p);
      const Operand b{g.b.data + p * g.b.row + j * g.b.column, g.b.row, g.b.column};
      const bool packed = b.column != 1 || columns < width;
      if (packed) pack(b, depth, columns, width, panel);
      const float beta = p == 0 ? g.beta : 1.0F;
      for (std::int64_t i = 0; i < tiles; ++i) {
        const std::int64_t row = g.m * i / tiles;
        const std::int64_t rows = g.m * (i + 1) / tiles - row;
        TileArgs t{.a = {g.a.data + row * g.a.row + p * g.a.column, g.a.row, g.a.column},
                   .b = packed ? panel : b.data,
                   .b_row = packed ? width : b.row,
                   .k = depth,
                   .alpha = g.alpha,
                   .beta = beta,
                   .c = g.c + row * g.ldc + j,
                   .ldc = g.ldc};
        if (columns == width) {
          kTiles[rows - 1](t);
          continue;
        }
        // The right border: through a tile of full width.
        float* c = t.c;
        if (beta != 0.0F)
          for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t q = 0; q < width; ++q)
              border[r * width + q] = q < columns ? c[r * g.ldc + q] : 0.0F;
        t.c = border;
        t.ldc = width;
        kTiles[rows - 1](t);
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t q = 0; q < columns; ++q) c[r * g.ldc + q] = border[r * width + q];
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
}

void sgemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
           const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
           std::int64_t ldc) {
  if (k == 0) {  // an empty sum
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        c[i * ldc + j] = beta == 0.0F ? 0.0F : beta * c[i * ldc + j];
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
    .c = c,
    .ldc = ldc});
}

void matmul_by_sgemm(const MatmulArgs& args, int threads) {
  const Tensor& x = args.x;
  const Tensor& w = args.w;
  // Blocks of rows of W small enough to spread evenly, large enough to stay in step with x.
  constexpr std::int64_t kBlock = 64;
  const std::int64_t n = w.dim(0);
  parallel_for(threads, (n + kBlock - 1) / kBlock, [&](std::int64_t i) {
    const std::int64_t begin = i * kBlock;
    sgemm(false, true, x.dim(0), std::min(kBlock, n - begin), x.dim(1), 1.0F, x.as<float>(),
          x.row_stride(), w.row<float>(begin), w.row_stride(), args.accumulate ? 1.0F : 0.0F,
          args.y.as<float>() + begin, args.y.row_stride());
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
