#pragma once
// safetensors files: an 8-byte header length, a JSON header, then the tensors' bytes.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/mapped_file.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::formats {

/// One file, mapped. Every header field is checked before it is used.
class SafetensorsFile {
 public:
  /// @throws Error not_found, io, or invalid_file naming file, tensor, expected and found
  static SafetensorsFile open(const std::filesystem::path& path);
  /// The same over bytes in memory that outlive the object (fuzzing, tests). `name` is for
  /// messages.
  static SafetensorsFile parse(std::span<const std::byte> bytes, const std::string& name);

  /// Views into the mapping, by name. Tensors have rank 0 to 4. Data is not always aligned to the
  /// element: readers that need alignment ask is_aligned().
  const std::map<std::string, Tensor>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  const std::string& name() const noexcept { return name_; }

 private:
  std::string name_;
  MappedFile file_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// All tensors of a checkpoint directory: model.safetensors, or the shards named by
/// model.safetensors.index.json, or NX-AI's model_{n}.safetensors.
class Checkpoint {
 public:
  static Checkpoint open(const std::filesystem::path& directory);

  /// The tensor, or an empty view.
  Tensor find(const std::string& name) const;
  /// The file a tensor lies in, for messages.
  const std::string& file_of(const std::string& name) const;
  std::vector<std::string> names() const;
  std::uint64_t bytes() const noexcept;
  const std::vector<SafetensorsFile>& files() const noexcept { return files_; }

 private:
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t> file_index_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;  ///< dense, in host memory
};

/// Writes one file: to a temporary name first, synced, then renamed, so that it is whole or absent.
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace xlstm::formats
