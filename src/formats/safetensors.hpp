#pragma once
// safetensors files: an 8-byte header length, a JSON header, then the tensors' bytes.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "formats/mapped_file.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::formats {

/// One file, mapped. Every header field is checked before it is used: the tensors cover the data
/// exactly, in order, without gaps or overlaps, as the format demands.
class SafetensorsFile {
 public:
  /// @throws Error not_found, io, or invalid_file naming file, tensor, expected and found
  static SafetensorsFile open(const std::filesystem::path& path);
  /// The same over bytes in memory that outlive the object (fuzzing, tests). `name` is for
  /// messages.
  static SafetensorsFile parse(std::span<const std::byte> bytes, const std::string& name);

  /// Views into the mapping, by name; they must not be written to. Tensors have rank 0 to 4 and
  /// start on a multiple of their element's size: one that does not in the file is copied.
  const std::map<std::string, Tensor>& tensors() const noexcept { return tensors_; }
  /// Tensors of element types that DType has not (F8_E4M3, I8, ...): name and the file's word for
  /// the type. They do no harm until somebody needs one.
  const std::map<std::string, std::string>& unsupported() const noexcept { return unsupported_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  const std::string& name() const noexcept { return name_; }
  /// The file, if it was opened. @see MappedFile::read
  const MappedFile& file() const noexcept { return file_; }
  void close() noexcept { file_.close(); }

 private:
  std::string name_;
  MappedFile file_;
  Buffer copies_;  // of the tensors that are not aligned in the file
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> unsupported_;
  std::map<std::string, std::string> metadata_;
};

/// All tensors of a checkpoint directory: model.safetensors, or the shards named by
/// model.safetensors.index.json, or NX-AI's model_{n}.safetensors numbered from 0. The first of
/// these that is there counts.
class Checkpoint {
 public:
  /// @throws Error not_found (naming what was looked for), io or invalid_file
  static Checkpoint open(const std::filesystem::path& directory);

  /// The tensor, or an empty view. @throws Error(unsupported) for an element type DType has not
  Tensor find(const std::string& name) const;
  /// The file a tensor lies in, for messages; the directory if no file has it.
  const std::string& file_of(const std::string& name) const;
  /// Of every tensor, sorted.
  std::vector<std::string> names() const;
  /// Bytes of all tensors.
  std::uint64_t bytes() const noexcept;
  const std::vector<SafetensorsFile>& files() const noexcept { return files_; }
  /// Fills `to` with the bytes from `from` on, which are of a tensor or elsewhere in memory. A
  /// tensor's are read from its file, if they lie there. Any thread may call it.
  /// @throws Error(io) naming the file
  void read(const std::byte* from, std::span<std::byte> to) const;
  /// Closes the files, whose mappings stay: read() takes everything from memory then.
  void close() noexcept;

 private:
  void add(SafetensorsFile file);

  std::string directory_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t> file_index_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;  ///< dense, in host memory
};

/// Writes one file, straight from the tensors' memory: to a temporary name first, synced, then
/// renamed, so that it is whole or absent. @throws Error invalid_argument or io
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace xlstm::formats
