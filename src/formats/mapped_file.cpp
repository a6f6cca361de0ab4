#include "formats/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "core/check.hpp"

namespace xlstm::formats {
namespace {

std::string system_message(int error) { return std::generic_category().message(error); }

/// Closes a descriptor, if it is one, when the scope ends.
struct DescriptorGuard {
  int descriptor;
  ~DescriptorGuard() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

/// Makes a rename in this folder survive a power cut.
void sync_folder(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;  // the file itself is complete; some systems cannot open folders
  const DescriptorGuard guard{descriptor};
  ::fsync(descriptor);
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path, bool keep_open) : name_(path.string()) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    const int error = errno;
    XLSTM_CHECK(error != ENOENT && error != ENOTDIR, not_found,
                "{}: expected a file, found nothing there", path.string());
    fail(ErrorCode::io, "{}: cannot open: {}", path.string(), system_message(error));
  }
  DescriptorGuard guard{descriptor};
  struct stat status {};
  XLSTM_CHECK(::fstat(descriptor, &status) == 0, io, "{}: cannot read its size: {}", path.string(),
              system_message(errno));
  XLSTM_CHECK(S_ISREG(status.st_mode), io, "{}: expected a regular file, found {}", path.string(),
              S_ISDIR(status.st_mode) ? "a directory" : "a device or pipe");
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return;  // an empty file cannot be mapped
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  XLSTM_CHECK(address != MAP_FAILED, io, "{}: cannot map {} bytes: {}", path.string(), size,
              system_message(errno));
  data_ = static_cast<const std::byte*>(address);
  size_ = size;
  if (keep_open) descriptor_ = std::exchange(guard.descriptor, -1);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      name_(std::move(other.name_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(name_, other.name_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  close();
}

void MappedFile::close() noexcept {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

bool MappedFile::read(const std::byte* from, std::span<std::byte> to) const {
  // Below the mapping this is a number beyond it.
  std::size_t at = reinterpret_cast<std::uintptr_t>(from) - reinterpret_cast<std::uintptr_t>(data_);
  if (descriptor_ < 0 || at >= size_) return false;
  XLSTM_ASSERT(to.size() <= size_ - at);
  while (!to.empty()) {
    const ssize_t got = ::pread(descriptor_, to.data(), to.size(), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    XLSTM_CHECK(got >= 0, io, "{}: cannot read {} bytes at byte {}: {}", name_, to.size(), at,
                system_message(errno));
    XLSTM_CHECK(got > 0, io, "{}: expected {} bytes, found its end at byte {}: it was cut short",
                name_, size_, at);
    at += static_cast<std::size_t>(got);
    to = to.subspan(static_cast<std::size_t>(got));
  }
  return true;
}

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path) {
  static std::atomic<unsigned> counter{0};
  // The name is unique in this process and among processes; O_EXCL refuses a stale one.
  temporary_ = fmt::format("{}.tmp-{}-{}", path.string(), ::getpid(), counter++);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  XLSTM_CHECK(descriptor_ >= 0, io, "{}: cannot create: {}", temporary_, system_message(errno));
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  XLSTM_ASSERT(descriptor_ >= 0);
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    XLSTM_CHECK(written > 0, io, "{}: cannot write {} bytes: {}", path_.string(), bytes.size(),
                system_message(written < 0 ? errno : ENOSPC));
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::commit() {
  XLSTM_ASSERT(descriptor_ >= 0);
  XLSTM_CHECK(::fsync(descriptor_) == 0, io, "{}: cannot sync: {}", path_.string(),
              system_message(errno));
  XLSTM_CHECK(::rename(temporary_.c_str(), path_.c_str()) == 0, io, "{}: cannot rename '{}': {}",
              path_.string(), temporary_, system_message(errno));
  ::close(std::exchange(descriptor_, -1));
  sync_folder(folder_of(path_));
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text)));
}

void make_directory(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  XLSTM_CHECK(!error, io, "{}: could not create the directory: {}", path.string(), error.message());
}

void replace_directory(const std::filesystem::path& path,
                       const std::function<void(const std::filesystem::path&)>& fill) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  std::error_code error;
  std::filesystem::remove_all(temporary, error);  // what a killed process left
  make_directory(temporary);
  try {
    fill(temporary);
  } catch (...) {
    std::filesystem::remove_all(temporary, error);
    throw;
  }
  std::filesystem::remove_all(path, error);
  XLSTM_CHECK(!error, io, "{}: could not replace it: {}", path.string(), error.message());
  std::filesystem::rename(temporary, path, error);
  XLSTM_CHECK(!error, io, "{}: could not rename '{}': {}", path.string(), temporary.string(),
              error.message());
  sync_folder(folder_of(path));
}

}  // namespace xlstm::formats
