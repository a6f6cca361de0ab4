#pragma once
// Files: mapped read-only into memory, and written so that they are whole or absent.

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace xlstm::formats {

/// A regular file mapped read-only. Pages are read when they are first touched, so mapping costs
/// the same for any size. The file must not be truncated while it is mapped.
class MappedFile {
 public:
  MappedFile() = default;
  /// @param keep_open  for read()
  /// @throws Error(not_found) or Error(io) naming the file
  explicit MappedFile(const std::filesystem::path& path, bool keep_open = false);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  /// Fills `to` with the bytes of the mapping from `from` on, read from the file: faster than
  /// touching pages that were not touched before. Any thread may call it.
  /// @return false, and nothing is done, unless `from` is in the mapping and the file was kept open
  /// @throws Error(io) naming the file, for example where it was cut short since
  bool read(const std::byte* from, std::span<std::byte> to) const;
  /// The mapping stays, read() does not.
  void close() noexcept;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  int descriptor_ = -1;
  std::string name_;  // for messages
};

/// A file that is whole or absent: bytes go to a temporary file in the same folder, which commit()
/// syncs and renames. Without a commit() the destructor removes it and `path` is as it was.
class AtomicFile {
 public:
  /// @throws Error(io) naming the file
  explicit AtomicFile(const std::filesystem::path& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Appends. @throws Error(io), for example when the disk is full
  void write(std::span<const std::byte> bytes);
  void commit();

 private:
  std::filesystem::path path_;
  std::string temporary_;
  int descriptor_ = -1;
};

/// AtomicFile in one call. @throws Error(io)
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Creates a directory, and those above it, where there is none. @throws Error(io) naming it
void make_directory(const std::filesystem::path& path);

/// A directory that is whole or absent: `fill` writes into an empty one beside it, which then takes
/// its name; what had the name before is gone. @throws Error(io), and what `fill` throws
void replace_directory(const std::filesystem::path& path,
                       const std::function<void(const std::filesystem::path&)>& fill);

}  // namespace xlstm::formats
