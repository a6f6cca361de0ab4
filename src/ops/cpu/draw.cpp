#include "ops/draw.hpp"

#include <algorithm>
#include <array>

#include "ops/best.hpp"

namespace xlstm::ops::cpu {

void draw_tokens(Context& context, const DrawTokensArgs& a) {
  std::array<float, kMostBest> values;      // NOLINT: filled as far as it is read
  std::array<std::int32_t, kMostBest> ids;  // NOLINT
  std::array<double, kMostBest> weights;    // NOLINT
  for (std::int64_t r = 0; r < a.logits.dim(0); ++r) {
    best_logits(context, {.logits = a.logits.rows(r, 1),
                          .values = Tensor::dense(values.data(), DType::f32, {1, a.count}),
                          .ids = Tensor::dense(ids.data(), DType::i32, {1, a.count})});
    Draw& draw = reinterpret_cast<Draw*>(a.draws.data)[r];
    std::size_t place = 0;
    if (draw.inverse_temperature > 0 && std::isfinite(values[0])) {
      const auto count = static_cast<std::size_t>(std::min(a.count, draw.top_k));
      for (std::size_t i = 0; i < count; ++i) weights[i] = draw.weight(values[i], values[0]);
      place = chosen(draw, std::span(weights).first(count), draw.generator.uniform());
    }
    const std::int32_t id = ids[place];
    a.next.as<std::int32_t>()[r] = id;
    a.ids.as<std::int32_t>()[r] = id;
    a.values.as<float>()[r] = values[place];
    const std::int32_t* ends = a.ends.as<std::int32_t>();
    if (draw.after_end != nullptr &&
        std::find(ends, ends + a.ends.dim(0), id) != ends + a.ends.dim(0))
      reinterpret_cast<std::byte**>(a.slots.data)[r] = draw.after_end;
  }
}

}  // namespace xlstm::ops::cpu
