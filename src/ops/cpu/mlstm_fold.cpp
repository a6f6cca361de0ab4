// Pending tokens of mLSTM states brought into C. Only a CUDA device makes such tokens, and it folds
// them before a record leaves it; this body is the plain statement of what folding is.

#include <cmath>
#include <cstring>

#include "ops/mlstm.hpp"
#include "ops/mlstm_ring.hpp"

namespace xlstm::ops::cpu {

void mlstm_fold(Context&, const MlstmFoldArgs& a) {
  const MlstmRing ring(a.heads, a.dqk, a.dv);
  for (std::size_t s = 0; s < a.batch.slots.size(); ++s) {
    std::byte* const slot = a.batch.slots[s];
    if (slot == nullptr) continue;
    if (a.longer_only && a.batch.offsets[s + 1] - a.batch.offsets[s] == 1) continue;
    float* const pending = reinterpret_cast<float*>(slot + a.state.pending);
    for (std::int64_t head = 0; head < a.heads; ++head) {
      float* const gates = pending + ring.gates + head * (ring.tokens + 2);
      std::int32_t waiting = 0;
      std::memcpy(&waiting, gates + ring.tokens + 1, sizeof(waiting));
      if (waiting == 0) continue;
      const float decay = gates[ring.tokens];
      const float* const k = pending + ring.k + head * ring.tokens * a.dqk;
      const float* const v = pending + ring.v + head * ring.tokens * a.dv;
      float* const c = reinterpret_cast<float*>(slot + a.state.c) + head * a.dqk * a.dv;
      for (std::int64_t row = 0; row < a.dqk; ++row)
        for (std::int64_t x = 0; x < a.dv; ++x) {
          float value = decay * c[row * a.dv + x];
          for (std::int64_t j = 0; j < waiting; ++j)
            value = std::fma(gates[j] * k[j * a.dqk + row], v[j * a.dv + x], value);
          c[row * a.dv + x] = value;
        }
      std::memset(gates + ring.tokens + 1, 0, sizeof(waiting));
    }
  }
}

}  // namespace xlstm::ops::cpu
