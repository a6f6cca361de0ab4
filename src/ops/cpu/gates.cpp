#include "ops/gates.hpp"

#include <cmath>

namespace xlstm::ops::cpu {

// In double, as the gates of xLSTM-large: they are few, and all of a sequence's future depends on
// them.
void gates(Context&, const GatesArgs& a) {
  const std::int64_t heads = a.i.dim(1);
  for (std::int64_t t = 0; t < a.z.dim(0); ++t) {
    const float* z = a.z.row<float>(t);
    for (std::int64_t h = 0; h < heads; ++h) {
      a.i.row<float>(t)[h] = z[h];
      const double f = z[heads + h];
      a.log_f.row<float>(t)[h] =
          static_cast<float>((f > 0 ? 0.0 : f) - std::log1p(std::exp(-std::abs(f))));
    }
  }
}

}  // namespace xlstm::ops::cpu
