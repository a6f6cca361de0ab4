#include "formats/block_stack.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/check.hpp"
#include "core/json.hpp"
#include "formats/fields.hpp"

namespace xlstm::formats {
namespace {

using nlohmann::json;

// Every field with a key of its own; reading and writing are loops over them.
template <class C, class Visitor>
void visit_stack(C& stack, Visitor&& visit) {
  visit("context_length", stack.context_length);
  visit("bias", stack.bias);
  visit("dropout", stack.dropout);
  visit("add_post_blocks_norm", stack.add_post_blocks_norm);
  visit("apply_post_blocks_norm", stack.apply_post_blocks_norm);
  visit("weight_decay_on_embedding", stack.weight_decay_on_embedding);
  visit("add_embedding_dropout", stack.add_embedding_dropout);
}

template <class C, class Visitor>
void visit_mlstm(C& layer, Visitor&& visit) {
  visit("num_heads", layer.num_heads);
  visit("conv1d_kernel_size", layer.conv1d_kernel_size);
  visit("qkv_proj_blocksize", layer.qkv_proj_blocksize);
  visit("proj_factor", layer.proj_factor);
  visit("round_proj_up_to_multiple_of", layer.round_proj_up_to_multiple_of);
}

template <class C, class Visitor>
void visit_slstm(C& layer, Visitor&& visit) {
  visit("num_heads", layer.num_heads);
  visit("conv1d_kernel_size", layer.conv1d_kernel_size);
  visit("group_norm_weight", layer.group_norm_weight);
  visit("bias_init", layer.bias_init);
  visit("recurrent_weight_init", layer.recurrent_weight_init);
  visit("gradient_recurrent_cut", layer.gradient_recurrent_cut);
  visit("gradient_recurrent_clipval", layer.gradient_recurrent_clipval);
}

template <class C, class Visitor>
void visit_feed_forward(C& layer, Visitor&& visit) {
  visit("proj_factor", layer.ffn_proj_factor);
  visit("act_fn", layer.ffn_act_fn);
  visit("bias", layer.ffn_bias);
  visit("dropout", layer.ffn_dropout);
  visit("round_proj_up_to_multiple_of", layer.ffn_round_proj_up_to_multiple_of);
}

// Said of a reference kernel, of what is derived, or given by the stack: nothing here depends on
// it.
constexpr const char* kIgnored[] = {"_num_blocks",
                                    "_block_idx",
                                    "_block_map",
                                    "_inner_embedding_dim",
                                    "_proj_up_dim",
                                    "embedding_dim",
                                    "bias",
                                    "dropout",
                                    "dtype",
                                    "dtype_b",
                                    "dtype_r",
                                    "dtype_w",
                                    "dtype_g",
                                    "dtype_s",
                                    "dtype_a",
                                    "enable_automatic_mixed_precision",
                                    "backend",
                                    "batch_size",
                                    "input_shape",
                                    "internal_input_shape",
                                    "output_shape",
                                    "num_gates",
                                    "num_states",
                                    "hidden_size",
                                    "context_length",
                                    "conv1d_kernel",
                                    "round_proj_up_dim_up",
                                    "forward_clipval",
                                    "initial_val",
                                    "constants"};

// The object under `key`, or null if it is absent or null.
const json* find_object(FieldReader& reader, const char* key, const std::string& name) {
  const json* value = reader.find(key);
  if (value == nullptr || value->is_null()) return nullptr;
  XLSTM_CHECK(value->is_object(), invalid_file, "{}: {}: expected an object of settings, found {}",
              name, key, describe(*value));
  return value;
}

// Adds what `reader` was never asked for to the unknown settings at `path`.
void keep_unknown(const FieldReader& reader, const json::json_pointer& path, Config& config) {
  for (const auto& [key, value] : reader.rest())
    config.block_stack->unknown.emplace((path / key).to_string(), value);
}
void ignore_kernel_choices(FieldReader& reader) {
  for (const char* key : kIgnored) reader.find(key);
}

void expect_choice(FieldReader& reader, const char* key, const char* only,
                   const std::string& name) {
  std::string value = only;
  reader(key, value);
  XLSTM_CHECK(value == only, unsupported,
              "{}: {}: expected '{}', the only one supported, found '{}'", name, key, only,
              excerpt(value));
}

void read_mlstm_block(const json& block, const std::string& name, Config& config) {
  FieldReader reader(block, name);
  MlstmBlockConfig& layer = config.block_stack->mlstm.emplace();
  if (const json* settings = find_object(reader, "mlstm", name)) {
    const std::string inner = name + ": mlstm";
    FieldReader fields(*settings, inner);
    visit_mlstm(layer, fields);
    ignore_kernel_choices(fields);
    keep_unknown(fields, json::json_pointer("/mlstm_block/mlstm"), config);
  }
  ignore_kernel_choices(reader);
  keep_unknown(reader, json::json_pointer("/mlstm_block"), config);
}

void read_slstm_block(const json& block, const std::string& name, Config& config) {
  FieldReader reader(block, name);
  SlstmBlockConfig& layer = config.block_stack->slstm.emplace();
  if (const json* settings = find_object(reader, "slstm", name)) {
    const std::string inner = name + ": slstm";
    FieldReader fields(*settings, inner);
    expect_choice(fields, "function", "slstm", inner);
    visit_slstm(layer, fields);
    ignore_kernel_choices(fields);
    keep_unknown(fields, json::json_pointer("/slstm_block/slstm"), config);
  }
  // Absent: the default layer; null: none.
  layer.has_feed_forward = !block.contains("feedforward") || !block["feedforward"].is_null();
  if (const json* settings = find_object(reader, "feedforward", name)) {
    const std::string inner = name + ": feedforward";
    FieldReader fields(*settings, inner);
    visit_feed_forward(layer, fields);
    expect_choice(fields, "ff_type", "ffn_gated", inner);
    ignore_kernel_choices(fields);
    keep_unknown(fields, json::json_pointer("/slstm_block/feedforward"), config);
  }
  ignore_kernel_choices(reader);
  keep_unknown(reader, json::json_pointer("/slstm_block"), config);
}

// slstm_at: a list of indices, or "all".
std::vector<std::int64_t> read_positions(FieldReader& reader, const Config& config,
                                         const std::string& name) {
  const json* value = reader.find("slstm_at");
  std::vector<std::int64_t> positions;
  if (!config.block_stack->mlstm || (value != nullptr && *value == "all")) {
    constexpr std::int64_t kMost = 4096;  // no configuration with more is valid
    positions.resize(
        static_cast<std::size_t>(std::clamp<std::int64_t>(config.num_blocks, 0, kMost)));
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
  }
  if (value == nullptr || value->is_null()) return positions;
  XLSTM_CHECK(value->is_array(), invalid_file, "{}: slstm_at: expected a list or 'all', found {}",
              name, describe(*value));
  reader("slstm_at", positions);
  std::sort(positions.begin(), positions.end());
  return positions;
}

void read_stack(FieldReader& reader, const std::string& name, Config& config) {
  BlockStackConfig& stack = config.block_stack.emplace();
  reader("num_blocks", config.num_blocks);
  reader("embedding_dim", config.hidden_size);
  reader("vocab_size", config.vocab_size);
  reader("tie_weights", config.tie_word_embeddings);
  visit_stack(stack, reader);
  if (const json* block = find_object(reader, "mlstm_block", name))
    read_mlstm_block(*block, name + ": mlstm_block", config);
  if (const json* block = find_object(reader, "slstm_block", name))
    read_slstm_block(*block, name + ": slstm_block", config);
  stack.slstm_at = read_positions(reader, config, name);
  reader.find("_block_map");  // what slstm_at says
  keep_unknown(reader, json::json_pointer(), config);
}

// NX-AI's defaults where they differ from Hugging Face's; what says nothing about such a model is
// left at values that no reader could take for a setting.
Config defaults() {
  Config config;
  config.num_blocks = 1;
  config.hidden_size = 128;
  config.vocab_size = 0;  // xLSTMBlockStackConfig has none
  config.num_heads = 1;
  config.gate_soft_cap.reset();
  config.output_logit_soft_cap.reset();
  config.bos_token_id.reset();
  config.eos_token_id.clear();
  config.pad_token_id.reset();
  return config;
}

}  // namespace

const char* torch_name(DType dtype) noexcept {
  return dtype == DType::f32 ? "float32" : dtype == DType::bf16 ? "bfloat16" : "float16";
}

bool is_block_stack(const json& object) {
  return object.is_object() && (object.contains("mlstm_block") || object.contains("slstm_block"));
}

Config read_block_stack(const json& object, const std::string& name) {
  Config config = defaults();
  FieldReader reader(object, name);
  read_stack(reader, name, config);
  return config;
}

Config read_community_config(const json& object, const std::string& name) {
  Config config = defaults();
  FieldReader outer(object, name);
  const json* nested = find_object(outer, "_xlstm_config", name);
  XLSTM_CHECK(nested != nullptr, invalid_file, "{}: _xlstm_config: expected an object, found null",
              name);
  const std::string inner = name + ": _xlstm_config";
  FieldReader reader(*nested, inner);
  outer("vocab_size", config.vocab_size);  // what the nested object says counts
  read_stack(reader, inner, config);
  // A stack alone has no such frame around it.
  XLSTM_CHECK(config.vocab_size > 0, invalid_file,
              "{}: vocab_size: expected a whole number of at least 1, {}", name,
              nested->contains("vocab_size") || object.contains("vocab_size") ? "found 0"
                                                                              : "it is missing");
  outer("bos_token_id", config.bos_token_id);
  outer("eos_token_id", config.eos_token_id);
  outer("pad_token_id", config.pad_token_id);
  outer("force_bos_token_insert", config.force_bos_token_insert);
  for (const char* key :
       {"model_type", "architectures", "dtype", "torch_dtype", "embedding_dim", "context_length",
        "transformers_version", "tie_word_embeddings", "auto_map"})
    outer.find(key);
  config.unknown = outer.rest();
  return config;
}

json write_community_config(const Config& config, DType dtype) {
  const BlockStackConfig& stack = *config.block_stack;
  const bool stack_alone = config.vocab_size == 0;
  json nested = {{"num_blocks", config.num_blocks},
                 {"embedding_dim", config.hidden_size},
                 {"slstm_at", stack.slstm_at}};
  if (!stack_alone) {
    nested["vocab_size"] = config.vocab_size;
    nested["tie_weights"] = config.tie_word_embeddings;
  }
  visit_stack(stack, FieldWriter{nested});
  if (stack_alone) {  // settings of NX-AI's language model, which its stack does not know
    nested.erase("weight_decay_on_embedding");
    nested.erase("add_embedding_dropout");
  }
  if (stack.apply_post_blocks_norm) nested.erase("apply_post_blocks_norm");  // ours alone
  if (stack.mlstm) {
    json layer = json::object();
    visit_mlstm(*stack.mlstm, FieldWriter{layer});
    nested["mlstm_block"] = {{"mlstm", layer}};
  }
  if (stack.slstm) {
    json layer = json::object(), feed_forward = json();
    visit_slstm(*stack.slstm, FieldWriter{layer});
    layer["backend"] = "vanilla";  // the layout in which R and b are written
    if (stack.slstm->has_feed_forward) {
      feed_forward = json::object();
      visit_feed_forward(*stack.slstm, FieldWriter{feed_forward});
    }
    nested["slstm_block"] = {{"slstm", layer}, {"feedforward", feed_forward}};
  }
  const auto parse_unknown = [](const std::string& key, const std::string& value) {
    return parse_json(value, fmt::format("config: unknown key '{}'", excerpt(key)));
  };
  for (const auto& [path, value] : stack.unknown)
    nested[json::json_pointer(path)] = parse_unknown(path, value);
  if (stack_alone) return nested;
  json object = json::object();
  for (const auto& [key, value] : config.unknown) object[key] = parse_unknown(key, value);
  object["model_type"] = "xlstm";
  object["architectures"] = {"xLSTMForCausalLM"};
  object["torch_dtype"] = torch_name(dtype);
  object["vocab_size"] = config.vocab_size;
  object["embedding_dim"] = config.hidden_size;
  object["context_length"] = stack.context_length;
  FieldWriter write{object};
  if (config.bos_token_id) write("bos_token_id", config.bos_token_id);
  if (!config.eos_token_id.empty()) write("eos_token_id", config.eos_token_id);
  if (config.pad_token_id) write("pad_token_id", config.pad_token_id);
  if (config.force_bos_token_insert) write("force_bos_token_insert", config.force_bos_token_insert);
  object["_xlstm_config"] = nested;
  return object;
}

}  // namespace xlstm::formats
