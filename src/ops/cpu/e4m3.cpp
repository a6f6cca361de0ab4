// Plain loops: what a CUDA device computes, for tests. No model runs this on
// the CPU.

#include "ops/e4m3.hpp"

#include <algorithm>
#include <cmath>

#include "core/convert.hpp"
#include "core/float_bits.hpp"
#include "core/threads.hpp"

namespace xlstm::ops::cpu {

namespace {

float scale_of(const E4m3Matrix& m, std::int64_t row, std::int64_t column) {
  const std::int64_t r = m.kind == E4m3Scales::blocks ? row / kE4m3Run : row;
  return m.scales.as<float>()[r * m.row_step() + column / kE4m3Run * m.run_step()];
}
float value_of(const E4m3Matrix& m, std::int64_t row, std::int64_t column) {
  return e4m3_to_f32(m.codes.row<std::uint8_t>(row)[column]) * scale_of(m, row, column);
}

}  // namespace

void quantise_e4m3(Context&, const QuantiseE4m3Args& a) {
  const std::int64_t rows = a.x.dim(0), columns = a.x.dim(1);
  const std::int64_t high = a.y.kind == E4m3Scales::blocks ? kE4m3Run : 1;
  const std::int64_t wide = a.y.kind == E4m3Scales::rows ? columns : kE4m3Run;
  const auto x = [&](std::int64_t r, std::int64_t c) {
    return load_f32(a.x, r * a.x.row_stride() + c);
  };
  for (std::int64_t first = 0; first < rows; first += high) {
    for (std::int64_t from = 0; from < columns; from += wide) {
      const std::int64_t end = std::min(rows, first + high), to = std::min(columns, from + wide);
      float most = 0;
      for (std::int64_t r = first; r < end; ++r)
        for (std::int64_t c = from; c < to; ++c) most = std::fmax(most, std::fabs(x(r, c)));
      const bool zero = most < kLeastE4m3;
      const float factor = zero ? 0.0F : kMostE4m3 / most;
      a.y.scales.as<float>()[first / high * a.y.row_step() + from / kE4m3Run * a.y.run_step()] =
          zero ? 0.0F : most / kMostE4m3;
      for (std::int64_t r = first; r < end; ++r)
        for (std::int64_t c = from; c < to; ++c)
          a.y.codes.row<std::uint8_t>(r)[c] = f32_to_e4m3(x(r, c) * factor);
    }
  }
}

void linear_e4m3(Context& c, const LinearE4m3Args& a) {
  const std::int64_t depth = a.x.codes.dim(1);
  std::int64_t first = 0;
  for (std::size_t i = 0; i < a.w.size(); ++i) {
    const E4m3Matrix& w = a.w[i];
    parallel_ranges(c.threads(), a.y.dim(0), 1, [&](Range rows) {
      for (std::int64_t t = rows.begin; t < rows.end; ++t) {
        for (std::int64_t n = 0; n < w.codes.dim(0); ++n) {
          float sum = a.b.empty() ? 0.0F : load_f32(a.b[i], n);
          for (std::int64_t k = 0; k < depth; ++k)
            sum = std::fma(value_of(a.x, t, k), value_of(w, n, k), sum);
          float& y = a.y.row<float>(t)[first + n];
          y = a.accumulate ? y + sum : sum;
        }
      }
    });
    first += w.codes.dim(0);
  }
}

}  // namespace xlstm::ops::cpu
