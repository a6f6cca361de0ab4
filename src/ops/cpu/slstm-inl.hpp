// Products and elementary functions of the sLSTM cell, for every Highway target: include it after
// highway.h, inside no namespace. The guard below is Highway's, once per target.
#if defined(XLSTM_OPS_CPU_SLSTM_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef XLSTM_OPS_CPU_SLSTM_INL
#undef XLSTM_OPS_CPU_SLSTM_INL
#else
#define XLSTM_OPS_CPU_SLSTM_INL
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/convert.hpp"
#include "ops/cpu/load-inl.hpp"
#include "ops/cpu/simd-inl.hpp"
#include "ops/cpu/slstm_run.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Features of a unit: two vectors.
HWY_INLINE std::int64_t unit_width() { return static_cast<std::int64_t>(2 * lanes()); }

HWY_INLINE float as_float(float value) { return value; }
HWY_INLINE float as_float(bfloat16_t value) {
  std::uint16_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bf16_to_f32(bits);
}
HWY_INLINE float as_float(float16_t value) {
  std::uint16_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return f16_to_f32(bits);
}

/// Rows of the largest tile: two vectors of sums each, 24 of 32 registers or 12 of 16.
constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON ? 12 : 6;

/// Rows of A times kPanels panels [k][unit]: each sum in rising order of k, whatever the tile.
/// `shared`: all panels meet the same columns of A; else panel g meets those at a + g a_panel.
/// `resume`: the sums go on from what `out` holds.
template <int kRows, int kPanels, bool shared>
void slstm_tile(const float* a, std::int64_t a_row, std::int64_t a_panel, const float* b,
                std::int64_t k, bool resume, float* out, std::int64_t out_row) {
  const DF d;
  const auto n = static_cast<std::int64_t>(lanes());
  const std::int64_t width = 2 * n, b_panel = k * width;
  constexpr int kSums = kRows * kPanels;
  VF sum[2 * kSums];
  HWY_UNROLL(24)
  for (int i = 0; i < 2 * kSums; ++i) sum[i] = hn::Zero(d);
  if (resume) {
    HWY_UNROLL(4)
    for (int g = 0; g < kPanels; ++g) HWY_UNROLL(12)
    for (int r = 0; r < kRows; ++r) {
      sum[2 * (g * kRows + r)] = load(out + r * out_row + g * width);
      sum[2 * (g * kRows + r) + 1] = load(out + r * out_row + g * width + n);
    }
  }
  constexpr std::int64_t kAhead = 12;  // rows of a panel that come from the outer caches
  for (std::int64_t p = 0; p < k; ++p) {
    HWY_UNROLL(4)
    for (int g = 0; g < kPanels; ++g) {
      const float* at = b + g * b_panel + p * width;
      __builtin_prefetch(at + kAhead * width);
      if (width > 16) __builtin_prefetch(at + kAhead * width + 16);
      const VF b0 = load(at), b1 = load(at + n);
      HWY_UNROLL(12)
      for (int r = 0; r < kRows; ++r) {
        const VF factor = hn::Set(d, a[(shared ? 0 : g * a_panel) + r * a_row + p]);
        VF* s = sum + 2 * (g * kRows + r);
        s[0] = hn::MulAdd(factor, b0, s[0]);
        s[1] = hn::MulAdd(factor, b1, s[1]);
      }
    }
  }
  HWY_UNROLL(4)
  for (int g = 0; g < kPanels; ++g) HWY_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    store(sum[2 * (g * kRows + r)], out + r * out_row + g * width);
    store(sum[2 * (g * kRows + r) + 1], out + r * out_row + g * width + n);
  }
}

using SlstmTile = void (*)(const float*, std::int64_t, std::int64_t, const float*, std::int64_t,
                           bool, float*, std::int64_t);

/// Few rows take several panels at once, so that enough sums are under way.
constexpr int panels_at_once(int rows) {
  return 4 * rows <= kTileRows ? 4 : 2 * rows <= kTileRows ? 2 : 1;
}

template <bool shared, int... kRow>
void slstm_tiles(std::integer_sequence<int, kRow...>, std::int64_t rows, const float* a,
                 std::int64_t a_row, std::int64_t a_panel, const float* panels, std::int64_t k,
                 bool resume, float* out) {
  static constexpr SlstmTile kFew[] = {slstm_tile<kRow + 1, panels_at_once(kRow + 1), shared>...};
  static constexpr SlstmTile kMany[] = {slstm_tile<kRow + 1, 1, shared>...};
  const std::int64_t width = unit_width(), tiles = (rows + kTileRows - 1) / kTileRows;
  const int at_once = tiles > 1 ? 1 : panels_at_once(static_cast<int>(rows));
  for (std::int64_t g = 0; g < 4; g += at_once)
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
      const SlstmTile tile = tiles > 1 ? kMany[count - 1] : kFew[count - 1];
      tile(a + row * a_row + (shared ? 0 : g * a_panel), a_row, a_panel, panels + g * k * width, k,
           resume, out + row * 4 * width + g * width, 4 * width);
    }
}

/// out [rows][4][unit] = rows of A times the four panels of a unit.
template <bool shared>
void slstm_product(std::int64_t rows, const float* a, std::int64_t a_row, std::int64_t a_panel,
                   const float* panels, std::int64_t k, bool resume, float* out) {
  slstm_tiles<shared>(std::make_integer_sequence<int, kTileRows>(), rows, a, a_row, a_panel, panels,
                      k, resume, out);
}

/// `count` rows of `k` numbers become k rows of one unit, zero past `count`. Meanwhile the same
/// rows `ahead` numbers further on are asked for: the hardware does not foresee pieces of many
/// rows.
template <class T>
void pack_columns(const T* from, std::int64_t stride, std::int64_t count, std::int64_t k,
                  [[maybe_unused]] std::int64_t ahead, float* HWY_RESTRICT to) {
  const std::int64_t width = unit_width();
  [[maybe_unused]] constexpr auto kLine = static_cast<std::int64_t>(64 / sizeof(T));
  std::int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  for (; j + 4 <= count; j += 4) {
    const T* row = from + j * stride;
    if (ahead != 0)
      for (std::int64_t i = 0; i < 4; ++i)
        for (std::int64_t p = 0; p < k; p += kLine)
          __builtin_prefetch(row + i * stride + p + ahead);
    std::int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
      const auto r0 = load_as_f32(d, row + p), r1 = load_as_f32(d, row + stride + p);
      const auto r2 = load_as_f32(d, row + 2 * stride + p);
      const auto r3 = load_as_f32(d, row + 3 * stride + p);
      const auto lower01 = hn::InterleaveLower(d, r0, r1), upper01 = hn::InterleaveUpper(d, r0, r1);
      const auto lower23 = hn::InterleaveLower(d, r2, r3), upper23 = hn::InterleaveUpper(d, r2, r3);
      float* out = to + p * width + j;
      hn::StoreU(hn::ConcatLowerLower(d, lower23, lower01), d, out);
      hn::StoreU(hn::ConcatUpperUpper(d, lower23, lower01), d, out + width);
      hn::StoreU(hn::ConcatLowerLower(d, upper23, upper01), d, out + 2 * width);
      hn::StoreU(hn::ConcatUpperUpper(d, upper23, upper01), d, out + 3 * width);
    }
    for (; p < k; ++p)
      for (std::int64_t i = 0; i < 4; ++i) to[p * width + j + i] = as_float(row[i * stride + p]);
  }
#endif
  for (std::int64_t p = 0; p < k; ++p) {
    for (std::int64_t i = j; i < count; ++i) to[p * width + i] = as_float(from[i * stride + p]);
    for (std::int64_t i = count; i < width; ++i) to[p * width + i] = 0.0F;
  }
}

/// e^x for x <= 0: shorter than exp() because nothing overflows, and results that would be
/// subnormal are 0. NaN stays NaN.
HWY_INLINE VF exp_of_negative(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  const auto vanishes = hn::Lt(x, hn::Set(d, -87.0F));
  const VF shift = hn::Set(d, 0x1.8p23F);  // adding it rounds to an integer, kept in the low bits
  const VF shifted = hn::MulAdd(x, hn::Set(d, 1.44269504088896341F), shift);
  const VF n = hn::Sub(shifted, shift);
  VF r = hn::NegMulAdd(n, hn::Set(d, 0.693145751953125F), x);
  r = hn::NegMulAdd(n, hn::Set(d, 1.42860682030941723212e-6F), r);
  VF p = hn::Set(d, kExp6);
  p = hn::MulAdd(p, r, hn::Set(d, kExp5));
  p = hn::MulAdd(p, r, hn::Set(d, kExp4));
  p = hn::MulAdd(p, r, hn::Set(d, kExp3));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5F));
  p = hn::MulAdd(hn::Mul(r, r), p, r);
  p = hn::Add(p, hn::Set(d, 1.0F));
  // The integer goes straight into the exponent; a NaN has n = NaN and must not take it.
  const auto scaled = hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenElse(vanishes, hn::Zero(d), hn::Add(hn::BitCast(d, scaled), hn::Sub(x, x)));
}

/// log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)), an odd series in a number up to 1/3.
HWY_INLINE VF log1p_of_unit(VF u) {
  const DF d;
  const VF w = hn::Div(u, hn::Add(u, hn::Set(d, 2.0F)));
  const VF z = hn::Mul(w, w);
  VF p = hn::Set(d, 0x1.1edff8p-2F);  // least squares on Chebyshev nodes, relative error 5e-9
  p = hn::MulAdd(p, z, hn::Set(d, 0x1.1eba8ap-2F));
  p = hn::MulAdd(p, z, hn::Set(d, 0x1.99d246p-2F));
  p = hn::MulAdd(p, z, hn::Set(d, 0x1.5555p-1F));
  return hn::MulAdd(hn::Mul(w, z), p, hn::Add(w, w));
}

/// As tanh(), with the shorter exponential.
HWY_INLINE VF tanh_of(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0F);
  const VF a = hn::Abs(x), z = hn::Mul(x, x);
  VF p = hn::Set(d, kTanh11);
  p = hn::MulAdd(p, z, hn::Set(d, kTanh9));
  p = hn::MulAdd(p, z, hn::Set(d, kTanh7));
  p = hn::MulAdd(p, z, hn::Set(d, kTanh5));
  p = hn::MulAdd(p, z, hn::Set(d, kTanh3));
  const VF small = hn::MulAdd(hn::Mul(x, z), p, x);
  const VF e = exp_of_negative(hn::Mul(a, hn::Set(d, -2.0F)));
  const VF large = hn::Div(hn::Sub(one, e), hn::Add(one, e));
  return hn::CopySign(hn::IfThenElse(hn::Lt(a, hn::Set(d, 0.625F)), small, large), x);
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
