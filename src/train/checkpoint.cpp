#include "train/checkpoint.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "core/check.hpp"
#include "core/log.hpp"
#include "formats/mapped_file.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr const char* kState = "state.safetensors";

fs::path directory_of(const fs::path& folder, std::int64_t step) {
  return folder / fmt::format("{}{:09}", kPrefix, step);
}

}  // namespace

void write_checkpoint(const fs::path& folder, std::int64_t step,
                      const std::vector<formats::NamedTensor>& tensors, const RunFacts& facts,
                      std::int64_t keep) {
  formats::replace_directory(directory_of(folder, step), [&](const fs::path& temporary) {
    formats::write_safetensors(temporary / kState, tensors, facts);
  });
  std::error_code error;
  std::vector<std::int64_t> steps = list_checkpoints(folder);
  while (static_cast<std::int64_t>(steps.size()) > keep) {
    // The name goes first, so that nobody takes what is half removed for a checkpoint.
    const fs::path old = directory_of(folder, steps.front());
    const fs::path doomed = old.string() + ".tmp";
    fs::rename(old, doomed, error);
    if (!error) fs::remove_all(doomed, error);
    if (error)
      log(LogLevel::warning,
          fmt::format("{}: could not remove it: {}", old.string(), error.message()));
    steps.erase(steps.begin());
  }
}

std::vector<std::int64_t> list_checkpoints(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    std::int64_t step = 0;
    if (!name.starts_with(kPrefix) || !entry.is_directory()) continue;
    const char* end = name.data() + name.size();
    const auto [stop, code] = std::from_chars(name.data() + kPrefix.size(), end, step);
    if (code == std::errc() && stop == end) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

RunFacts read_facts(const fs::path& folder, std::int64_t step) {
  return formats::SafetensorsFile::open(directory_of(folder, step) / kState).metadata();
}

void read_tensors(const fs::path& folder, std::int64_t step,
                  const std::vector<formats::NamedTensor>& tensors) {
  const auto file = formats::SafetensorsFile::open(directory_of(folder, step) / kState);
  for (const formats::NamedTensor& t : tensors) {
    const auto found = file.tensors().find(t.name);
    XLSTM_CHECK(found != file.tensors().end(), invalid_file, "{}: tensor '{}' is missing",
                file.name(), t.name);
    XLSTM_CHECK(found->second.dtype == t.tensor.dtype && found->second.count() == t.tensor.count(),
                invalid_file, "{}: tensor '{}': expected {}, found {}", file.name(), t.name,
                to_string(t.tensor), to_string(found->second));
  }
  for (const formats::NamedTensor& t : tensors)
    std::memcpy(t.tensor.data, file.tensors().at(t.name).data, t.tensor.bytes());
}

}  // namespace xlstm::train
