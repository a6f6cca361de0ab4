// Checkpoint: which files of a directory hold the tensors.

#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "core/check.hpp"
#include "core/json.hpp"
#include "formats/config_files.hpp"
#include "formats/safetensors.hpp"

namespace xlstm::formats {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// A shard lies beside its index: names with folders in them could reach any file.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

/// weight_map of an index: tensor -> file.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const std::string name = path.string();
  const json index = parse_json(read_text_file(path), name);
  XLSTM_CHECK(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
              invalid_file, "{}: expected an object with an object weight_map, found {}", name,
              describe(index));
  std::map<std::string, std::string> result;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    XLSTM_CHECK(file.is_string() && is_plain_file_name(file.get_ref<const std::string&>()),
                invalid_file, "{}: tensor '{}': expected the name of a file beside it, found {}",
                name, excerpt(tensor), describe(file));
    result.emplace(tensor, file.get<std::string>());
  }
  XLSTM_CHECK(!result.empty(), invalid_file, "{}: weight_map: expected tensors, found none", name);
  return result;
}

/// n of "model_{n}.safetensors", or -1.
long nxai_number(const std::string& file) {
  constexpr std::string_view kPrefix = "model_", kSuffix = ".safetensors";
  const std::string_view name(file);
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return -1;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size() - kSuffix.size();
  long number = -1;
  const auto [stop, error] = std::from_chars(begin, end, number);
  return error == std::errc() && stop == end ? number : -1;
}

/// The numbered files of an NX-AI directory; empty if it has none.
std::vector<fs::path> nxai_files(const fs::path& directory) {
  std::set<long> numbers;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error))
    if (const long number = nxai_number(entry->path().filename().string()); number >= 0)
      numbers.insert(number);
  XLSTM_CHECK(!error, io, "{}: cannot list: {}", directory.string(), error.message());
  std::vector<fs::path> files;
  for (const long number : numbers) {
    fs::path file = directory / fmt::format("model_{}.safetensors", files.size());
    XLSTM_CHECK(number == static_cast<long>(files.size()), invalid_file,
                "{}: expected this file, since there is a model_{}.safetensors, found none",
                file.string(), number);
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace

void Checkpoint::add(SafetensorsFile file) {
  const std::size_t index = files_.size();
  const auto add_name = [&](const std::string& tensor) {
    const auto [entry, is_new] = file_index_.emplace(tensor, index);
    XLSTM_CHECK(is_new, invalid_file,
                "{}: tensor '{}': expected it in one file, found it in {} too", file.name(),
                excerpt(tensor), files_[entry->second].name());
  };
  for (const auto& [tensor, view] : file.tensors()) add_name(tensor);
  for (const auto& [tensor, dtype] : file.unsupported()) add_name(tensor);
  files_.push_back(std::move(file));
}

Checkpoint Checkpoint::open(const fs::path& directory) {
  std::error_code ignored;
  XLSTM_CHECK(fs::is_directory(directory, ignored), not_found, "{}: expected a directory, found {}",
              directory.string(), is_there(directory) ? "a file" : "nothing there");
  Checkpoint checkpoint;
  checkpoint.directory_ = directory.string();

  if (const fs::path single = directory / kSingle; is_there(single)) {
    checkpoint.add(SafetensorsFile::open(single));
    return checkpoint;
  }

  if (const fs::path index = directory / kIndex; is_there(index)) {
    const auto weight_map = read_index(index);
    std::set<std::string> shards;
    for (const auto& [tensor, file] : weight_map) shards.insert(file);
    for (const std::string& shard : shards) {
      XLSTM_CHECK(is_there(directory / shard), not_found,
                  "{}: expected this shard, which {} names, found none",
                  (directory / shard).string(), kIndex);
      checkpoint.add(SafetensorsFile::open(directory / shard));
    }
    for (const auto& [tensor, file] : weight_map) {
      const auto entry = checkpoint.file_index_.find(tensor);
      XLSTM_CHECK(entry != checkpoint.file_index_.end() &&
                      checkpoint.files_[entry->second].name() == (directory / file).string(),
                  invalid_file, "{}: tensor '{}': expected it in {}, found it {}", index.string(),
                  excerpt(tensor), file,
                  entry == checkpoint.file_index_.end()
                      ? "in no shard"
                      : "in " + checkpoint.files_[entry->second].name());
    }
    return checkpoint;
  }

  const std::vector<fs::path> files = nxai_files(directory);
  XLSTM_CHECK(!files.empty(), not_found,
              "{}: expected {}, {} or model_0.safetensors, found none of them", directory.string(),
              kSingle, kIndex);
  for (const fs::path& file : files) checkpoint.add(SafetensorsFile::open(file));
  return checkpoint;
}

Tensor Checkpoint::find(const std::string& name) const {
  const auto entry = file_index_.find(name);
  if (entry == file_index_.end()) return {};
  const SafetensorsFile& file = files_[entry->second];
  if (const auto tensor = file.tensors().find(name); tensor != file.tensors().end())
    return tensor->second;
  fail(ErrorCode::unsupported, "{}: tensor '{}': expected dtype F32, F16 or BF16, found {}",
       file.name(), excerpt(name), excerpt(file.unsupported().at(name)));
}

const std::string& Checkpoint::file_of(const std::string& name) const {
  const auto entry = file_index_.find(name);
  return entry == file_index_.end() ? directory_ : files_[entry->second].name();
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> result;
  result.reserve(file_index_.size());
  for (const auto& [name, index] : file_index_) result.push_back(name);
  return result;
}

std::uint64_t Checkpoint::bytes() const noexcept {
  std::uint64_t total = 0;
  for (const SafetensorsFile& file : files_)
    for (const auto& [name, tensor] : file.tensors()) total += tensor.bytes();
  return total;
}

void Checkpoint::read(const std::byte* from, std::span<std::byte> to) const {
  for (const SafetensorsFile& file : files_)
    if (file.file().read(from, to)) return;
  std::memcpy(to.data(), from, to.size());
}

void Checkpoint::close() noexcept {
  for (SafetensorsFile& file : files_) file.close();
}

}  // namespace xlstm::formats
