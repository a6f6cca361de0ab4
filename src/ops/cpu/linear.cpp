#include "ops/linear.hpp"

#include <algorithm>
#include <cstring>

#include "core/threads.hpp"
#include "ops/cpu/convert.hpp"
#include "ops/cpu/few_rows.hpp"
#include "ops/cpu/linear_plan.hpp"

namespace xlstm::ops::cpu {
namespace {

std::int64_t padded(std::int64_t k) {
  return (k + kFewRowsPadding - 1) / kFewRowsPadding * kFewRowsPadding;
}

// Rows [begin, end) of all weights laid one after the other.
void few_rows_range(const LinearArgs& args, const float* x, std::int64_t x_stride, Range range) {
  const std::int64_t rows = args.x.dim(0);
  std::int64_t first = 0;  // of this weight, in the rows of all
  for (std::size_t i = 0; i < args.w.size(); ++i) {
    const Tensor& w = args.w[i];
    const std::int64_t begin = std::max(range.begin - first, std::int64_t{0});
    const std::int64_t end = std::min(range.end - first, w.dim(0));
    if (begin < end) {
      float* y = args.y.as<float>() + first + begin;
      for (std::int64_t t = 0; t < rows; t += kFewRows) {
        few_rows({.x = x + t * x_stride,
                  .x_stride = x_stride,
                  .t = std::min(rows - t, kFewRows),
                  .w = w.rows(begin, end - begin),
                  .y = y + t * args.y.row_stride(),
                  .y_stride = args.y.row_stride(),
                  .accumulate = args.accumulate});
      }
      if (!args.b.empty()) {
        for (std::int64_t t = 0; t < rows; ++t)
          for (std::int64_t j = begin; j < end; ++j)
            args.y.row<float>(t)[first + j] += load_f32(args.b[i], j);
      }
    }
    first += w.dim(0);
  }
}

}  // namespace

std::size_t linear_workspace_bytes(const LinearArgs& args, int) {
  return static_cast<std::size_t>(args.x.dim(0) * padded(args.x.dim(1))) * sizeof(float);
}

void linear(Context& context, const LinearArgs& args) {
  const std::int64_t rows = args.x.dim(0);
  if (rows == 0) return;
  const std::int64_t k = args.x.dim(1);
  ArenaScope scope(context.arena());
  Tensor x = Tensor::dense(context.arena().take(linear_workspace_bytes(args, context.threads())),
                           DType::f32, {rows, padded(k)});
  for (std::int64_t t = 0; t < rows; ++t) {
    float* row = x.row<float>(t);
    for (std::int64_t i = 0; i < k; ++i) row[i] = load_f32(args.x, t * args.x.row_stride() + i);
    std::fill(row + k, row + padded(k), 0.0F);
  }
  parallel_ranges(context.threads(), args.y.dim(1), 16,
                  [&](Range range) { few_rows_range(args, x.as<float>(), x.row_stride(), range); });
}

}  // namespace xlstm::ops::cpu
