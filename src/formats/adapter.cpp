#include "formats/adapter.hpp"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "core/json.hpp"
#include "formats/config_files.hpp"
#include "formats/fields.hpp"

namespace xlstm::formats {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kConfig = "adapter_config.json";
constexpr const char* kTensors = "adapter_model.safetensors";
constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight";
constexpr std::string_view kBaseLayer = ".base_layer.weight";

AdapterConfig parse_config(const std::string& text, const std::string& name) {
  const json object = parse_json(text, name);
  FieldReader read(object, name);
  AdapterConfig config;
  std::string type;
  std::optional<std::string> base, bias;
  read("peft_type", type);
  XLSTM_CHECK(type == "LORA", unsupported, "{}: peft_type: expected \"LORA\", found \"{}\"", name,
              excerpt(type));
  read.expect_required({"r", "lora_alpha"});
  read("r", config.rank);
  read("lora_alpha", config.alpha);
  read("use_rslora", config.root_scale);
  read("base_model_name_or_path", base);
  config.base = base.value_or("");
  XLSTM_CHECK(config.rank >= 1, invalid_file, "{}: r: expected at least 1, found {}", name,
              config.rank);
  XLSTM_CHECK(std::isfinite(config.alpha), invalid_file,
              "{}: lora_alpha: expected a finite number, found {}", name, config.alpha);
  // What changes the formula W + alpha / r B A.
  for (const char* key : {"use_dora", "fan_in_fan_out", "lora_bias"}) {
    std::optional<bool> on;
    read(key, on);
    XLSTM_CHECK(!on.value_or(false), unsupported, "{}: {}: expected false, found true", name, key);
  }
  read("bias", bias);
  XLSTM_CHECK(!bias || *bias == "none", unsupported, "{}: bias: expected \"none\", found \"{}\"",
              name, excerpt(*bias));
  for (const char* key :
       {"rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication"}) {
    const json* value = read.find(key);
    XLSTM_CHECK(value == nullptr || value->empty(), unsupported, "{}: {}: expected none, found {}",
                name, key, describe(*value));
  }
  return config;
}

}  // namespace

double AdapterConfig::scale() const {
  const auto r = static_cast<double>(rank);
  return alpha / (root_scale ? std::sqrt(r) : r);
}

std::string adapter_tensor_name(const std::string& module, bool b) {
  return fmt::format("{}{}{}", kPrefix, module, b ? kB : kA);
}

AdapterFile read_adapter(const fs::path& directory) {
  std::error_code ignored;
  XLSTM_CHECK(fs::exists(directory, ignored), not_found, "{}: no such adapter directory",
              directory.string());
  const fs::path path = directory / kConfig;
  XLSTM_CHECK(fs::is_regular_file(path, ignored), not_found,
              "{}: expected a directory with {} and {}, found no {}", directory.string(), kConfig,
              kTensors, kConfig);
  AdapterFile adapter{.config = parse_config(read_text_file(path), path.string()),
                      .matrices = {},
                      .file = SafetensorsFile::open(directory / kTensors)};
  const std::string& file = adapter.file.name();
  for (const auto& [name, type] : adapter.file.unsupported())
    fail(ErrorCode::unsupported, "{}: tensor '{}': expected f32, bf16 or f16, found {}", file, name,
         type);

  std::map<std::string, AdapterMatrix> modules;
  for (const auto& [name, tensor] : adapter.file.tensors()) {
    // peft adds a copy of the base's head when that is adapted.
    if (name.starts_with(kPrefix) && name.ends_with(kBaseLayer)) continue;
    const bool a = name.ends_with(kA), b = name.ends_with(kB);
    XLSTM_CHECK(name.starts_with(kPrefix) && (a || b), unsupported,
                "{}: tensor '{}': expected names {}<module>{} and {}", file, excerpt(name), kPrefix,
                kA, kB);
    const std::int64_t rank = tensor.rank == 2 ? tensor.dim(a ? 0 : 1) : 0;
    XLSTM_CHECK(rank == adapter.config.rank, invalid_file,
                "{}: tensor '{}': expected shape {} by r of {}, found {}", file, name,
                a ? fmt::format("[{}, in]", adapter.config.rank)
                  : fmt::format("[out, {}]", adapter.config.rank),
                path.string(), to_string(tensor));
    XLSTM_CHECK(is_weight_dtype(tensor.dtype), unsupported,
                "{}: tensor '{}': expected f32, bf16 or f16, found {}", file, name,
                to_string(tensor.dtype));
    const std::string module =
        name.substr(kPrefix.size(), name.size() - kPrefix.size() - (a ? kA : kB).size());
    (a ? modules[module].a : modules[module].b) = tensor;
  }
  XLSTM_CHECK(!modules.empty(), invalid_file, "{}: expected tensors, found none of an adapter",
              file);
  for (auto& [module, matrix] : modules) {
    XLSTM_CHECK(matrix.a && matrix.b, not_found, "{}: tensor '{}' is missing", file,
                adapter_tensor_name(module, !matrix.b));
    matrix.module = module;
    adapter.matrices.push_back(matrix);
  }
  return adapter;
}

void write_adapter(const fs::path& directory, const AdapterConfig& config,
                   std::span<const AdapterMatrix> matrices) {
  std::vector<NamedTensor> tensors;
  for (const AdapterMatrix& m : matrices) {
    tensors.push_back({adapter_tensor_name(m.module, false), m.a});
    tensors.push_back({adapter_tensor_name(m.module, true), m.b});
  }
  make_directory(directory);
  write_safetensors(directory / kTensors, tensors);
  const json object = {{"peft_type", "LORA"},
                       {"task_type", "CAUSAL_LM"},
                       {"base_model_name_or_path", config.base},
                       {"r", config.rank},
                       {"lora_alpha", config.alpha},
                       {"use_rslora", config.root_scale},
                       {"target_modules", config.targets},
                       {"lora_dropout", 0.0},
                       {"bias", "none"},
                       {"fan_in_fan_out", false},
                       {"use_dora", false},
                       {"inference_mode", true}};
  write_file_atomically(directory / kConfig, write_json(object, 2) + "\n");
}

}  // namespace xlstm::formats
