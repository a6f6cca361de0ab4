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

void gates_backward(Context&, const GatesBackwardArgs& a) {
  const std::int64_t heads = a.log_f.dim(1);
  for (std::int64_t t = 0; t < a.log_f.dim(0); ++t) {
    float* d_z = a.d_z.row<float>(t);
    for (std::int64_t h = 0; h < heads; ++h) {
      d_z[h] = a.d_i.row<float>(t)[h];
      const double log_f = a.log_f.row<float>(t)[h];
      d_z[heads + h] = static_cast<float>(-std::expm1(log_f) * a.d_log_f.row<float>(t)[h]);
    }
  }
}

}  // namespace xlstm::ops::cpu
