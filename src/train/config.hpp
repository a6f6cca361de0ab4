#pragma once
// What `xlstm train` is told: every key, its default, and its bounds. docs/training.md describes
// them, and a test holds it to this table.

#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "xlstm/config.hpp"

namespace xlstm::train {

struct ModelKeys {
  std::string config;
  std::string init_from;
  std::string family = "large";
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 256;
  std::int64_t num_blocks = 6;
  std::int64_t num_heads = 4;
  double qk_dim_factor = 0.5;
  double v_dim_factor = 1.0;
  double ffn_proj_factor = 2.667;
  double gate_soft_cap = 15.0;
  double output_logit_soft_cap = 30.0;
  bool tie_word_embeddings = false;
  bool use_bias = false;
  double dropout = 0.0;
  std::vector<std::int64_t> slstm_at;
  std::int64_t conv1d_kernel_size = 4;
  std::int64_t slstm_conv1d_kernel_size = 4;
  std::string recurrent_weight_init = "zeros";
  std::string bias_init = "powerlaw_blockdependent";
  double mlstm_proj_factor = 2.0;
  double slstm_ffn_proj_factor = 1.3;
};

struct DataKeys {
  std::vector<std::string> train;
  std::vector<std::string> validation;
  double validation_fraction = 0.0;
  std::string format = "auto";
  std::string text_key = "text";
  std::string tokenizer = "bytes";
  std::string cache = ".xlstm-cache";
  std::string mode = "packed";
  std::int64_t seq_len = 512;
  std::int64_t batch = 32;
  bool shuffle = true;
  bool random_offset = true;
  bool bos = false;
  bool eos = false;
};

struct TaskKeys {
  std::string name;
  std::int64_t min_length = 1;
  std::int64_t max_length = 40;
  std::int64_t validation_min_length = 40;
  std::int64_t validation_max_length = 256;
  std::int64_t validation_count = 256;
  std::int64_t symbols = 0;
  std::int64_t pairs = 4;
};

struct OptimizerKeys {
  std::string schedule = "cosine";
  double lr = 1e-3;
  double final_lr_factor = 0.1;
  std::int64_t warmup_steps = 0;
  std::int64_t decay_steps = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip = 1.0;
};

struct LoraKeys {
  std::int64_t rank = 0;
  double alpha = 0.0;
  std::vector<std::string> targets = {"all"};
};

struct RunKeys {
  std::string out;
  std::int64_t steps = 1000;
  std::int64_t stop_at = 0;
  std::int64_t seed = 0;
  std::int64_t accumulation = 1;
  std::string compute = "f32";
  std::string recompute = "none";
  bool exact_backward = true;
  std::int64_t threads = 0;
  std::int64_t chunk_size = 0;
  bool resume = false;
  std::int64_t checkpoint_every = 100;
  std::int64_t keep_checkpoints = 2;
  std::int64_t validate_every = 100;
  std::int64_t validation_windows = 0;
  bool keep_best = true;
  std::int64_t sample_every = 0;
  std::string sample_prompt = "\n";
  std::int64_t sample_tokens = 200;
  std::int64_t log_every = 1;
  bool tensorboard = true;
  std::string save_dtype = "f32";
};

struct TrainConfig {
  ModelKeys model;
  DataKeys data;
  TaskKeys task;
  OptimizerKeys optimizer;
  LoraKeys lora;
  RunKeys run;
};

/// One key, as a file and the command line write it.
struct Key {
  using Value = std::variant<bool*, std::int64_t*, double*, std::string*,
                             std::vector<std::int64_t>*, std::vector<std::string>*>;
  std::string section;
  std::string name;
  Value value;
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
  std::vector<std::string> choices = {};  ///< for strings; empty: anything
  bool may_change = false;                ///< a resumed run may have another value

  std::string full_name() const { return section + "." + name; }
  /// "a whole number from 1 to 5", "true or false", "one of a, b": what the key takes.
  std::string expected() const;
  /// The value as TOML writes it.
  std::string text() const;
};
/// Every key, pointing into `config`, in the order of the documentation.
std::vector<Key> list_keys(TrainConfig& config);

/// Reads a TOML file into `config`. @throws Error naming file, line and key
void read_config_file(const std::filesystem::path& path, TrainConfig& config);
void read_config_text(std::string_view toml, const std::string& name, TrainConfig& config);
/// Sets one key from the command line: `name` is "section.key", or "key" where one section has it.
/// Lists have commas. @throws Error(invalid_argument) naming the nearest key
void set_key(TrainConfig& config, const std::string& name, const std::string& value);
/// True for "section.key" or "key" of a switch, which needs no value on the command line.
bool is_switch(const std::string& name);

/// Checks what the bounds of single keys cannot say. `processes` share the batch.
/// @throws Error(invalid_argument) naming the key
void validate(const TrainConfig& config, int processes = 1);
/// The architecture that the [model] section describes, with `vocabulary` ids unless it says how
/// many. @throws Error
Config architecture(const TrainConfig& config, std::int64_t vocabulary);

/// "section.key" and value of every key, for checkpoints.
std::vector<std::pair<std::string, std::string>> snapshot(const TrainConfig& config);
/// Throws Error(invalid_argument) naming the first key that a resumed run must not change.
void check_same(std::span<const std::pair<std::string, std::string>> saved,
                const TrainConfig& config, const std::string& where);

/// The resolved configuration as TOML, every key of it.
std::string to_toml(const TrainConfig& config);

namespace detail {
/// Sets `key` to a value that is in bounds. @throws Error(invalid_argument) with `where` before it
void assign(const Key& key, bool value, const std::string& where);
void assign(const Key& key, std::int64_t value, const std::string& where);
void assign(const Key& key, double value, const std::string& where);
void assign(const Key& key, const std::string& value, const std::string& where);
void assign(const Key& key, std::vector<std::int64_t> value, const std::string& where);
void assign(const Key& key, std::vector<std::string> value, const std::string& where);
/// "; did you mean X?" over all full names, sections or short names.
std::string guess(const std::string& name);
}  // namespace detail

}  // namespace xlstm::train
