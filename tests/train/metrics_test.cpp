// What a run writes down, read back: JSON lines by a parser of JSON, event files by the reader
// below.

#include "train/metrics.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;
using formats::TempDir;
using Json = nlohmann::ordered_json;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// --- a reader of event files ---------------------------------------------------------------------

// CRC-32C bit by bit, apart from the table that is tested.
std::uint32_t slow_crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffU;
  for (const char c : bytes)
    for (int bit = 0; bit < 8; ++bit) {
      const std::uint32_t in = (crc ^ static_cast<unsigned char>(c) >> bit) & 1U;
      crc = crc >> 1 ^ (in != 0 ? 0x82f63b78U : 0U);
    }
  return crc ^ 0xffffffffU;
}

std::uint32_t masked(std::string_view bytes) {
  const std::uint32_t crc = slow_crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

template <class Number>
Number take(std::string_view& bytes) {
  Number number{};
  if (bytes.size() < sizeof(number)) throw std::runtime_error("cut");
  std::memcpy(&number, bytes.data(), sizeof(number));
  bytes.remove_prefix(sizeof(number));
  return number;
}

std::string_view take_bytes(std::string_view& bytes, std::uint64_t count) {
  if (bytes.size() < count) throw std::runtime_error("cut");
  const std::string_view taken = bytes.substr(0, count);
  bytes.remove_prefix(count);
  return taken;
}

std::uint64_t take_varint(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<std::uint8_t>(bytes);
    value |= static_cast<std::uint64_t>(byte & 0x7fU) << shift;
    if (byte < 0x80) return value;
  }
}

std::vector<std::string_view> records_of(std::string_view bytes) {
  std::vector<std::string_view> records;
  while (!bytes.empty()) {
    const std::string_view length_bytes = bytes.substr(0, 8);
    const auto length = take<std::uint64_t>(bytes);
    EXPECT_EQ(take<std::uint32_t>(bytes), masked(length_bytes));
    records.push_back(take_bytes(bytes, length));
    EXPECT_EQ(take<std::uint32_t>(bytes), masked(records.back()));
  }
  return records;
}

// Fields of a message: numbers by their bits, messages and texts by their bytes.
struct Field {
  std::uint64_t number = 0;
  int wire = 0;
  std::uint64_t bits = 0;
  std::string_view bytes;
};

std::vector<Field> fields_of(std::string_view message) {
  std::vector<Field> fields;
  while (!message.empty()) {
    const std::uint64_t key = take_varint(message);
    Field field{key >> 3, static_cast<int>(key & 7U), 0, {}};
    if (field.wire == 0) field.bits = take_varint(message);
    if (field.wire == 1) field.bits = take<std::uint64_t>(message);
    if (field.wire == 2) field.bytes = take_bytes(message, take_varint(message));
    if (field.wire == 5) field.bits = take<std::uint32_t>(message);
    EXPECT_TRUE(field.wire <= 2 || field.wire == 5) << field.wire;
    fields.push_back(field);
  }
  return fields;
}

template <class Number, class Bits>
Number number_of(Bits bits) {
  static_assert(sizeof(Number) <= sizeof(Bits));
  Number number{};
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

// tensorflow.Event: wall_time = 1 (double), step = 2 (int64), file_version = 3, summary = 5.
struct Event {
  double seconds = 0;
  std::int64_t step = 0;
  std::string version;
  std::vector<std::pair<std::string, float>> values;
};

Event event_of(std::string_view record) {
  Event event;
  for (const Field& field : fields_of(record)) {
    if (field.number == 1 && field.wire == 1) {
      event.seconds = number_of<double>(field.bits);
    } else if (field.number == 2 && field.wire == 0) {
      event.step = static_cast<std::int64_t>(field.bits);
    } else if (field.number == 3 && field.wire == 2) {
      event.version = field.bytes;
    } else if (field.number == 5 && field.wire == 2) {
      for (const Field& value : fields_of(field.bytes)) {
        EXPECT_EQ(value.number, 1U);  // Summary.value
        auto& [tag, number] = event.values.emplace_back();
        for (const Field& part : fields_of(value.bytes)) {
          if (part.number == 1 && part.wire == 2) {
            tag = part.bytes;
          } else {
            EXPECT_EQ(part.number, 2U);  // simple_value
            EXPECT_EQ(part.wire, 5);
            number = number_of<float>(part.bits);
          }
        }
      }
    } else {
      ADD_FAILURE() << "field " << field.number << " of type " << field.wire;
    }
  }
  return event;
}

std::vector<Event> events_in(const fs::path& directory) {
  std::vector<Event> events;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().filename().string().find("tfevents") == std::string::npos) continue;
    const std::string bytes = read(entry.path());
    for (const std::string_view record : records_of(bytes)) events.push_back(event_of(record));
  }
  return events;
}

// --- event files ---------------------------------------------------------------------------------

TEST(Crc32c, IsCastagnolis) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(""), 0U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  EXPECT_EQ(slow_crc32c("123456789"), 0xe3069283U);
}

TEST(EventFile, IsReadBack) {
  const TempDir dir;
  {
    EventFile file(dir.path(), 1234.75);
    file.add(1, {{"train/loss", 2.5}, {"train/learning_rate", 1e-3}}, 1235.5);
    file.add(300, {}, 1236);
    file.add(std::int64_t{1} << 40, {{std::string(200, 'x'), NAN}, {"g", -INFINITY}}, 1237);
  }
  EXPECT_TRUE(fs::exists(dir / "events.out.tfevents.0000001234.xlstm"));
  const std::vector<Event> events = events_in(dir.path());
  ASSERT_EQ(events.size(), 4U);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_EQ(events[0].seconds, 1234.75);
  EXPECT_TRUE(events[0].values.empty());
  EXPECT_EQ(events[1].version, "");
  EXPECT_EQ(events[1].seconds, 1235.5);
  EXPECT_EQ(events[1].step, 1);
  const std::vector<std::pair<std::string, float>> expected = {{"train/loss", 2.5F},
                                                               {"train/learning_rate", 1e-3F}};
  EXPECT_EQ(events[1].values, expected);
  EXPECT_EQ(events[2].step, 300);
  EXPECT_TRUE(events[2].values.empty());
  EXPECT_EQ(events[3].step, std::int64_t{1} << 40);
  ASSERT_EQ(events[3].values.size(), 2U);
  EXPECT_EQ(events[3].values[0].first, std::string(200, 'x'));
  EXPECT_TRUE(std::isnan(events[3].values[0].second));
  EXPECT_EQ(events[3].values[1].second, -std::numeric_limits<float>::infinity());
}

TEST(EventFile, RecordsAreThereAtOnce) {
  const TempDir dir;
  EventFile file(dir.path(), 1);
  for (std::size_t n = 1; n < 4; ++n) {
    EXPECT_EQ(events_in(dir.path()).size(), n);
    file.add(static_cast<std::int64_t>(n), {{"a", 1}}, 2);
  }
}

TEST(EventFile, AFolderThatIsNotThereIsNamed) {
  const TempDir dir;
  expect_error(ErrorCode::io, {(dir / "absent").string()}, [&] { EventFile(dir / "absent", 1); });
  expect_error(ErrorCode::io, {"absent", "metrics.jsonl"},
               [&] { Metrics(dir / "absent", 0, false); });
}

// --- metrics.jsonl -------------------------------------------------------------------------------

std::vector<Json> lines_of(const fs::path& directory) {
  std::vector<Json> lines;
  std::ifstream file(directory / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

std::vector<std::int64_t> steps_of(const fs::path& directory) {
  std::vector<std::int64_t> steps;
  for (const Json& line : lines_of(directory)) steps.push_back(line.at("step"));
  return steps;
}

TEST(Metrics, LinesAreJson) {
  const TempDir dir;
  Metrics metrics(dir.path(), 0, false);
  EXPECT_TRUE(lines_of(dir.path()).empty());
  metrics.add("train", 1, {{"loss", 0.1}, {"gradient_norm", 1e-300}});
  EXPECT_EQ(lines_of(dir.path()).size(), 1U);  // at once
  metrics.add("validation", 1, {{"loss", NAN}, {"accuracy", INFINITY}});
  EXPECT_EQ(read(dir / "metrics.jsonl"),
            "{\"kind\":\"train\",\"step\":1,\"loss\":0.1,\"gradient_norm\":1e-300}\n"
            "{\"kind\":\"validation\",\"step\":1,\"loss\":null,\"accuracy\":null}\n");
  EXPECT_TRUE(events_in(dir.path()).empty());
}

TEST(Metrics, EventsHaveTheKindInTheirTag) {
  const TempDir dir;
  Metrics metrics(dir.path(), 0, true);
  metrics.add("train", 7, {{"loss", 0.5}});
  metrics.add("validation", 7, {{"loss", 0.25}, {"accuracy", 1}});
  const std::vector<Event> events = events_in(dir.path());
  ASSERT_EQ(events.size(), 3U);
  using Values = std::vector<std::pair<std::string, float>>;
  EXPECT_EQ(events[1].values, (Values{{"train/loss", 0.5F}}));
  EXPECT_EQ(events[2].values, (Values{{"validation/loss", 0.25F}, {"validation/accuracy", 1}}));
  EXPECT_EQ(events[2].step, 7);
  EXPECT_GT(events[2].seconds, 1.7e9);
  EXPECT_EQ(lines_of(dir.path()).size(), 2U);
}

TEST(Metrics, AResumedRunDropsTheStepsThatComeAgain) {
  const TempDir dir;
  {
    Metrics metrics(dir.path(), 0, false);
    for (int step = 1; step <= 12; ++step) metrics.add("train", step, {{"loss", step}});
    metrics.add("validation", 10, {{"loss", 3}});
  }
  {
    Metrics metrics(dir.path(), 10, false);
    EXPECT_EQ(steps_of(dir.path()), (std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10}));
    metrics.add("train", 11, {{"loss", -1}});
  }
  EXPECT_EQ(lines_of(dir.path()).back()["loss"], -1.0);
  EXPECT_EQ(lines_of(dir.path()).size(), 12U);
  Metrics anew(dir.path(), 0, false);
  EXPECT_TRUE(lines_of(dir.path()).empty());
}

TEST(Metrics, ATornLastLineIsDropped) {
  const TempDir dir;
  const std::string whole = "{\"kind\":\"train\",\"step\":1,\"loss\":0.5}\n";
  for (const char* torn : {"{\"kind\":\"train\",\"step\":2,\"lo", "{", "7", "{\"step\":\"2\"}"}) {
    dir.write("metrics.jsonl", whole + torn);
    Metrics metrics(dir.path(), 5, false);
    EXPECT_EQ(read(dir / "metrics.jsonl"), whole) << torn;
    metrics.add("train", 2, {});
    EXPECT_EQ(steps_of(dir.path()), (std::vector<std::int64_t>{1, 2})) << torn;
  }
}

}  // namespace
}  // namespace xlstm::train
