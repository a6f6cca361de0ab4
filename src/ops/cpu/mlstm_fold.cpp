// Pending tokens of mLSTM states brought into C. Only a CUDA device makes such tokens, and it folds
// them before a record leaves it; this body is the plain statement of what folding is.

#include <cmath>
#include <cstring>

#include "core/float_bits.hpp"
#include "ops/mlstm.hpp"
#include "ops/mlstm_ring.hpp"
#include "ops/random_rounding.hpp"

namespace xlstm::ops::cpu {
namespace {

struct Bf16 {
  std::uint16_t bits;
};
float value_of(float c) { return c; }
float value_of(Bf16 c) { return bf16_to_f32(c.bits); }
void store(float& c, float value, RoundingKey, std::int64_t) { c = value; }
void store(Bf16& c, float value, RoundingKey key, std::int64_t element) {
  c.bits = random_bf16(value, key, static_cast<std::uint32_t>(element));
}

/// @param c      of a head
/// @param gates  of its ring
template <class Number>
void fold_head(Number* c, const float* gates, const float* k, const float* v, std::int32_t waiting,
               const MlstmRing& ring, RoundingKey key) {
  for (std::int64_t row = 0; row < ring.dqk; ++row)
    for (std::int64_t x = 0; x < ring.dv; ++x) {
      const std::int64_t element = row * ring.dv + x;
      float value = gates[ring.tokens] * value_of(c[element]);
      for (std::int64_t j = 0; j < waiting; ++j)
        value = std::fma(gates[j] * k[j * ring.dqk + row], v[j * ring.dv + x], value);
      store(c[element], value, key, element);
    }
}

}  // namespace

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
      const float* const k = pending + ring.k + head * ring.tokens * a.dqk;
      const float* const v = pending + ring.v + head * ring.tokens * a.dv;
      const std::int64_t first = head * a.dqk * a.dv;
      std::byte* const c = slot + a.state.c;
      if (a.state.c_type == DType::f32) {
        fold_head(reinterpret_cast<float*>(c) + first, gates, k, v, waiting, ring, {});
      } else {
        std::uint32_t position = 0;
        std::memcpy(&position, pending + ring.positions + head, sizeof(position));
        position += static_cast<std::uint32_t>(waiting);
        std::memcpy(pending + ring.positions + head, &position, sizeof(position));
        fold_head(reinterpret_cast<Bf16*>(c) + first, gates, k, v, waiting, ring,
                  rounding_key(a.state.rounding, head, position));
      }
      std::memset(gates + ring.tokens + 1, 0, sizeof(waiting));
    }
  }
}

}  // namespace xlstm::ops::cpu
