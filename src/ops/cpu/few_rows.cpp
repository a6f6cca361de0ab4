#include "ops/cpu/few_rows.hpp"

#include <cstring>

#include "core/check.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/few_rows.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// One vector of weights as float32.
HWY_INLINE V load_weights(const float* w) { return hn::LoadU(D(), w); }
HWY_INLINE V load_weights(const hwy::bfloat16_t* w) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(w));
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
HWY_INLINE V load_weights(const hwy::float16_t* w) {
  return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::float16_t, D>(), w));
}

// R rows of W with C rows of x.
template <int R, int C, class W>
void tile(const FewRowsArgs& a, std::int64_t row, std::int64_t column) {
  const D d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t k = a.w.dim(1);
  const W* HWY_RESTRICT w[R];
  const float* HWY_RESTRICT x[C];
  for (int r = 0; r < R; ++r) w[r] = static_cast<const W*>(a.w.data) + (row + r) * a.w.row_stride();
  for (int c = 0; c < C; ++c) x[c] = a.x + (column + c) * a.x_stride;

  V sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= k; i += lanes) {
    V xv[C];
    for (int c = 0; c < C; ++c) xv[c] = hn::LoadU(d, x[c] + i);
    for (int r = 0; r < R; ++r) {
      const V wv = load_weights(w[r] + i);
      for (int c = 0; c < C; ++c) sum[r][c] = hn::MulAdd(wv, xv[c], sum[r][c]);
    }
  }
  if (i < k) {
    HWY_ALIGN W last[HWY_MAX_BYTES / sizeof(float)] = {};
    for (int r = 0; r < R; ++r) {
      std::memcpy(last, w[r] + i, static_cast<std::size_t>(k - i) * sizeof(W));
      const V wv = load_weights(last);
      for (int c = 0; c < C; ++c) sum[r][c] = hn::MulAdd(wv, hn::LoadU(d, x[c] + i), sum[r][c]);
    }
  }
  for (int c = 0; c < C; ++c) {
    float* y = a.y + (column + c) * a.y_stride + row;
    for (int r = 0; r < R; ++r) {
      const float dot = hn::GetLane(hn::SumOfLanes(d, sum[r][c]));
      y[r] = a.accumulate ? y[r] + dot : dot;
    }
  }
}

template <int R, class W>
void row_block(const FewRowsArgs& a, std::int64_t row) {
  std::int64_t column = 0;
  for (; column + 4 <= a.t; column += 4) tile<R, 4, W>(a, row, column);
  for (; column < a.t; ++column) tile<R, 1, W>(a, row, column);
}

template <class W>
void all_rows(const FewRowsArgs& a) {
  const std::int64_t n = a.w.dim(0);
  std::int64_t row = 0;
  for (; row + 4 <= n; row += 4) row_block<4, W>(a, row);
  for (; row < n; ++row) row_block<1, W>(a, row);
}

void few_rows_f32(const FewRowsArgs& a) { all_rows<float>(a); }
void few_rows_bf16(const FewRowsArgs& a) { all_rows<hwy::bfloat16_t>(a); }
void few_rows_f16(const FewRowsArgs& a) { all_rows<hwy::float16_t>(a); }

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(few_rows_f32);
HWY_EXPORT(few_rows_bf16);
HWY_EXPORT(few_rows_f16);

void few_rows(const FewRowsArgs& args) {
  switch (args.w.dtype) {
    case DType::f32: HWY_DYNAMIC_DISPATCH(few_rows_f32)(args); return;
    case DType::bf16: HWY_DYNAMIC_DISPATCH(few_rows_bf16)(args); return;
    case DType::f16: HWY_DYNAMIC_DISPATCH(few_rows_f16)(args); return;
    default: XLSTM_ASSERT(is_weight_dtype(args.w.dtype));
  }
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
