#include "ops/linear.hpp"

#include <algorithm>
#include <cstring>

#include "core/convert.hpp"
#include "core/threads.hpp"
#include "ops/cpu/few_rows.hpp"
#include "ops/cpu/linear_plan.hpp"
#include "ops/cpu/matmul.hpp"
#include "ops/cpu/widen.hpp"

namespace xlstm::ops::cpu {
namespace {

std::size_t bytes_of(std::int64_t count, DType dtype) {
  return static_cast<std::size_t>(count) * size_of(dtype);
}

/// Row stride of the copy of x for few_rows(): padded, and an odd number of cache lines so that the
/// same column of several rows does not fall into one set of the cache.
std::int64_t few_rows_stride(std::int64_t k, DType dtype) {
  const auto line = static_cast<std::int64_t>(64 / size_of(dtype));
  const std::int64_t lines = (k + kFewRowsPadding - 1) / kFewRowsPadding * kFewRowsPadding / line;
  return (lines | 1) * line;
}

bool few_rows_as_bf16(const LinearArgs& args) {
  return args.x.dtype == DType::bf16 &&
         std::all_of(args.w.begin(), args.w.end(),
                     [](const Tensor& w) { return few_rows_takes_bf16(w.dtype); });
}

void add_bias(const Tensor& b, std::int64_t begin, const Tensor& y) {
  for (std::int64_t t = 0; t < y.dim(0); ++t)
    for (std::int64_t j = 0; j < y.dim(1); ++j) y.row<float>(t)[j] += load_f32(b, begin + j);
}

// Rows [begin, end) of all weights laid one after the other.
void few_rows_range(const LinearArgs& args, const Tensor& x, Range range) {
  std::int64_t first = 0;  // of this weight, in the rows of all
  for (std::size_t i = 0; i < args.w.size(); ++i) {
    const Tensor& w = args.w[i];
    const std::int64_t begin = std::max(range.begin - first, std::int64_t{0});
    const std::int64_t end = std::min(range.end - first, w.dim(0));
    if (begin < end) {
      const Tensor y = args.y.cols(first + begin, end - begin);
      few_rows({.x = x, .w = w.rows(begin, end - begin), .y = y, .accumulate = args.accumulate});
      if (!args.b.empty()) add_bias(args.b[i], begin, y);
    }
    first += w.dim(0);
  }
}

void linear_few_rows(Context& context, const LinearArgs& args) {
  const std::int64_t rows = args.x.dim(0);
  const std::int64_t k = args.x.dim(1);
  const DType dtype = few_rows_as_bf16(args) ? DType::bf16 : DType::f32;
  Tensor x = args.x;
  if (rows > 1 || dtype != x.dtype || k % kFewRowsPadding != 0) {
    const std::int64_t stride = few_rows_stride(k, dtype);
    x = Tensor::dense(context.arena().take(bytes_of(rows * stride, dtype)), dtype, {rows, stride});
    if (dtype == DType::f32) {
      widen(args.x, x);
    } else {
      for (std::int64_t t = 0; t < rows; ++t) {
        std::memcpy(x.row<std::uint16_t>(t), args.x.row<std::uint16_t>(t), bytes_of(k, dtype));
        std::fill_n(x.row<std::uint16_t>(t) + k, stride - k, std::uint16_t{0});
      }
    }
  }
  parallel_ranges(context.threads(), args.y.dim(1), 16,
                  [&](Range range) { few_rows_range(args, x, range); });
}

void linear_many_rows(Context& context, const LinearArgs& args) {
  const int threads = context.threads();
  const std::int64_t rows = args.x.dim(0);
  std::byte* workspace = nullptr;
  std::byte* packed_x = nullptr;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < args.w.size(); ++i) {
    const Tensor& w = args.w[i];
    const Tensor y = args.y.cols(first, w.dim(0));
    const MatmulArgs product{.x = args.x, .w = w, .y = y, .accumulate = args.accumulate};
    if (packed_bf16_is_fastest(args.x.dtype, w.dtype)) {
      if (packed_x == nullptr) {
        packed_x = context.arena().take(packed_bf16_workspace(rows, args.x.dim(1)));
        pack_bf16(args.x, threads, packed_x);
      }
      packed_bf16_matmul(product, threads, packed_x);
    } else if (library_has(args.x.dtype, w.dtype)) {
      library_matmul(product, threads);
    } else {
      if (workspace == nullptr)
        workspace = context.arena().take(packed_matmul_workspace(rows, args.x.dim(1)));
      packed_matmul(product, threads, workspace);
    }
    if (!args.b.empty()) {
      parallel_ranges(threads, rows, 1, [&](Range range) {
        add_bias(args.b[i], 0, y.rows(range.begin, range.end - range.begin));
      });
    }
    first += w.dim(0);
  }
}

}  // namespace

std::size_t linear_workspace_bytes(const LinearArgs& args) {
  // Enough for any smaller number of rows too: whoever measures with the largest batch may run all.
  const std::int64_t rows = args.x.dim(0);
  const std::int64_t k = args.x.dim(1);
  const DType dtype = few_rows_as_bf16(args) ? DType::bf16 : DType::f32;
  const std::size_t few = bytes_of(std::min(rows, kFewRows) * few_rows_stride(k, dtype), dtype);
  if (rows <= kFewRows) return few;
  std::size_t packed_bf16 = 0, packed = 0;
  for (const Tensor& w : args.w) {
    if (packed_bf16_is_fastest(args.x.dtype, w.dtype))
      packed_bf16 = packed_bf16_workspace(rows, k);
    else if (!library_has(args.x.dtype, w.dtype))
      packed = packed_matmul_workspace(rows, k);
  }
  constexpr std::size_t kBetween = 256;  // the arena aligns each
  return std::max(few, packed_bf16 + kBetween + packed);
}

void linear(Context& context, const LinearArgs& args) {
  const std::int64_t rows = args.x.dim(0);
  if (rows == 0 || args.y.dim(1) == 0) return;
  ArenaScope scope(context.arena());
  if (rows <= kFewRows)
    linear_few_rows(context, args);
  else
    linear_many_rows(context, args);
}

}  // namespace xlstm::ops::cpu
