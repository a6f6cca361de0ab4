#pragma once
// Low-rank adapters on disk, as Hugging Face's peft writes them: a directory with
// adapter_config.json and adapter_model.safetensors (docs/lora.md).

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "formats/safetensors.hpp"

namespace xlstm::formats {

struct AdapterConfig {
  std::string base;  ///< where the adapted model lay; may be empty
  std::int64_t rank = 0;
  double alpha = 0;
  bool root_scale = false;           ///< peft's use_rslora: alpha / sqrt(rank)
  std::vector<std::string> targets;  ///< ends of modules' names; written, not read

  /// s of W + s B A.
  double scale() const;
};

/// What is added to one matrix W [out, in].
struct AdapterMatrix {
  std::string module;  ///< the weight's name without ".weight"
  Tensor a;            ///< [rank, in]
  Tensor b;            ///< [out, rank]
};

struct AdapterFile {
  AdapterConfig config;
  std::vector<AdapterMatrix> matrices;  ///< by module; views into `file`
  SafetensorsFile file;
};

/// Every matrix has both halves, in f32, bf16 or f16 and of the rank that the configuration names.
/// @throws Error naming file, key or tensor, expected and found
AdapterFile read_adapter(const std::filesystem::path& directory);

/// The name that A or B of a module has in the file.
std::string adapter_tensor_name(const std::string& module, bool b);

/// Writes both files; the directory must exist. @throws Error(io)
void write_adapter(const std::filesystem::path& directory, const AdapterConfig& config,
                   std::span<const AdapterMatrix> matrices);

}  // namespace xlstm::formats
