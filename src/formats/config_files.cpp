#include "formats/config_files.hpp"

#include <limits>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/json.hpp"
#include "formats/block_stack.hpp"
#include "formats/fields.hpp"
#include "formats/mapped_file.hpp"
#include "formats/yaml.hpp"
#include "xlstm/dtype.hpp"

namespace xlstm::formats {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxTextBytes = std::size_t{256} << 20;

/// Every field that has one key of its own, in one place: reading and writing are loops over it.
/// hidden_size and num_blocks are not here; they have two keys each.
template <class C, class Visitor>
void visit_fields(C& config, Visitor&& visit) {
  visit("vocab_size", config.vocab_size);
  visit("num_heads", config.num_heads);
  visit("use_bias", config.use_bias);
  visit("tie_word_embeddings", config.tie_word_embeddings);
  visit("add_out_norm", config.add_out_norm);
  visit("norm_eps", config.norm_eps);
  visit("qk_dim_factor", config.qk_dim_factor);
  visit("v_dim_factor", config.v_dim_factor);
  visit("ffn_proj_factor", config.ffn_proj_factor);
  visit("ffn_round_up_to_multiple_of", config.ffn_round_up_to_multiple_of);
  visit("gate_soft_cap", config.gate_soft_cap);
  visit("output_logit_soft_cap", config.output_logit_soft_cap);
  visit("weight_mode", config.weight_mode);
  visit("eps", config.eps);
  visit("chunk_size", config.chunk_size);
  visit("max_inference_chunksize", config.max_inference_chunksize);
  visit("bos_token_id", config.bos_token_id);
  visit("eos_token_id", config.eos_token_id);
  visit("pad_token_id", config.pad_token_id);
  visit("force_bos_token_insert", config.force_bos_token_insert);
  visit("norm_reduction_force_float32", config.norm_reduction_force_float32);
  visit("return_last_states", config.return_last_states);
  visit("use_cache", config.use_cache);
  visit("mode", config.mode);
  visit("chunkwise_kernel", config.chunkwise_kernel);
  visit("sequence_kernel", config.sequence_kernel);
  visit("step_kernel", config.step_kernel);
  visit("autocast_kernel_dtype", config.autocast_kernel_dtype);
  visit("inference_state_dtype", config.inference_state_dtype);
  visit("normalize_siging", config.normalize_siging);
}

/// Both kinds of file name their fields alike; `config` holds the defaults of the kind.
void read_fields(FieldReader& reader, Config& config) {
  for (const char* key : {"add_qk_norm", "add_post_norm", "quantization_config"})
    reader.expect_off(key);
  reader.alias("hidden_size", "embedding_dim", config.hidden_size);
  reader.alias("num_hidden_layers", "num_blocks", config.num_blocks);
  visit_fields(config, reader);
  // Said about the file, not about the model; write_hf_config writes its own.
  for (const char* key :
       {"model_type", "architectures", "dtype", "torch_dtype", "transformers_version"})
    reader.find(key);
  config.unknown = reader.rest();
}

/// What a user gave is an argument; what a file gave is its content.
void validate_file(const Config& config, const std::string& name) {
  try {
    config.validate(name);
  } catch (const Error& error) {
    fail(ErrorCode::invalid_file, "{}", error.what());
  }
}

std::int32_t to_token_id(const std::string& name, const char* key, std::int64_t id) {
  XLSTM_CHECK(id >= 0 && id <= std::numeric_limits<std::int32_t>::max(), invalid_file,
              "{}: {}: expected 0 to {}, found {}", name, key,
              std::numeric_limits<std::int32_t>::max(), id);
  return static_cast<std::int32_t>(id);
}

}  // namespace

Config parse_hf_config(std::string_view text, const std::string& name) {
  const json object = parse_json(text, name);
  FieldReader reader(object, name);

  if (is_block_stack(object)) {  // NX-AI's settings, saved as JSON
    Config config = read_block_stack(object, name);
    validate_file(config, name);
    return config;
  }

  std::optional<std::string> model_type;
  reader("model_type", model_type);
  XLSTM_CHECK(model_type, invalid_file, "{}: model_type: expected 'xlstm', found none", name);
  XLSTM_CHECK(*model_type == "xlstm", unsupported, "{}: model_type: expected 'xlstm', found '{}'",
              name, excerpt(*model_type));
  if (object.contains("_xlstm_config")) {
    Config config = read_community_config(object, name);
    validate_file(config, name);
    return config;
  }
  Config config;
  read_fields(reader, config);
  validate_file(config, name);
  return config;
}

Config parse_nxai_config(std::string_view text, const std::string& name) {
  const json object = parse_yaml(text, name);
  if (is_block_stack(object)) {
    Config config = read_block_stack(object, name);
    validate_file(config, name);
    return config;
  }
  // Kept as an unknown key it would make the config.json written from this another model's.
  XLSTM_CHECK(!object.contains("_xlstm_config"), invalid_file,
              "{}: _xlstm_config: expected in a config.json alone, beside model_type xlstm", name);
  FieldReader reader(object, name);
  reader.expect_required({"embedding_dim", "num_heads", "num_blocks", "vocab_size"});

  Config config;  // with the defaults of xLSTMLargeConfig where they differ
  config.chunkwise_kernel = "chunkwise--triton_limit_chunk";
  config.sequence_kernel = "native_sequence__triton";
  config.step_kernel = "triton";
  config.mode = "train";
  config.return_last_states = false;
  config.ffn_proj_factor = 2.6667;
  config.bos_token_id.reset();
  config.eos_token_id.clear();
  config.pad_token_id.reset();
  read_fields(reader, config);
  validate_file(config, name);
  return config;
}

std::string write_hf_config(const Config& config, std::string_view dtype) {
  config.validate();
  const auto type = parse_dtype(dtype);
  XLSTM_CHECK(type && is_weight_dtype(*type), invalid_argument,
              "config: dtype: expected f32, bf16 or f16, found '{}'", dtype);
  if (config.block_stack) return write_json(write_community_config(config, *type), 2) + "\n";
  json object = json::object();
  for (const auto& [key, value] : config.unknown)
    object[key] = parse_json(value, fmt::format("config: unknown key '{}'", excerpt(key)));

  object["model_type"] = "xlstm";
  object["architectures"] = {"xLSTMForCausalLM"};
  object["dtype"] = torch_name(*type);
  object["hidden_size"] = object["embedding_dim"] = config.hidden_size;
  object["num_hidden_layers"] = object["num_blocks"] = config.num_blocks;
  visit_fields(config, FieldWriter{object});
  if (!config.force_bos_token_insert) object.erase("force_bos_token_insert");
  // transformers generates in this mode only, and with these kernels without further packages.
  object["mode"] = "inference";
  object["return_last_states"] = true;
  const bool sigmoid = config.has_sigmoid_input_gate();  // which transformers does not have
  if (!sigmoid) object.erase("normalize_siging");
  if (!sigmoid && config.chunkwise_kernel != "parallel--native_autograd")
    object["chunkwise_kernel"] = "chunkwise--native_autograd";
  object["sequence_kernel"] = "native_sequence__native";
  object["step_kernel"] = "native";
  return write_json(object, 2) + "\n";
}

GenerationDefaults parse_generation_config(std::string_view text, const std::string& name) {
  const json object = parse_json(text, name);
  FieldReader reader(object, name);
  std::optional<std::int64_t> bos;
  std::vector<std::int64_t> eos;
  reader("bos_token_id", bos);
  reader("eos_token_id", eos);
  GenerationDefaults defaults;
  if (bos) defaults.bos_id = to_token_id(name, "bos_token_id", *bos);
  for (const std::int64_t id : eos)
    defaults.eos_ids.push_back(to_token_id(name, "eos_token_id", id));
  return defaults;
}

std::string read_text_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  XLSTM_CHECK(bytes.size() <= kMaxTextBytes, io,
              "{}: expected a text of at most {} bytes, found {}", path.string(), kMaxTextBytes,
              bytes.size());
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace xlstm::formats
