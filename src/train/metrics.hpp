#pragma once
// What a run writes down while it goes: a line of JSON per event, and TensorBoard's event file.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace xlstm::train {

/// Scalars of one step, in the order of the line.
using Scalars = std::vector<std::pair<std::string, double>>;

/// TensorBoard's event file: records of TensorFlow's Event message, each with its length and
/// checksums. Only scalars (tag and simple_value).
class EventFile {
 public:
  /// @param seconds  wall-clock time since 1970, part of the name and of every record
  /// @throws Error(io) naming the file
  EventFile(const std::filesystem::path& directory, double seconds);
  void add(std::int64_t step, const Scalars& scalars, double seconds);

 private:
  void write(const std::string& event);
  std::filesystem::path path_;
  std::ofstream file_;
};

/// metrics.jsonl in the run's directory and, if asked for, an event file beside it. Lines appear
/// whole and at once. What a resumed run had written after its checkpoint is dropped.
class Metrics {
 public:
  /// @param first_step  later lines of an existing metrics.jsonl are of steps that come again
  Metrics(const std::filesystem::path& directory, std::int64_t first_step, bool tensorboard);
  /// @param kind  "train", "validation"
  void add(const std::string& kind, std::int64_t step, const Scalars& scalars);

 private:
  std::filesystem::path path_;
  std::ofstream file_;
  std::unique_ptr<EventFile> events_;
};

/// CRC-32C (Castagnoli), as the event file's records have it, before their mask.
std::uint32_t crc32c(std::string_view bytes);

}  // namespace xlstm::train
