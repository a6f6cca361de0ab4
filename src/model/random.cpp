// Random weights: a counter-based generator, so that every element is a function of the seed, the
// parameter and its position alone, whatever the number of threads.

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/buffer.hpp"
#include "core/check.hpp"
#include "core/float_bits.hpp"
#include "core/hash.hpp"
#include "core/threads.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"

namespace xlstm {
namespace model {
namespace {

constexpr std::int64_t kTile = 4096;  // values drawn together: 8 kB of random bits

// value[i] = (b + 1/2) a / 2^15 for a signed 16-bit b: uniform in (-a, a), exact in float32.
void draw_tile(std::uint64_t key, std::int64_t tile, float a, float* values) {
  std::array<std::uint64_t, kTile / 4> bits;  // NOLINT: filled below
  const std::uint64_t counter = key + static_cast<std::uint64_t>(tile) * bits.size();
  for (std::size_t i = 0; i < bits.size(); ++i)
    bits[i] = mix64((counter + i) * 0x9e3779b97f4a7c15ULL);
  std::array<std::int16_t, kTile> draws;  // NOLINT: filled below
  std::memcpy(draws.data(), bits.data(), sizeof(draws));
  for (std::int64_t i = 0; i < kTile; ++i)
    values[i] = (static_cast<float>(draws[static_cast<std::size_t>(i)]) + 0.5F) * (a * 0x1p-15F);
}

void store(const float* values, std::int64_t n, DType dtype, void* to) {
  if (dtype == DType::f32) {
    std::copy_n(values, n, static_cast<float*>(to));
  } else if (dtype == DType::bf16) {
    auto* out = static_cast<std::uint16_t*>(to);
    for (std::int64_t i = 0; i < n; ++i) {  // values are finite: no case for NaN, so it vectorises
      const auto bits = std::bit_cast<std::uint32_t>(values[i]);
      out[i] = static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
    }
  } else {
    auto* out = static_cast<std::uint16_t*>(to);
    for (std::int64_t i = 0; i < n; ++i) out[i] = f32_to_f16(values[i]);
  }
}

void fill_uniform(const Tensor& t, std::uint64_t key, double deviation, int threads) {
  const auto a = static_cast<float>(deviation * 1.7320508075688772);  // sqrt(3): uniform's bound
  const std::int64_t n = t.count();
  // Each thread has pages of its own: two that touch one first would both clear it.
  parallel_ranges(threads, (n + kTile - 1) / kTile, 1, [&](Range tiles) {
    std::array<float, kTile> values;  // NOLINT: filled below
    for (std::int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
      draw_tile(key, tile, a, values.data());
      store(values.data(), std::min(kTile, n - tile * kTile), t.dtype,
            static_cast<std::byte*>(t.data) +
                static_cast<std::size_t>(tile * kTile) * size_of(t.dtype));
    }
  });
}

void fill_ramp(const Tensor& t, float first, float last) {
  const std::int64_t n = t.count();
  for (std::int64_t i = 0; i < n; ++i) {
    const float step = n > 1 ? static_cast<float>(i) / static_cast<float>(n - 1) : 0.0F;
    const float value = first + (last - first) * step;
    store(&value, 1, t.dtype,
          static_cast<std::byte*>(t.data) + static_cast<std::size_t>(i) * size_of(t.dtype));
  }
}

void fill(const Parameter& p, std::uint64_t key, std::int64_t blocks, int threads) {
  const Tensor& t = *p.view;
  const auto fan_in = static_cast<double>(p.shape.back());
  switch (p.init) {
    case Init::embedding: return fill_uniform(t, key, 1.0, threads);
    case Init::linear: return fill_uniform(t, key, 1 / std::sqrt(fan_in), threads);
    case Init::residual:  // the sum of 2 blocks outputs keeps the deviation of one
      return fill_uniform(t, key, 1 / std::sqrt(2.0 * static_cast<double>(blocks) * fan_in),
                          threads);
    case Init::gate: return fill_uniform(t, key, 0.5 / std::sqrt(fan_in), threads);
    case Init::one: return fill_ramp(t, 1, 1);
    case Init::zero: return fill_ramp(t, 0, 0);
    case Init::input_bias: return fill_ramp(t, -10, 0);
    case Init::forget_bias: return fill_ramp(t, 3, 6);
  }
}

}  // namespace

void random_weights(Model::Impl& impl, DType dtype, std::uint64_t seed) {
  impl.parameters = list_parameters(impl.config, Dialect::hugging_face, impl.network);
  std::erase_if(impl.parameters, [&](const Parameter& p) {
    return p.optional || (p.view == &impl.network.lm_head[0] && impl.config.tie_word_embeddings);
  });
  const auto bytes_of = [&](const Parameter& p) {
    return aligned(static_cast<std::size_t>(p.count()) * size_of(dtype));
  };
  std::size_t bytes = 0;
  for (const Parameter& p : impl.parameters) bytes += bytes_of(p);
  impl.owned.emplace_back(bytes);
  std::byte* at = impl.owned.back().data();
  // Pages of 2 MB where the system has them: fewer faults now and fewer misses when streaming.
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(at) + kPage - 1) / kPage * kPage;
  if (bytes > (std::size_t{64} << 20))
    madvise(reinterpret_cast<void*>(begin), bytes - kPage, MADV_HUGEPAGE);

  std::uint64_t done = 0;
  for (std::size_t i = 0; i < impl.parameters.size(); ++i) {
    const Parameter& p = impl.parameters[i];
    *p.view = dense_view(at, dtype, p.shape);
    fill(p, mix64(seed) ^ mix64(i + 1), impl.config.num_blocks, impl.context.threads());
    at += bytes_of(p);
    done += bytes_of(p);
    if (impl.options.progress) impl.options.progress(done, bytes);
  }
  if (!impl.network.lm_head[0] && impl.config.vocab_size > 0) {
    impl.network.lm_head[0] = impl.network.embedding;
    impl.tied = true;
  }
}

}  // namespace model

Model Model::random(const Config& config, DType weights, std::uint64_t seed,
                    const LoadOptions& options) {
  config.validate();
  XLSTM_CHECK(is_weight_dtype(weights), invalid_argument,
              "random weights: expected f32, bf16 or f16, found {}", to_string(weights));
  XLSTM_CHECK(options.adapters.empty(), invalid_argument,
              "random weights: expected no adapters, found {}",
              options.adapters.front().directory.string());
  auto impl = std::make_unique<Impl>(config, options);
  model::prepare_device(*impl, model::uniform_parameters(config, weights));
  model::random_weights(*impl, weights, seed);
  model::load_vocabulary(*impl);
  impl->hash = model::hash_model(*impl);
  model::move_weights_to_device(*impl);
  return Model(std::move(impl));
}

}  // namespace xlstm
