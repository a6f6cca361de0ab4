#pragma once
// A file mapped read-only into memory.

#include <cstddef>
#include <filesystem>
#include <span>

namespace xlstm::formats {

class MappedFile {
 public:
  MappedFile() = default;
  /// @throws Error(not_found) or Error(io) naming the file
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Writes `bytes` to `path` by way of a temporary file in the same folder that is synced and then
/// renamed: the file is whole or absent. @throws Error(io)
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);

}  // namespace xlstm::formats
