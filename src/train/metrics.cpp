#include "train/metrics.hpp"

#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.hpp"
#include "formats/mapped_file.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

template <class Number>
void append_little_endian(std::string& bytes, Number number) {
  static_assert(std::endian::native == std::endian::little);
  bytes.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

// Protocol buffers: a field is its key (number and wire type), then the value.
enum class Wire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void append_varint(std::string& bytes, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>((value & 0x7F) | 0x80));
  bytes.push_back(static_cast<char>(value));
}
void append_key(std::string& bytes, unsigned field, Wire wire) {
  append_varint(bytes, field << 3 | static_cast<unsigned>(wire));
}
void append_bytes(std::string& bytes, unsigned field, std::string_view value) {
  append_key(bytes, field, Wire::bytes);
  append_varint(bytes, value.size());
  bytes.append(value);
}

std::string event_at(double seconds) {  // Event.wall_time = 1
  std::string event;
  append_key(event, 1, Wire::fixed64);
  append_little_endian(event, seconds);
  return event;
}

std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static const std::array<std::uint32_t, 256> kTable = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc & 1U ? crc >> 1 ^ 0x82f63b78U : crc >> 1;
      table[i] = crc;
    }
    return table;
  }();
  std::uint32_t crc = 0xffffffffU;
  for (const char c : bytes) crc = kTable[(crc ^ static_cast<unsigned char>(c)) & 0xffU] ^ crc >> 8;
  return crc ^ 0xffffffffU;
}

EventFile::EventFile(const fs::path& directory, double seconds)
    : path_(directory /
            fmt::format("events.out.tfevents.{:010}.xlstm", static_cast<std::int64_t>(seconds))),
      file_(path_, std::ios::binary | std::ios::app) {
  XLSTM_CHECK(file_.good(), io, "{}: cannot create", path_.string());
  std::string event = event_at(seconds);
  append_bytes(event, 3, "brain.Event:2");  // Event.file_version = 3
  write(event);
}

void EventFile::add(std::int64_t step, const Scalars& scalars, double seconds) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    append_bytes(entry, 1, tag);          // Summary.Value.tag = 1
    append_key(entry, 2, Wire::fixed32);  // Summary.Value.simple_value = 2
    append_little_endian(entry, static_cast<float>(value));
    append_bytes(summary, 1, entry);  // Summary.value = 1
  }
  std::string event = event_at(seconds);
  append_key(event, 2, Wire::varint);  // Event.step = 2
  append_varint(event, static_cast<std::uint64_t>(step));
  append_bytes(event, 5, summary);  // Event.summary = 5
  write(event);
}

// TFRecord: length, its masked checksum, the bytes, their masked checksum.
void EventFile::write(const std::string& event) {
  std::string record;
  append_little_endian(record, static_cast<std::uint64_t>(event.size()));
  append_little_endian(record, masked_crc(record));
  record += event;
  append_little_endian(record, masked_crc(event));
  file_ << record << std::flush;
  XLSTM_CHECK(file_.good(), io, "{}: cannot write", path_.string());
}

Metrics::Metrics(const fs::path& directory, std::int64_t first_step, bool tensorboard)
    : path_(directory / "metrics.jsonl") {
  if (fs::exists(path_)) {
    std::ifstream before(path_);
    std::string kept, line;
    while (std::getline(before, line)) {
      const auto json = nlohmann::json::parse(line, nullptr, false);
      if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
          json["step"].get<std::int64_t>() <= first_step)
        kept += line + "\n";
    }
    formats::write_file_atomically(path_, kept);
  }
  file_.open(path_, std::ios::app);
  XLSTM_CHECK(file_.good(), io, "{}: cannot create", path_.string());
  if (tensorboard) events_ = std::make_unique<EventFile>(directory, now());
}

void Metrics::add(const std::string& kind, std::int64_t step, const Scalars& scalars) {
  nlohmann::ordered_json line = {{"kind", kind}, {"step", step}};
  for (const auto& [name, value] : scalars)
    line[name] = std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
  file_ << line.dump() + "\n" << std::flush;
  XLSTM_CHECK(file_.good(), io, "{}: cannot write", path_.string());
  if (!events_) return;
  Scalars tagged = scalars;
  for (auto& [name, value] : tagged) name = kind + "/" + name;
  events_->add(step, tagged, now());
}

}  // namespace xlstm::train
