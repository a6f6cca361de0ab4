// safetensors files: reading, every way a header can lie, and writing.

#include "formats/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "formats/config_files.hpp"
#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"

namespace xlstm::formats {
namespace {

const std::string kSource = XLSTM_SOURCE_DIR;

/// A file's bytes: the length of `header`, `header`, `data`.
std::string file_of(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

SafetensorsFile parse(const std::string& bytes) {
  return SafetensorsFile::parse(std::as_bytes(std::span(bytes)), "m.safetensors");
}

/// Checks that a file of this header and data is refused as invalid.
void expect_bad(const std::string& header, const std::string& data,
                std::initializer_list<std::string_view> parts) {
  const std::string bytes = file_of(header, data);
  expect_error(ErrorCode::invalid_file, parts, [&] { parse(bytes); });
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

// --- reading -----------------------------------------------------------------------------------

TEST(SafetensorsTest, ReadsEveryDType) {
  const std::string bytes = file_of(
      "{" + entry("a", "F64", "[1]", "[0,8]") + "," + entry("b", "I64", "[1]", "[8,16]") + "," +
          entry("c", "F32", "[1,1]", "[16,20]") + "," + entry("d", "I32", "[]", "[20,24]") + "," +
          entry("e", "F16", "[2]", "[24,28]") + "," + entry("f", "BF16", "[2,1,1,1]", "[28,32]") +
          "," + entry("g", "U8", "[3]", "[32,35]") + "," + entry("h", "BOOL", "[1]", "[35,36]") +
          R"(,"__metadata__":{"format":"pt"}})",
      std::string(36, '\1'));
  const SafetensorsFile file = parse(bytes);
  EXPECT_EQ(file.name(), "m.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  std::string all;
  for (const auto& [name, tensor] : file.tensors()) {
    all += name + " " + to_string(tensor) + ";";
    EXPECT_TRUE(tensor.is_dense());
  }
  EXPECT_EQ(all,
            "a f64[1];b i64[1];c f32[1, 1];d i32[];e f16[2];f bf16[2, 1, 1, 1];g u8[3];h u8[1];");
}

TEST(SafetensorsTest, MapsAndDoesNotCopy) {
  const TempDir dir;
  const std::string header = "{" + entry("a", "F32", "[2]", "[0,8]") + "}";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  const std::string data("\0\0\x80\x3f\0\0\0\x40", 8);
  const auto path = dir.write("m.safetensors", file_of(padded, data));
  const SafetensorsFile file = SafetensorsFile::open(path);
  const Tensor a = file.tensors().at("a");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data) % 4096, 8 + padded.size());
  EXPECT_EQ(a.as<float>()[0], 1.0f);
  EXPECT_EQ(a.as<float>()[1], 2.0f);
}

}  // namespace
}  // namespace xlstm::formats
