// Config: sizes that follow from the fields, and what the fields may be (specification A.1).

#include "xlstm/config.hpp"

#include <cmath>
#include <limits>

#include "core/check.hpp"

namespace xlstm {
namespace {

// Every width fits an int32, so a product of two fits an int64; the whole model fits one in bytes.
constexpr std::int64_t kMaxWidth = std::numeric_limits<std::int32_t>::max();
constexpr double kMaxParameters = 1e18;
// A model allocates by these, whatever its file holds.
constexpr std::int64_t kMaxBlocks = 4096;
constexpr std::int64_t kMaxChunk = 65536;

/// Python's int(x), for what a size may be; 0 for what it may not.
std::int64_t truncate(double x) { return x >= 0 && x < 0x1p53 ? static_cast<std::int64_t>(x) : 0; }

/// Python's a // b for floats, which is exact where floor(a / b) may round up.
double floor_divide(double a, double b) {
  const double quotient = (a - std::fmod(a, b)) / b;
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

/// Number of weights, in any type: double cannot overflow.
template <class T>
T count_parameters(const Config& config) {
  const T d = static_cast<T>(config.hidden_size), h = static_cast<T>(config.num_heads);
  const T qk = static_cast<T>(config.qk_dim()), v = static_cast<T>(config.v_dim());
  const T f = static_cast<T>(config.ffn_dim()), vocabulary = static_cast<T>(config.vocab_size);
  T block = 2 * qk * d + 2 * v * d + 2 * (h * d + h) + v + d * v;  // q k, v o, i f, norm, out
  block += 2 * d + 3 * f * d;                                      // norms, feed-forward
  if (config.use_bias) block += 2 * qk + 2 * v + v + d + 2 * d + 2 * f + d;
  T total = static_cast<T>(config.num_blocks) * block + vocabulary * d;
  if (!config.tie_word_embeddings) total += vocabulary * d;
  if (config.add_out_norm) total += d;
  return total;
}

/// Throws with the field's name; keeps validate() a list of rules.
struct Validator {
  const std::string& where;

  void at_least(const char* field, std::int64_t value, std::int64_t minimum,
                std::int64_t maximum = kMaxWidth) const {
    XLSTM_CHECK(value >= minimum && value <= maximum, invalid_argument,
                "{}: {}: expected {} to {}, found {}", where, field, minimum, maximum, value);
  }
  void positive(const char* field, double value) const {
    XLSTM_CHECK(std::isfinite(value) && value > 0, invalid_argument,
                "{}: {}: expected a finite number above 0, found {}", where, field, value);
  }
  void not_negative(const char* field, double value) const {
    XLSTM_CHECK(std::isfinite(value) && value >= 0, invalid_argument,
                "{}: {}: expected a finite number of at least 0, found {}", where, field, value);
  }
  /// hidden_size * factor is all heads' width: at least 1 per head, the same for each.
  void splits_into_heads(const char* field, const Config& config, double factor,
                         std::int64_t width) const {
    positive(field, factor);
    XLSTM_CHECK(static_cast<double>(config.hidden_size) * factor <= kMaxWidth, invalid_argument,
                "{}: {}: expected hidden_size * {} of at most {}, found {} * {}", where, field,
                field, kMaxWidth, config.hidden_size, factor);
    XLSTM_CHECK(width >= config.num_heads && width % config.num_heads == 0, invalid_argument,
                "{}: {}: expected int(hidden_size * {}) to be a multiple of num_heads ({}), found "
                "{}",
                where, field, field, config.num_heads, width);
  }
};

}  // namespace

std::int64_t Config::qk_dim() const {
  return truncate(static_cast<double>(hidden_size) * qk_dim_factor);
}

std::int64_t Config::v_dim() const {
  return truncate(static_cast<double>(hidden_size) * v_dim_factor);
}

std::int64_t Config::ffn_dim() const {
  const auto multiple = static_cast<double>(ffn_round_up_to_multiple_of);
  const double width = static_cast<double>(hidden_size) * ffn_proj_factor;
  return truncate(floor_divide(width + multiple - 1, multiple) * multiple);
}

std::int64_t Config::parameter_count() const { return count_parameters<std::int64_t>(*this); }

std::int64_t Config::state_count() const {
  return num_blocks * num_heads * (qk_head_dim() * v_head_dim() + qk_head_dim() + 1);
}

void Config::validate(const std::string& where) const {
  const Validator check{where};
  check.at_least("vocab_size", vocab_size, 1);
  check.at_least("hidden_size", hidden_size, 1);
  check.at_least("num_blocks", num_blocks, 1, kMaxBlocks);
  check.at_least("num_heads", num_heads, 1);
  check.splits_into_heads("qk_dim_factor", *this, qk_dim_factor, qk_dim());
  check.splits_into_heads("v_dim_factor", *this, v_dim_factor, v_dim());

  check.positive("ffn_proj_factor", ffn_proj_factor);
  check.at_least("ffn_round_up_to_multiple_of", ffn_round_up_to_multiple_of, 1);
  const double ffn_width = static_cast<double>(hidden_size) * ffn_proj_factor +
                           static_cast<double>(ffn_round_up_to_multiple_of);
  XLSTM_CHECK(ffn_width <= kMaxWidth && ffn_dim() >= 1, invalid_argument,
              "{}: ffn_proj_factor: expected a feed-forward width of 1 to {}, found hidden_size {} "
              "* {} rounded to a multiple of {}",
              where, kMaxWidth, hidden_size, ffn_proj_factor, ffn_round_up_to_multiple_of);

  check.not_negative("norm_eps", norm_eps);
  check.not_negative("eps", eps);
  if (gate_soft_cap) check.positive("gate_soft_cap", *gate_soft_cap);
  if (output_logit_soft_cap) check.positive("output_logit_soft_cap", *output_logit_soft_cap);
  XLSTM_CHECK(weight_mode == "single" || weight_mode == "fused", invalid_argument,
              "{}: weight_mode: expected single or fused, found '{}'", where, weight_mode);
  check.at_least("chunk_size", chunk_size, 1, kMaxChunk);
  check.at_least("max_inference_chunksize", max_inference_chunksize, 1);
  if (bos_token_id) check.at_least("bos_token_id", *bos_token_id, 0);
  for (const std::int64_t id : eos_token_id) check.at_least("eos_token_id", id, 0);
  if (pad_token_id) check.at_least("pad_token_id", *pad_token_id, 0);

  const double parameters = count_parameters<double>(*this);
  const double states = static_cast<double>(num_blocks) * static_cast<double>(num_heads) *
                        (static_cast<double>(qk_head_dim()) * static_cast<double>(v_head_dim()) +
                         static_cast<double>(qk_head_dim()) + 1);
  XLSTM_CHECK(parameters <= kMaxParameters && states <= kMaxParameters, invalid_argument,
              "{}: expected at most {} weights and states, found {} and {}: hidden_size {}, "
              "num_blocks {}, vocab_size {}",
              where, kMaxParameters, parameters, states, hidden_size, num_blocks, vocab_size);
}

}  // namespace xlstm
