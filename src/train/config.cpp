#include "train/config.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/nearest.hpp"
#include "formats/config_files.hpp"

namespace xlstm::train {
namespace {

constexpr double kMany = 1e15;  // whole numbers up to here are exact in a double
constexpr double kInt32 = 2147483647;

template <class... Types>
struct Overloaded : Types... {
  using Types::operator()...;
};
template <class... Types>
Overloaded(Types...) -> Overloaded<Types...>;

// A string of TOML, which is one of JSON but for DEL; what is not UTF-8 becomes U+FFFD.
std::string quoted(const std::string& text) {
  using Json = nlohmann::json;
  std::string result;
  for (const char c : Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)) {
    if (c == '\x7f')
      result += "\\u007f";
    else
      result += c;
  }
  return result;
}

// "from 0 to 1", "of at least 0" or nothing.
std::string range_text(const Key& key) {
  const bool low = key.min > std::numeric_limits<double>::lowest();
  const bool high = key.max < kMany;
  if (low && high) return fmt::format(" from {:g} to {:.10g}", key.min, key.max);
  if (low) return fmt::format(" of at least {:g}", key.min);
  return high ? fmt::format(" of at most {:.10g}", key.max) : "";
}

[[noreturn]] void wrong(const Key& key, const std::string& where, const std::string& found) {
  fail(ErrorCode::invalid_argument, "{}{}: expected {}, found {}", where, key.full_name(),
       key.expected(), found);
}

template <class Type>
void store(const Key& key, Type value, const std::string& where, const std::string& found) {
  Type* const* target = std::get_if<Type*>(&key.value);
  if (target == nullptr) wrong(key, where, found);
  **target = std::move(value);
}

bool in_range(const Key& key, double value) { return value >= key.min && value <= key.max; }

const Key* find(const std::vector<Key>& keys, const std::string& name) {
  const auto full = std::find_if(keys.begin(), keys.end(),
                                 [&](const Key& key) { return key.full_name() == name; });
  if (full != keys.end()) return &*full;
  const Key* found = nullptr;
  std::vector<std::string> several;
  for (const Key& key : keys) {
    if (key.name != name) continue;
    found = &key;
    several.push_back("--" + key.full_name());
  }
  XLSTM_CHECK(several.size() <= 1, invalid_argument, "--{} stands for several keys: write {}", name,
              fmt::join(several, " or "));
  return found;
}

template <class Number>
bool parse(std::string_view text, Number& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> items;
  if (text.empty()) return items;
  std::size_t begin = 0;
  while (true) {
    const std::size_t comma = text.find(',', begin);
    items.push_back(text.substr(begin, comma - begin));
    if (comma == std::string::npos) return items;
    begin = comma + 1;
  }
}

}  // namespace

std::vector<Key> list_keys(TrainConfig& c) {
  ModelKeys& m = c.model;
  DataKeys& d = c.data;
  TaskKeys& t = c.task;
  OptimizerKeys& o = c.optimizer;
  LoraKeys& l = c.lora;
  RunKeys& r = c.run;
  const std::vector<std::string> dtypes = {"f32", "bf16"};
  return {
      {"model", "config", &m.config},
      {"model", "init_from", &m.init_from},
      {"model", "family", &m.family, 0, 0, {"large", "v1"}},
      {"model", "vocab_size", &m.vocab_size, 0, kInt32},
      {"model", "hidden_size", &m.hidden_size, 1, 1 << 20},
      {"model", "num_blocks", &m.num_blocks, 1, 10000},
      {"model", "num_heads", &m.num_heads, 1, 1 << 20},
      {"model", "qk_dim_factor", &m.qk_dim_factor, 1e-3, 100},
      {"model", "v_dim_factor", &m.v_dim_factor, 1e-3, 100},
      {"model", "ffn_proj_factor", &m.ffn_proj_factor, 1e-3, 100},
      {"model", "gate_soft_cap", &m.gate_soft_cap, 0, 1e6},
      {"model", "output_logit_soft_cap", &m.output_logit_soft_cap, 0, 1e6},
      {"model", "tie_word_embeddings", &m.tie_word_embeddings},
      {"model", "use_bias", &m.use_bias},
      {"model", "dropout", &m.dropout, 0, 0.99},
      {"model", "slstm_at", &m.slstm_at, 0, 9999},
      {"model", "conv1d_kernel_size", &m.conv1d_kernel_size, 1, 64},
      {"model", "slstm_conv1d_kernel_size", &m.slstm_conv1d_kernel_size, 0, 64},
      {"model", "recurrent_weight_init", &m.recurrent_weight_init, 0, 0, {"zeros", "standard"}},
      {"model",
       "bias_init",
       &m.bias_init,
       0,
       0,
       {"powerlaw_blockdependent", "small_init", "zeros", "standard"}},
      {"model", "mlstm_proj_factor", &m.mlstm_proj_factor, 1e-3, 100},
      {"model", "slstm_ffn_proj_factor", &m.slstm_ffn_proj_factor, 1e-3, 100},

      {"data", "train", &d.train},
      {"data", "validation", &d.validation},
      {"data", "validation_fraction", &d.validation_fraction, 0, 0.9},
      {"data", "format", &d.format, 0, 0, {"auto", "text", "jsonl"}},
      {"data", "text_key", &d.text_key},
      {"data", "tokenizer", &d.tokenizer},
      {"data", "cache", &d.cache, 0, 0, {}, true},
      {"data", "mode", &d.mode, 0, 0, {"packed", "stream"}},
      {"data", "seq_len", &d.seq_len, 1, 1 << 24},
      {"data", "batch", &d.batch, 1, 1 << 24},
      {"data", "shuffle", &d.shuffle},
      {"data", "random_offset", &d.random_offset},
      {"data", "bos", &d.bos},
      {"data", "eos", &d.eos},

      {"task", "name", &t.name},
      {"task", "min_length", &t.min_length, 1, 1 << 20},
      {"task", "max_length", &t.max_length, 1, 1 << 20},
      {"task", "validation_min_length", &t.validation_min_length, 1, 1 << 20},
      {"task", "validation_max_length", &t.validation_max_length, 1, 1 << 20},
      {"task", "validation_count", &t.validation_count, 1, 1 << 24},
      {"task", "symbols", &t.symbols, 0, 1 << 20},
      {"task", "pairs", &t.pairs, 1, 1 << 20},

      {"optimizer", "schedule", &o.schedule, 0, 0, {"cosine", "linear", "wsd", "constant"}},
      {"optimizer", "lr", &o.lr, 0, 100},
      {"optimizer", "final_lr_factor", &o.final_lr_factor, 0, 1},
      {"optimizer", "warmup_steps", &o.warmup_steps, 0, kMany},
      {"optimizer", "decay_steps", &o.decay_steps, 0, kMany},
      {"optimizer", "beta1", &o.beta1, 0, 0.999999},
      {"optimizer", "beta2", &o.beta2, 0, 0.999999},
      {"optimizer", "eps", &o.eps, 1e-30, 1},
      {"optimizer", "weight_decay", &o.weight_decay, 0, 100},
      {"optimizer", "clip", &o.clip, 0, 1e9},

      {"lora", "rank", &l.rank, 0, 65536},
      {"lora", "alpha", &l.alpha, 0, 1e9},
      {"lora", "targets", &l.targets},

      {"run", "out", &r.out, 0, 0, {}, true},
      {"run", "steps", &r.steps, 1, kMany},
      {"run", "stop_at", &r.stop_at, 0, kMany, {}, true},
      {"run", "seed", &r.seed, 0, kMany},
      {"run", "accumulation", &r.accumulation, 1, 1 << 20},
      {"run", "compute", &r.compute, 0, 0, dtypes},
      {"run", "recompute", &r.recompute, 0, 0, {"none", "norms", "blocks"}, true},
      {"run", "exact_backward", &r.exact_backward},
      {"run", "threads", &r.threads, 0, 4096, {}, true},
      {"run", "chunk_size", &r.chunk_size, 0, 4096},
      {"run", "resume", &r.resume, 0, 0, {}, true},
      {"run", "checkpoint_every", &r.checkpoint_every, 0, kMany, {}, true},
      {"run", "keep_checkpoints", &r.keep_checkpoints, 1, 1000, {}, true},
      {"run", "validate_every", &r.validate_every, 0, kMany, {}, true},
      {"run", "validation_windows", &r.validation_windows, 0, kMany, {}, true},
      {"run", "keep_best", &r.keep_best, 0, 0, {}, true},
      {"run", "sample_every", &r.sample_every, 0, kMany, {}, true},
      {"run", "sample_prompt", &r.sample_prompt, 0, 0, {}, true},
      {"run", "sample_tokens", &r.sample_tokens, 1, 1 << 20, {}, true},
      {"run", "log_every", &r.log_every, 1, kMany, {}, true},
      {"run", "tensorboard", &r.tensorboard, 0, 0, {}, true},
      {"run", "save_dtype", &r.save_dtype, 0, 0, {"f32", "bf16", "f16"}, true},
  };
}

std::string Key::expected() const {
  return std::visit(
      Overloaded{
          [](bool*) -> std::string { return "true or false"; },
          [&](std::int64_t*) { return "a whole number" + range_text(*this); },
          [&](double*) { return "a number" + range_text(*this); },
          [&](std::string*) {
            return choices.empty() ? std::string("text")
                                   : fmt::format("one of {}", fmt::join(choices, ", "));
          },
          [&](std::vector<std::int64_t>*) { return "a list of whole numbers" + range_text(*this); },
          [](std::vector<std::string>*) -> std::string { return "a list of texts"; }},
      value);
}

std::string Key::text() const {
  return std::visit(Overloaded{[](const bool* v) -> std::string { return *v ? "true" : "false"; },
                               [](const std::int64_t* v) { return fmt::format("{}", *v); },
                               [](const double* v) { return fmt::format("{}", *v); },
                               [](const std::string* v) { return quoted(*v); },
                               [](const std::vector<std::int64_t>* v) {
                                 return fmt::format("[{}]", fmt::join(*v, ", "));
                               },
                               [](const std::vector<std::string>* v) {
                                 std::vector<std::string> items;
                                 for (const std::string& item : *v) items.push_back(quoted(item));
                                 return fmt::format("[{}]", fmt::join(items, ", "));
                               }},
                    value);
}

namespace detail {

void assign(const Key& key, bool value, const std::string& where) {
  store(key, value, where, value ? "true" : "false");
}

void assign(const Key& key, std::int64_t value, const std::string& where) {
  if (std::holds_alternative<double*>(key.value))
    return assign(key, static_cast<double>(value), where);
  if (!std::holds_alternative<std::int64_t*>(key.value) ||
      !in_range(key, static_cast<double>(value)))
    wrong(key, where, fmt::format("{}", value));
  store(key, value, where, {});
}

void assign(const Key& key, double value, const std::string& where) {
  if (!std::holds_alternative<double*>(key.value) || !in_range(key, value))  // NaN is in no range
    wrong(key, where, fmt::format("{}", value));
  store(key, value, where, {});
}

void assign(const Key& key, const std::string& value, const std::string& where) {
  if (std::holds_alternative<std::vector<std::string>*>(key.value))
    return assign(key, std::vector<std::string>{value}, where);
  if (!std::holds_alternative<std::string*>(key.value) ||
      (!key.choices.empty() &&
       std::find(key.choices.begin(), key.choices.end(), value) == key.choices.end()))
    wrong(key, where, quoted(value));
  store(key, value, where, {});
}

void assign(const Key& key, std::vector<std::int64_t> value, const std::string& where) {
  for (const std::int64_t item : value)
    if (!in_range(key, static_cast<double>(item))) wrong(key, where, fmt::format("{}", item));
  store(key, std::move(value), where, "a list of whole numbers");
}

void assign(const Key& key, std::vector<std::string> value, const std::string& where) {
  store(key, std::move(value), where, "a list of texts");
}

std::string guess(const std::string& name) {
  TrainConfig config;
  std::vector<std::string> names;
  const bool full = name.find('.') != std::string::npos;
  for (const Key& key : list_keys(config)) names.push_back(full ? key.full_name() : key.name);
  const std::string best = nearest(name, names);
  if (best.empty()) return "";
  if (full) return fmt::format("; did you mean {}?", best);
  const std::size_t at =
      static_cast<std::size_t>(std::find(names.begin(), names.end(), best) - names.begin());
  return fmt::format("; did you mean {}?", list_keys(config)[at].full_name());
}

}  // namespace detail

bool is_switch(const std::string& name) {
  TrainConfig config;
  const std::vector<Key> keys = list_keys(config);
  const Key* key = find(keys, name);
  return key != nullptr && std::holds_alternative<bool*>(key->value);
}

void set_key(TrainConfig& config, const std::string& name, const std::string& text) {
  const std::vector<Key> keys = list_keys(config);
  const Key* key = find(keys, name);
  XLSTM_CHECK(key != nullptr, invalid_argument, "unknown key '{}'{}", name, detail::guess(name));
  const std::string where = "--";
  std::visit(
      Overloaded{[&](bool*) {
                   if (text != "true" && text != "false") wrong(*key, where, quoted(text));
                   detail::assign(*key, text == "true", where);
                 },
                 [&](std::int64_t*) {
                   std::int64_t value = 0;
                   if (!parse(text, value)) wrong(*key, where, quoted(text));
                   detail::assign(*key, value, where);
                 },
                 [&](double*) {
                   double value = 0;
                   if (!parse(text, value)) wrong(*key, where, quoted(text));
                   detail::assign(*key, value, where);
                 },
                 [&](std::string*) { detail::assign(*key, text, where); },
                 [&](std::vector<std::int64_t>*) {
                   std::vector<std::int64_t> values;
                   for (const std::string& item : split(text))
                     if (!parse(item, values.emplace_back())) wrong(*key, where, quoted(item));
                   detail::assign(*key, std::move(values), where);
                 },
                 [&](std::vector<std::string>*) { detail::assign(*key, split(text), where); }},
      key->value);
}

void validate(const TrainConfig& c, int processes) {
  XLSTM_CHECK(!c.run.out.empty(), invalid_argument,
              "run.out: expected the directory to write to, found \"\"");
  XLSTM_CHECK(c.data.train.empty() != c.task.name.empty(), invalid_argument,
              "expected either data.train (files) or task.name, found {}",
              c.task.name.empty() ? "neither" : "both");
  XLSTM_CHECK(c.data.validation.empty() || c.data.validation_fraction == 0, invalid_argument,
              "data.validation and data.validation_fraction: expected at most one of them");
  const std::int64_t shares = c.run.accumulation * processes;
  XLSTM_CHECK(c.data.batch % shares == 0, invalid_argument,
              "data.batch: expected a multiple of {} (run.accumulation {} times {} processes), "
              "found {}",
              shares, c.run.accumulation, processes, c.data.batch);
  XLSTM_CHECK(c.optimizer.warmup_steps + c.optimizer.decay_steps <= c.run.steps, invalid_argument,
              "optimizer.warmup_steps + optimizer.decay_steps: expected at most run.steps = {}, "
              "found {} + {}",
              c.run.steps, c.optimizer.warmup_steps, c.optimizer.decay_steps);
  XLSTM_CHECK(c.optimizer.schedule != "wsd" || c.optimizer.decay_steps > 0, invalid_argument,
              "optimizer.decay_steps: the schedule wsd expects at least 1, found 0");
  XLSTM_CHECK(c.task.name.empty() || (c.task.min_length <= c.task.max_length &&
                                      c.task.validation_min_length <= c.task.validation_max_length),
              invalid_argument, "task: expected min_length <= max_length, in validation too");
  XLSTM_CHECK(c.data.mode != "stream" || c.task.name.empty(), invalid_argument,
              "data.mode: a task has no streams, expected \"packed\"");
  XLSTM_CHECK(c.model.config.empty() || c.model.init_from.empty(), invalid_argument,
              "model.config and model.init_from: expected at most one of them");
  XLSTM_CHECK(c.lora.rank == 0 || !c.model.init_from.empty(), invalid_argument,
              "lora.rank: an adapter needs a model to adapt: set model.init_from");
  XLSTM_CHECK(c.lora.rank == 0 || !c.lora.targets.empty(), invalid_argument,
              "lora.targets: expected names of matrices or \"all\", found none");
  // The ids are not counted yet: any vocab_size does.
  if (c.model.config.empty() && c.model.init_from.empty()) architecture(c, 1);
}

Config architecture(const TrainConfig& c, std::int64_t vocabulary) {
  const ModelKeys& m = c.model;
  Config config;
  if (!m.config.empty()) {
    const std::filesystem::path path = m.config;
    const std::string text = formats::read_text_file(path);
    config = path.extension() == ".yaml" ? formats::parse_nxai_config(text, m.config)
                                         : formats::parse_hf_config(text, m.config);
    XLSTM_CHECK(config.unknown.empty(), invalid_argument, "{}: unknown key '{}'", m.config,
                config.unknown.begin()->first);
    if (m.vocab_size > 0) config.vocab_size = m.vocab_size;
  } else {
    config.vocab_size = m.vocab_size > 0 ? m.vocab_size : (vocabulary + 63) / 64 * 64;
    config.hidden_size = m.hidden_size;
    config.num_blocks = m.num_blocks;
    config.num_heads = m.num_heads;
    config.use_bias = m.use_bias;
    config.tie_word_embeddings = m.tie_word_embeddings;
    config.qk_dim_factor = m.qk_dim_factor;
    config.v_dim_factor = m.v_dim_factor;
    config.ffn_proj_factor = m.ffn_proj_factor;
    config.gate_soft_cap.reset();
    config.output_logit_soft_cap.reset();
    if (m.gate_soft_cap > 0) config.gate_soft_cap = m.gate_soft_cap;
    if (m.output_logit_soft_cap > 0) config.output_logit_soft_cap = m.output_logit_soft_cap;
    config.bos_token_id.reset();
    config.eos_token_id.clear();
    config.pad_token_id.reset();
    if (m.family == "v1") {
      BlockStackConfig stack;
      stack.slstm_at = m.slstm_at;
      std::sort(stack.slstm_at.begin(), stack.slstm_at.end());
      stack.bias = m.use_bias;
      stack.dropout = m.dropout;
      const auto slstm_blocks = static_cast<std::int64_t>(stack.slstm_at.size());
      if (slstm_blocks < m.num_blocks) {
        stack.mlstm.emplace();
        stack.mlstm->num_heads = m.num_heads;
        stack.mlstm->conv1d_kernel_size = m.conv1d_kernel_size;
        stack.mlstm->proj_factor = m.mlstm_proj_factor;
      }
      if (slstm_blocks > 0) {
        stack.slstm.emplace();
        stack.slstm->num_heads = m.num_heads;
        stack.slstm->conv1d_kernel_size = m.slstm_conv1d_kernel_size;
        stack.slstm->recurrent_weight_init = m.recurrent_weight_init;
        stack.slstm->bias_init = m.bias_init;
        stack.slstm->ffn_proj_factor = m.slstm_ffn_proj_factor;
      }
      config.block_stack = stack;
    } else {
      XLSTM_CHECK(m.slstm_at.empty(), invalid_argument,
                  "model.slstm_at: expected an empty list with model.family \"large\", found {}",
                  fmt::join(m.slstm_at, ", "));
    }
  }
  config.validate("model");
  XLSTM_CHECK(config.vocab_size >= vocabulary, invalid_argument,
              "model.vocab_size: expected at least the {} ids of the data, found {}", vocabulary,
              config.vocab_size);
  return config;
}

std::vector<std::pair<std::string, std::string>> snapshot(const TrainConfig& config) {
  TrainConfig copy = config;
  std::vector<std::pair<std::string, std::string>> result;
  for (const Key& key : list_keys(copy)) result.emplace_back(key.full_name(), key.text());
  return result;
}

std::string to_toml(const TrainConfig& config) {
  TrainConfig copy = config;
  std::string text, section;
  for (const Key& key : list_keys(copy)) {
    if (key.section != section)
      text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", key.section);
    section = key.section;
    text += fmt::format("{} = {}\n", key.name, key.text());
  }
  return text;
}

void check_same(std::span<const std::pair<std::string, std::string>> saved,
                const TrainConfig& config, const std::string& where) {
  TrainConfig copy = config;
  for (const Key& key : list_keys(copy)) {
    if (key.may_change) continue;
    const auto found = std::find_if(saved.begin(), saved.end(), [&](const auto& entry) {
      return entry.first == key.full_name();
    });
    const std::string before = found == saved.end() ? "nothing" : found->second;
    XLSTM_CHECK(before == key.text(), invalid_argument,
                "{}: {}: the run was started with {}, found {}; a resumed run cannot change it",
                where, key.full_name(), before, key.text());
  }
}

}  // namespace xlstm::train
