// Config: sizes that follow from the fields, and what the fields may be (specification A.1).

#include "xlstm/config.hpp"

#include <algorithm>
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

/// r ceil(width factor / r), a true ceiling (specification B.1).
std::int64_t round_up(std::int64_t width, double factor, std::int64_t multiple) {
  const auto r = static_cast<double>(multiple);
  return truncate(std::ceil(static_cast<double>(width) * factor / r) * r);
}

/// Weights of a stack of the first xLSTM's blocks, and of its norm.
template <class T>
T count_stack_parameters(const Config& config) {
  const BlockStackConfig& stack = *config.block_stack;
  const T d = static_cast<T>(config.hidden_size);
  T total = stack.add_post_blocks_norm ? d : 0;
  for (std::int64_t i = 0; i < config.num_blocks; ++i) {
    if (stack.is_slstm(i)) {
      const SlstmBlockConfig& s = *stack.slstm;
      const T h = static_cast<T>(s.num_heads);
      total += d + 8 * d * (d / h) + 4 * d;  // norm, four gates and R, bias
      if (s.conv1d_kernel_size > 0) total += d * static_cast<T>(s.conv1d_kernel_size + 1);
      if (s.group_norm_weight) total += d;
      if (!s.has_feed_forward) continue;
      const T f = static_cast<T>(stack.ffn_dim(config.hidden_size));
      total += d + 3 * f * d + (s.ffn_bias ? 2 * f + d : 0);
    } else {
      const MlstmBlockConfig& m = *stack.mlstm;
      const T in = static_cast<T>(stack.inner_dim(config.hidden_size));
      const T h = static_cast<T>(m.num_heads);
      total +=
          d + 3 * in * d + in * static_cast<T>(m.conv1d_kernel_size + 1);  // norm, up, down, conv
      total += 3 * in * static_cast<T>(m.qkv_proj_blocksize);              // q, k, v
      total += 2 * (3 * in * h + h) + 2 * in;                              // gates, norm, skip
      if (stack.bias) total += 2 * in + d + 3 * in;
    }
  }
  return total;
}

/// Values of the state of a stack of the first xLSTM's blocks.
template <class T>
T count_stack_states(const Config& config) {
  const BlockStackConfig& stack = *config.block_stack;
  T total = 0;
  for (std::int64_t i = 0; i < config.num_blocks; ++i) {
    if (stack.is_slstm(i)) {
      const T d = static_cast<T>(config.hidden_size);
      total += 4 * d +
               d * static_cast<T>(std::max<std::int64_t>(stack.slstm->conv1d_kernel_size - 1, 0));
    } else {
      const T in = static_cast<T>(stack.inner_dim(config.hidden_size));
      const T h = static_cast<T>(stack.mlstm->num_heads);
      total += in * (in / h) + in + h + in * static_cast<T>(stack.mlstm->conv1d_kernel_size - 1);
    }
  }
  return total;
}

/// Number of weights, in any type: double cannot overflow.
template <class T>
T count_parameters(const Config& config) {
  if (config.block_stack) {
    const T table = static_cast<T>(config.vocab_size) * static_cast<T>(config.hidden_size);
    return count_stack_parameters<T>(config) + (config.tie_word_embeddings ? table : 2 * table);
  }
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

bool Config::has_sigmoid_input_gate() const {
  return !block_stack && chunkwise_kernel.find("siging") != std::string::npos;
}

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
  if (block_stack) return count_stack_states<std::int64_t>(*this);
  return num_blocks * num_heads * (qk_head_dim() * v_head_dim() + qk_head_dim() + 1);
}

namespace {

void validate_stack(const Config& config, const Validator& check) {
  const BlockStackConfig& stack = *config.block_stack;
  const std::string& where = check.where;
  XLSTM_CHECK(stack.mlstm || stack.slstm, invalid_argument,
              "{}: expected mlstm_block or slstm_block, found neither", where);
  std::int64_t before = -1;
  for (const std::int64_t block : stack.slstm_at) {
    XLSTM_CHECK(block > before && block < config.num_blocks, invalid_argument,
                "{}: slstm_at: expected rising indices of the {} blocks, found {} after {}", where,
                config.num_blocks, block, before);
    before = block;
  }
  const auto slstm_blocks = static_cast<std::int64_t>(stack.slstm_at.size());
  XLSTM_CHECK(stack.slstm || slstm_blocks == 0, invalid_argument,
              "{}: slstm_at: expected no sLSTM blocks, as there is no slstm_block, found {}", where,
              slstm_blocks);
  XLSTM_CHECK(stack.mlstm || slstm_blocks == config.num_blocks, invalid_argument,
              "{}: mlstm_block: expected settings, because {} of {} blocks are mLSTM blocks, found "
              "none",
              where, config.num_blocks - slstm_blocks, config.num_blocks);
  const auto probability = [&](const char* field, double value) {
    XLSTM_CHECK(value >= 0 && value < 1, invalid_argument,
                "{}: {}: expected a probability below 1, found {}", where, field, value);
  };
  const auto heads_divide = [&](const char* field, std::int64_t heads, std::int64_t width) {
    check.at_least(field, heads, 1);
    XLSTM_CHECK(width % heads == 0, invalid_argument, "{}: {}: expected a divisor of {}, found {}",
                where, field, width, heads);
  };
  constexpr std::int64_t kMaxTaps = 1024;
  probability("dropout", stack.dropout);
  if (stack.mlstm) {
    const MlstmBlockConfig& m = *stack.mlstm;
    check.positive("mlstm.proj_factor", m.proj_factor);
    check.at_least("mlstm.round_proj_up_to_multiple_of", m.round_proj_up_to_multiple_of, 1);
    const double width = static_cast<double>(config.hidden_size) * m.proj_factor +
                         static_cast<double>(m.round_proj_up_to_multiple_of);
    XLSTM_CHECK(width <= kMaxWidth, invalid_argument,
                "{}: mlstm.proj_factor: expected an inner width of at most {}, found {}", where,
                kMaxWidth, width);
    const std::int64_t inner = stack.inner_dim(config.hidden_size);
    heads_divide("mlstm.num_heads", m.num_heads, inner);
    heads_divide("mlstm.qkv_proj_blocksize", m.qkv_proj_blocksize, inner);
    check.at_least("mlstm.conv1d_kernel_size", m.conv1d_kernel_size, 1, kMaxTaps);
  }
  if (stack.slstm) {
    const SlstmBlockConfig& s = *stack.slstm;
    heads_divide("slstm.num_heads", s.num_heads, config.hidden_size);
    check.at_least("slstm.conv1d_kernel_size", s.conv1d_kernel_size, 0, kMaxTaps);
    check.positive("feedforward.proj_factor", s.ffn_proj_factor);
    check.at_least("feedforward.round_proj_up_to_multiple_of", s.ffn_round_proj_up_to_multiple_of,
                   1);
    const double width = static_cast<double>(config.hidden_size) * s.ffn_proj_factor +
                         static_cast<double>(s.ffn_round_proj_up_to_multiple_of);
    XLSTM_CHECK(width <= kMaxWidth, invalid_argument,
                "{}: feedforward.proj_factor: expected a width of at most {}, found {}", where,
                kMaxWidth, width);
    probability("feedforward.dropout", s.ffn_dropout);
    bool known = false;
    for (const char* name : {"gelu", "relu", "relu^2", "sigmoid", "swish"})
      known = known || s.ffn_act_fn == name;
    XLSTM_CHECK(known, invalid_argument,
                "{}: feedforward.act_fn: expected gelu, relu, relu^2, sigmoid or swish, found '{}'",
                where, s.ffn_act_fn);
  }
  const double parameters = count_parameters<double>(config);
  const double states = count_stack_states<double>(config);
  XLSTM_CHECK(parameters <= kMaxParameters && states <= kMaxParameters, invalid_argument,
              "{}: expected at most {} weights and states, found {} and {}", where, kMaxParameters,
              parameters, states);
}

}  // namespace

bool BlockStackConfig::is_slstm(std::int64_t block) const {
  return std::binary_search(slstm_at.begin(), slstm_at.end(), block);
}

std::int64_t BlockStackConfig::inner_dim(std::int64_t hidden_size) const {
  return mlstm ? round_up(hidden_size, mlstm->proj_factor, mlstm->round_proj_up_to_multiple_of) : 0;
}

std::int64_t BlockStackConfig::ffn_dim(std::int64_t hidden_size) const {
  if (!slstm || !slstm->has_feed_forward) return 0;
  return round_up(hidden_size, slstm->ffn_proj_factor, slstm->ffn_round_proj_up_to_multiple_of);
}

void Config::validate(const std::string& where) const {
  const Validator check{where};
  check.at_least("vocab_size", vocab_size, 0);
  check.at_least("hidden_size", hidden_size, 1);
  check.at_least("num_blocks", num_blocks, 1, kMaxBlocks);
  if (bos_token_id) check.at_least("bos_token_id", *bos_token_id, 0);
  for (const std::int64_t id : eos_token_id) check.at_least("eos_token_id", id, 0);
  if (pad_token_id) check.at_least("pad_token_id", *pad_token_id, 0);
  if (block_stack) {
    validate_stack(*this, check);
    return;
  }
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
