#include "ops/cpu/few_rows.hpp"

#include <algorithm>
#include <cstring>

#include "core/check.hpp"
#include "core/cpu_features.hpp"
#include "ops/cpu/few_rows_kernels.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/few_rows.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/load-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Sums of a tile, vectors of x and one of W stay in registers: AVX-512 and NEON have 32, others 16.
constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON;
constexpr int kRows = kManyRegisters ? 8 : 4;
constexpr int kColumns = kManyRegisters ? 3 : 2;
static_assert(kRows <= kMaxTileRows && kColumns <= kMaxTileColumns);

// One vector of the last n < Lanes weights, zero beyond.
template <class W>
HWY_INLINE V load_last_weights(const W* w, std::int64_t n) {
  HWY_ALIGN W last[kMaxLanes] = {};
  std::memcpy(last, w, static_cast<std::size_t>(n) * sizeof(W));
  return load_as_f32(D(), last);
}

#if HWY_TARGET != HWY_SCALAR
// Adds the upper half of a vector to its lower half until 4 lanes are left.
template <class DV, class VV>
HWY_INLINE auto fold([[maybe_unused]] DV dv, VV v) {
  if constexpr (hn::MaxLanes(DV()) > 4) {
    const hn::Half<DV> half;
    return fold(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    return v;
  }
}
#endif

// The sums over the lanes of R (4 or 1) vectors, stored at y[r * step]; the same order for any R.
template <int R>
HWY_INLINE void store_sums(const V* HWY_RESTRICT sum, bool accumulate, float* HWY_RESTRICT y,
                           std::int64_t step) {
  HWY_ALIGN float dots[4];
#if HWY_TARGET == HWY_SCALAR
  for (int r = 0; r < R; ++r) dots[r] = hn::GetLane(sum[r]);
#else
  const hn::FixedTag<float, 4> d;
  const auto a = fold(D(), sum[0]);
  const auto b = R == 1 ? a : fold(D(), sum[R == 1 ? 0 : 1]);
  const auto c = R == 1 ? a : fold(D(), sum[R == 1 ? 0 : 2]);
  const auto e = R == 1 ? a : fold(D(), sum[R == 1 ? 0 : 3]);
  const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  hn::Store(hn::Add(hn::ConcatLowerLower(d, ce, ab), hn::ConcatUpperUpper(d, ce, ab)), d, dots);
#endif
  for (int r = 0; r < R; ++r) y[r * step] = accumulate ? y[r * step] + dots[r] : dots[r];
}

// R rows of W with C rows of x. Every loop over the arrays of vectors is unrolled completely: only
// then do they stay in registers.
template <int R, int C, class W>
void tile(const TileArgs& a) {
  const D d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const W* HWY_RESTRICT w[R];
  const float* HWY_RESTRICT x[C];
  HWY_UNROLL(8)
  for (int r = 0; r < R; ++r) w[r] = static_cast<const W*>(a.w) + r * a.w_stride;
  HWY_UNROLL(8)
  for (int c = 0; c < C; ++c) x[c] = static_cast<const float*>(a.x) + c * a.x_stride;

  V sum[C * R];
  HWY_UNROLL(24)
  for (int j = 0; j < C * R; ++j)
    sum[j] = a.first ? hn::Zero(d) : hn::LoadU(d, a.sums + j * kMaxLanes);
  std::int64_t i = 0;
  std::int64_t prefetch = a.prefetch_begin;
  for (; i + lanes <= a.k; i += lanes) {
    if (prefetch < a.prefetch_end) {
      if (prefetch % kCacheLine == 0) {
        HWY_UNROLL(8)
        for (int r = 0; r < R; ++r)
          __builtin_prefetch(reinterpret_cast<const char*>(w[r]) + kPrefetchAhead + prefetch, 0, 2);
      }
      prefetch += lanes * static_cast<std::int64_t>(sizeof(W));
    }
    V xv[C];
    HWY_UNROLL(8)
    for (int c = 0; c < C; ++c) xv[c] = hn::LoadU(d, x[c] + i);
    HWY_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      const V wv = load_as_f32(d, w[r] + i);
      HWY_UNROLL(8)
      for (int c = 0; c < C; ++c) sum[c * R + r] = hn::MulAdd(wv, xv[c], sum[c * R + r]);
    }
  }
  if (i < a.k) {
    V wv[R];
    HWY_UNROLL(8)
    for (int r = 0; r < R; ++r) wv[r] = load_last_weights(w[r] + i, a.k - i);
    HWY_UNROLL(24)
    for (int j = 0; j < C * R; ++j)
      sum[j] = hn::MulAdd(wv[j % R], hn::LoadU(d, x[j / R] + i), sum[j]);
  }
  if (a.last) {
    HWY_UNROLL(8)
    for (int c = 0; c < C; ++c) HWY_UNROLL(8)
    for (int r = 0; r < R; r += 4)
      store_sums<R == 1 ? 1 : 4>(sum + c * R + r, a.accumulate, a.y + c * a.y_stride + r * a.y_step,
                                 a.y_step);
  } else {
    HWY_UNROLL(24)
    for (int j = 0; j < C * R; ++j) hn::StoreU(sum[j], d, a.sums + j * kMaxLanes);
  }
}

template <class W, int R>
constexpr std::array<Tile, kMaxTileColumns> tiles() {
  if constexpr (kColumns == 2)
    return {tile<R, 1, W>, tile<R, 2, W>};
  else
    return {tile<R, 1, W>, tile<R, 2, W>, tile<R, 3, W>};
}

template <class W>
const TileTable* table() {
  static const TileTable tiles_of_w{kRows, kColumns, {tiles<W, kRows>(), tiles<W, 1>()}};
  return &tiles_of_w;
}

const TileTable* f32_tiles() { return table<float>(); }
const TileTable* bf16_tiles() { return table<hwy::bfloat16_t>(); }
const TileTable* f16_tiles() { return table<hwy::float16_t>(); }

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {
namespace {

HWY_EXPORT(f32_tiles);
HWY_EXPORT(bf16_tiles);
HWY_EXPORT(f16_tiles);

// With more rows of x than one tile takes, pieces of W of this many bytes a row go through all
// tiles while they are in the first-level cache.
constexpr std::int64_t kPieceBytes = 2048;

const TileTable& tiles_for(const FewRowsArgs& args) {
  if (args.x.dtype == DType::bf16) return bf16_dot_tiles();
  switch (args.w.dtype) {
    case DType::bf16: return *HWY_DYNAMIC_DISPATCH(bf16_tiles)();
    case DType::f16: return *HWY_DYNAMIC_DISPATCH(f16_tiles)();
    default: return *HWY_DYNAMIC_DISPATCH(f32_tiles)();
  }
}

}  // namespace

bool few_rows_takes_bf16(DType w) { return w == DType::bf16 && active_isa() == Isa::avx512_bf16; }

void few_rows(const FewRowsArgs& args) {
  const std::int64_t t = args.x.dim(0);
  const std::int64_t n = args.w.dim(0);
  const std::int64_t k = args.w.dim(1);
  XLSTM_ASSERT(t >= 1 && t <= kFewRows);
  const auto x_size = static_cast<std::int64_t>(size_of(args.x.dtype));
  const auto w_size = static_cast<std::int64_t>(size_of(args.w.dtype));
  const auto* x = static_cast<const char*>(args.x.data);
  const auto* w = static_cast<const char*>(args.w.data);
  const std::int64_t w_row_bytes = args.w.row_stride() * w_size;

  const TileTable& table = tiles_for(args);
  const std::int64_t tiles = (t + table.columns - 1) / table.columns;
  const std::int64_t piece = tiles == 1 ? k : kPieceBytes / w_size;

  HWY_ALIGN float sums[kFewRows * kMaxTileRows * kMaxLanes];
  // Rows first, first + step, ... of W: all that a tile takes, or one.
  auto multiply = [&](std::int64_t first, std::int64_t step, bool one) {
    const auto& row_tiles = table.tiles[one ? 1 : 0];
    for (std::int64_t at = 0; at < k; at += piece) {
      const std::int64_t length = std::min(piece, k - at);
      const std::int64_t lines = (length * w_size + kCacheLine - 1) / kCacheLine;
      for (std::int64_t i = 0; i < tiles; ++i) {
        const std::int64_t begin = t * i / tiles;
        const std::int64_t columns = t * (i + 1) / tiles - begin;
        row_tiles[static_cast<std::size_t>(columns - 1)](
            {.w = w + first * w_row_bytes + at * w_size,
             .w_stride = step * args.w.row_stride(),
             .x = x + (begin * args.x.row_stride() + at) * x_size,
             .x_stride = args.x.row_stride(),
             .k = length,
             .sums = sums + begin * kMaxTileRows * kMaxLanes,
             .first = at == 0,
             .last = at + piece >= k,
             .y = args.y.row<float>(begin) + first,
             .y_stride = args.y.row_stride(),
             .y_step = step,
             .accumulate = args.accumulate,
             .prefetch_begin = lines * i / tiles * kCacheLine,
             .prefetch_end = lines * (i + 1) / tiles * kCacheLine});
      }
    }
  };
  // Each row of a tile comes from its own part of W, so that it continues where the tile before
  // ended: a few long streams from memory instead of many short ones.
  const std::int64_t part = n / table.rows;
  for (std::int64_t row = 0; row < part; ++row) multiply(row, part, false);
  for (std::int64_t row = part * table.rows; row < n; ++row) multiply(row, 1, true);
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
