#include "ops/embed.hpp"

#include "core/threads.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/embed.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include "ops/cpu/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace xlstm::ops::cpu {
namespace HWY_NAMESPACE {

void embed_rows(const EmbedArgs& a, std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(a.table.dim(1));
  for (std::int64_t t = begin; t < end; ++t) {
    const WeightRow row(a.table, a.ids[static_cast<std::size_t>(t)] * a.table.row_stride());
    float* y = a.y.row<float>(t);
    for (std::size_t d = 0; d < width; d += lanes()) {
      const std::size_t n = width - d;
      store_up_to(row.at(d, n), y + d, n);
    }
  }
}

/// Columns [begin, end) of all tokens, one after the other.
void embed_backward_columns(const EmbedBackwardArgs& a, std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<std::size_t>(end - begin);
  for (std::size_t t = 0; t < a.ids.size(); ++t) {
    const float* d_y = a.d_y.row<float>(static_cast<std::int64_t>(t)) + begin;
    float* row = a.d_table.row<float>(a.ids[t]) + begin;
    for (std::size_t d = 0; d < width; d += lanes()) {
      const std::size_t n = width - d;
      store_up_to(hn::Add(load_up_to(row + d, n), load_up_to(d_y + d, n)), row + d, n);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xlstm::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xlstm::ops::cpu {

HWY_EXPORT(embed_rows);
HWY_EXPORT(embed_backward_columns);

void embed(Context& context, const EmbedArgs& a) {
  constexpr std::int64_t kElementsPerThread = 1 << 15;
  const std::int64_t grain = 1 + kElementsPerThread / (1 + a.table.dim(1));
  parallel_ranges(context.threads(), a.y.dim(0), grain, [&](Range rows) {
    HWY_DYNAMIC_DISPATCH(embed_rows)(a, rows.begin, rows.end);
  });
}

// Several tokens may have one row: threads share the columns, not the tokens.
void embed_backward(Context& context, const EmbedBackwardArgs& a) {
  constexpr std::int64_t kElementsPerThread = 1 << 15, kColumns = 64;
  const std::int64_t least = kElementsPerThread / a.d_y.dim(0);
  const std::int64_t grain = (least + kColumns) / kColumns * kColumns;
  parallel_ranges(context.threads(), a.d_y.dim(1), grain, [&](Range columns) {
    HWY_DYNAMIC_DISPATCH(embed_backward_columns)(a, columns.begin, columns.end);
  });
}

}  // namespace xlstm::ops::cpu
#endif  // HWY_ONCE
