#include <algorithm>

#include "core/threads.hpp"
#include "ops/cpu/linear_plan.hpp"
#include "ops/cpu/matmul.hpp"
#include "ops/cpu/widen.hpp"
#include "ops/linear.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_backward.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

/// Rows [begin, end) rounded to bf16.
void round_rows(const Tensor& from, const Tensor& to, std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(from.dim(1));
  for (std::int64_t t = begin; t < end; ++t) {
    const float* row = from.row<float>(t);
    const ResultRow result(to, t);
    for (std::size_t j = 0; j < width; j += lanes())
      result.put(load_up_to(row + j, width - j), j, width - j);
  }
}

/// sums[j] += the sum of column j, for columns [begin, end): in blocks of rows, so that the error
/// of a sum grows with their number and not with that of the rows.
void add_column_sums(const Tensor& matrix, float* sums, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kBlock = 64;
  const std::int64_t rows = matrix.dim(0), step = static_cast<std::int64_t>(lanes());
  for (std::int64_t j = begin; j < end; j += step) {
    const auto n = static_cast<std::size_t>(end - j);
    VF total = hn::Zero(DF());
    for (std::int64_t t = 0; t < rows; t += kBlock) {
      VF sum = hn::Zero(DF());
      for (std::int64_t r = t; r < std::min(t + kBlock, rows); ++r)
        sum = hn::Add(sum, load_up_to(matrix.row<float>(r) + j, n));
      total = hn::Add(total, sum);
    }
    store_up_to(hn::Add(load_up_to(sums + j, n), total), sums + j, n);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(round_rows);
HWY_EXPORT(add_column_sums);

LinearBackwardPlan::LinearBackwardPlan(const LinearBackwardArgs& a) {
  const bool all_bf16 =
      (a.d_w.empty() || a.x.dtype == DType::bf16) &&
      std::all_of(a.w.begin(), a.w.end(), [](const Tensor& w) { return w.dtype == DType::bf16; });
  bf16 = all_bf16 && library_has(DType::bf16, DType::bf16);
  if (bf16) {
    d_y_bytes = static_cast<std::size_t>(a.d_y.count()) * size_of(DType::bf16);
    return;
  }
  if (!a.d_w.empty() && a.x.dtype != DType::f32)
    x_bytes = static_cast<std::size_t>(a.x.count()) * sizeof(float);
  if (!a.d_x) return;
  for (const Tensor& w : a.w)
    if (w.dtype != DType::f32)
      w_bytes = std::max(w_bytes, static_cast<std::size_t>(w.count()) * sizeof(float));
}

std::size_t LinearBackwardPlan::bytes() const {
  constexpr std::size_t kBetween = 256;  // the arena aligns each
  return d_y_bytes + x_bytes + w_bytes + 2 * kBetween;
}

namespace {

/// `from` in f32: itself, or a copy in `memory`.
Tensor as_f32(const Tensor& from, std::byte* memory, int threads) {
  if (from.dtype == DType::f32) return from;
  const Tensor copy = Tensor::dense(memory, DType::f32, {from.dim(0), from.dim(1)}, from.device);
  parallel_ranges(threads, from.dim(0), 16, [&](Range rows) {
    widen(from.rows(rows.begin, rows.end - rows.begin),
          copy.rows(rows.begin, rows.end - rows.begin));
  });
  return copy;
}

void multiply(const GemmArgs& product, int threads) {
  if (library_has(product.a.dtype, product.b.dtype))
    library_gemm(product, threads);
  else
    threaded_gemm(product, threads);
}

}  // namespace

void linear_backward(Context& context, const LinearBackwardArgs& a) {
  const std::int64_t tokens = a.d_y.dim(0);
  if (tokens == 0) return;
  const int threads = context.threads();
  ArenaScope scope(context.arena());
  const LinearBackwardPlan plan(a);
  const auto take = [&](std::size_t bytes) {
    return bytes == 0 ? nullptr : context.arena().take(bytes);
  };
  Tensor d_y = a.d_y;
  if (plan.bf16) {
    d_y = Tensor::dense(take(plan.d_y_bytes), DType::bf16, {tokens, a.d_y.dim(1)}, a.d_y.device);
    parallel_ranges(threads, tokens, 1 + (1 << 15) / (1 + a.d_y.dim(1)), [&](Range rows) {
      HWY_DYNAMIC_DISPATCH(round_rows)(a.d_y, d_y, rows.begin, rows.end);
    });
  }
  Tensor x = a.x;
  if (plan.x_bytes != 0) x = as_f32(a.x, take(plan.x_bytes), threads);
  std::byte* w_memory = take(plan.w_bytes);

  std::int64_t first = 0;
  for (std::size_t i = 0; i < a.w.size(); ++i) {
    const std::int64_t outputs = a.w[i].dim(0);
    const Tensor d_y_i = d_y.cols(first, outputs);
    if (a.d_x)
      multiply({.a = d_y_i,
                .b = plan.bf16 ? a.w[i] : as_f32(a.w[i], w_memory, threads),
                .c = a.d_x,
                .transpose_a = false,
                .accumulate = a.accumulate || i > 0},
               threads);
    if (!a.d_w.empty())
      multiply({.a = d_y_i, .b = x, .c = a.d_w[i], .transpose_a = true, .accumulate = true},
               threads);
    if (!a.d_b.empty()) {
      const Tensor columns = a.d_y.cols(first, outputs);
      parallel_ranges(threads, outputs, 16 + (1 << 15) / tokens / 16 * 16, [&](Range range) {
        HWY_DYNAMIC_DISPATCH(add_column_sums)
        (columns, a.d_b[i].as<float>(), range.begin, range.end);
      });
    }
    first += outputs;
  }
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
