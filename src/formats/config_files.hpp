#pragma once
// Configurations on disk: Hugging Face's config.json and NX-AI's config.yaml.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "xlstm/config.hpp"

namespace xlstm::formats {

/// Parses the text of a config.json (specification A.1) and validates it. `name` is for messages.
/// @throws Error(invalid_file) naming the key, expected and found; Error(unsupported) for another
///         model_type or an architecture that differs from the published one
Config parse_hf_config(std::string_view json, const std::string& name);
/// Parses the text of an NX-AI xlstm_large config.yaml; absent keys have that package's defaults.
Config parse_nxai_config(std::string_view yaml, const std::string& name);

/// The text of a config.json that transformers reads and generates with, unknown keys included.
/// `dtype` is that of the weights. What chooses an implementation and not a result (kernels, mode)
/// is written as transformers needs it without further packages.
std::string write_hf_config(const Config& config, std::string_view dtype);

/// What generation_config.json says; every field may be absent.
struct GenerationDefaults {
  std::optional<std::int32_t> bos_id;
  std::vector<std::int32_t> eos_ids;
};
GenerationDefaults parse_generation_config(std::string_view json, const std::string& name);

/// Whole content of a text file of at most 256 MiB. @throws Error(not_found) or Error(io)
std::string read_text_file(const std::filesystem::path& path);

}  // namespace xlstm::formats
