// Plain loops: what a CUDA device computes, for tests. No model runs this on the CPU.

#include "ops/e4m3.hpp"

#include <cmath>

#include "core/convert.hpp"
#include "core/float_bits.hpp"
#include "core/threads.hpp"

namespace xlstm::ops::cpu {

void quantise_e4m3(Context& c, const QuantiseE4m3Args& a) {
  constexpr float kLeast = 1e-30F;
  parallel_ranges(c.threads(), a.x.dim(0), 1, [&](Range rows) {
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      const auto x = [&](std::int64_t i) { return load_f32(a.x, r * a.x.row_stride() + i); };
      float most = 0;
      for (std::int64_t i = 0; i < a.x.dim(1); ++i) most = std::fmax(most, std::fabs(x(i)));
      const bool zero = most < kLeast;
      const float factor = zero ? 0.0F : kMostE4m3 / most;
      a.y.scales.as<float>()[r] = zero ? 0.0F : most / kMostE4m3;
      for (std::int64_t i = 0; i < a.x.dim(1); ++i)
        a.y.codes.row<std::uint8_t>(r)[i] = f32_to_e4m3(x(i) * factor);
    }
  });
}

void linear_e4m3(Context& c, const LinearE4m3Args& a) {
  const std::int64_t depth = a.x.codes.dim(1);
  std::int64_t first = 0;
  for (std::size_t i = 0; i < a.w.size(); ++i) {
    const E4m3Matrix& w = a.w[i];
    parallel_ranges(c.threads(), a.y.dim(0), 1, [&](Range rows) {
      for (std::int64_t t = rows.begin; t < rows.end; ++t) {
        const auto* x = a.x.codes.row<std::uint8_t>(t);
        for (std::int64_t n = 0; n < w.codes.dim(0); ++n) {
          const auto* row = w.codes.row<std::uint8_t>(n);
          float sum = 0;
          for (std::int64_t k = 0; k < depth; ++k)
            sum = std::fma(e4m3_to_f32(x[k]), e4m3_to_f32(row[k]), sum);
          sum *= a.x.scales.as<float>()[t] * w.scales.as<float>()[n];
          if (!a.b.empty()) sum += load_f32(a.b[i], n);
          float& y = a.y.row<float>(t)[first + n];
          y = a.accumulate ? y + sum : sum;
        }
      }
    });
    first += w.codes.dim(0);
  }
}

}  // namespace xlstm::ops::cpu
