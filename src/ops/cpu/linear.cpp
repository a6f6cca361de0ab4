#include "ops/linear.hpp"

#include <algorithm>
#include <cstring>

#include "core/threads.hpp"
#include "ops/cpu/convert.hpp"
#include "ops/cpu/few_rows.hpp"
#include "ops/cpu/linear_plan.hpp"

namespace xlstm::ops::cpu {
namespace {

// Row stride of the copy of x: padded, and an odd number of cache lines so that the same column of
// several rows does not fall into one set of the cache.
std::int64_t copy_stride(std::int64_t k, DType dtype) {
  const auto line = static_cast<std::int64_t>(64 / size_of(dtype));
  const std::int64_t lines = (k + kFewRowsPadding - 1) / kFewRowsPadding * kFewRowsPadding / line;
  return (lines | 1) * line;
}

bool few_rows_as_bf16(const LinearArgs& args) {
  if (args.x.dtype != DType::bf16) return false;
  for (const Tensor& w : args.w)
    if (!few_rows_takes_bf16(w.dtype)) return false;
  return true;
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
      for (std::int64_t t = 0; t < x.dim(0); t += kFewRows) {
        const std::int64_t rows = std::min(x.dim(0) - t, kFewRows);
        few_rows({.x = x.rows(t, rows),
                  .w = w.rows(begin, end - begin),
                  .y = y.rows(t, rows),
                  .accumulate = args.accumulate});
      }
      if (!args.b.empty()) {
        for (std::int64_t t = 0; t < y.dim(0); ++t)
          for (std::int64_t j = 0; j < end - begin; ++j)
            y.row<float>(t)[j] += load_f32(args.b[i], begin + j);
      }
    }
    first += w.dim(0);
  }
}

}  // namespace

std::size_t linear_workspace_bytes(const LinearArgs& args, int) {
  return static_cast<std::size_t>(args.x.dim(0) * copy_stride(args.x.dim(1), DType::f32)) *
         sizeof(float);
}

void linear(Context& context, const LinearArgs& args) {
  const std::int64_t rows = args.x.dim(0);
  if (rows == 0) return;
  const std::int64_t k = args.x.dim(1);
  ArenaScope scope(context.arena());
  const DType dtype = few_rows_as_bf16(args) ? DType::bf16 : DType::f32;
  Tensor x = Tensor::dense(context.arena().take(linear_workspace_bytes(args, context.threads())),
                           dtype, {rows, copy_stride(k, dtype)});
  for (std::int64_t t = 0; t < rows; ++t) {
    if (dtype == args.x.dtype) {
      char* row = x.as<char>() + static_cast<std::size_t>(t * x.row_stride()) * size_of(dtype);
      std::memcpy(
          row,
          args.x.as<char>() + static_cast<std::size_t>(t * args.x.row_stride()) * size_of(dtype),
          static_cast<std::size_t>(k) * size_of(dtype));
      std::memset(row + static_cast<std::size_t>(k) * size_of(dtype), 0,
                  static_cast<std::size_t>(x.row_stride() - k) * size_of(dtype));
    } else {
      float* row = x.row<float>(t);
      for (std::int64_t i = 0; i < k; ++i) row[i] = load_f32(args.x, t * args.x.row_stride() + i);
      std::fill(row + k, row + x.row_stride(), 0.0F);
    }
  }
  parallel_ranges(context.threads(), args.y.dim(1), 16,
                  [&](Range range) { few_rows_range(args, x, range); });
}

}  // namespace xlstm::ops::cpu
