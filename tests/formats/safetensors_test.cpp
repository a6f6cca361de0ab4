// safetensors files: reading, every way a header can lie, and writing.

#include "formats/safetensors.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
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

TEST(SafetensorsTest, CopiesWhatIsNotAlignedInTheFile) {
  // Two headers, one byte apart: in one of them at least the wide tensors start off their size.
  for (const std::string pad : {"", " "}) {
    const std::string header = "{" + entry("a", "U8", "[1]", "[0,1]") + "," +
                               entry("b", "F32", "[1]", "[1,5]") + "," +
                               entry("c", "F64", "[1]", "[5,13]") + "}" + pad;
    std::string data(13, '\7');
    const float b = 1.5f;
    const double c = -2.25;
    std::memcpy(data.data() + 1, &b, 4);
    std::memcpy(data.data() + 5, &c, 8);
    const std::string bytes = file_of(header, data);
    const SafetensorsFile file = parse(bytes);
    EXPECT_EQ(file.tensors().at("a").as<unsigned char>()[0], 7);
    for (const auto& [name, tensor] : file.tensors())
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data) % size_of(tensor.dtype), 0u) << name;
    EXPECT_EQ(file.tensors().at("b").as<float>()[0], b);
    EXPECT_EQ(file.tensors().at("c").as<double>()[0], c);
  }
}

TEST(SafetensorsTest, EmptyTensorsAndFiles) {
  EXPECT_TRUE(parse(file_of("{}")).tensors().empty());
  EXPECT_TRUE(parse(file_of("{}   ")).tensors().empty());
  const SafetensorsFile file = parse(
      file_of("{" + entry("a", "F32", "[0]", "[0,0]") + "," + entry("b", "F32", "[1]", "[0,4]") +
                  "," + entry("c", "F32", "[3,0,1000000000000]", "[4,4]") + "}",
              "1234"));
  EXPECT_EQ(file.tensors().at("a").count(), 0);
  EXPECT_EQ(file.tensors().at("b").count(), 1);
}

TEST(SafetensorsTest, OtherElementTypesAreKeptApart) {
  const std::string bytes = file_of(
      "{" + entry("a", "F8_E4M3", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[2,4]") + "}",
      "1234");  // tensors are views of it
  const SafetensorsFile file = parse(bytes);
  EXPECT_EQ(file.unsupported().at("a"), "F8_E4M3");
  EXPECT_FALSE(file.tensors().contains("a"));
  EXPECT_EQ(file.tensors().at("b").as<unsigned char>()[0], '3');
}

TEST(SafetensorsTest, FilesThatAreNone) {
  const TempDir dir;
  expect_error(ErrorCode::not_found, {"none.safetensors", "expected a file", "found nothing"},
               [&] { SafetensorsFile::open(dir / "none.safetensors"); });
  expect_error(ErrorCode::io, {dir.path().string(), "expected a regular file, found a directory"},
               [&] { SafetensorsFile::open(dir.path()); });
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);  // reading it would wait for ever
  expect_error(ErrorCode::io, {"pipe", "expected a regular file, found a device or pipe"},
               [&] { SafetensorsFile::open(dir / "pipe"); });
  const auto path = dir.write("empty.safetensors", "");
  expect_error(ErrorCode::invalid_file, {"empty.safetensors", "at least 8 bytes, found 0"},
               [&] { SafetensorsFile::open(path); });
}

// --- headers that lie --------------------------------------------------------------------------

TEST(SafetensorsTest, HeaderLength) {
  expect_error(ErrorCode::invalid_file, {"m.safetensors: expected", "at least 8 bytes, found 7"},
               [] { parse("1234567"); });
  expect_error(ErrorCode::invalid_file,
               {"m.safetensors: expected a header of 2 bytes, found only 1 bytes"},
               [] { parse(file_of("{}").substr(0, 9)); });
  const auto of_length = [](std::uint64_t length) {
    std::string bytes = file_of("{}");
    std::memcpy(bytes.data(), &length, 8);
    return bytes;
  };
  expect_error(ErrorCode::invalid_file, {"at most 100000000 bytes, found 100000001"},
               [&] { parse(of_length(100'000'001)); });
  expect_error(ErrorCode::invalid_file, {"found 18446744073709551615"},
               [&] { parse(of_length(~std::uint64_t{0})); });
  expect_error(ErrorCode::invalid_file, {"expected a header of 100000000 bytes, found only 2"},
               [&] { parse(of_length(100'000'000)); });
  expect_error(ErrorCode::invalid_file, {"header: expected JSON"}, [&] { parse(of_length(0)); });
}

TEST(SafetensorsTest, HeaderIsNotWhatItShouldBe) {
  expect_bad("abc", "", {"m.safetensors: header: expected JSON, found: ", "column 1"});
  expect_bad("{} x", "", {"header: expected JSON"});
  expect_bad("[]", "", {"header: expected an object, found an array of 0"});
  expect_bad("{\"a\":1}", "", {"m.safetensors: tensor 'a': expected an object, found integer 1"});
  expect_bad(std::string(1000, '['), "", {"header: expected at most 64 nested"});
  expect_bad("{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("a", "U8", "[1]", "[1,2]") + "}",
             "12", {"header: expected every key once, found 'a' twice"});
  expect_bad(R"({"__metadata__":{"a":1}})", "",
             {"m.safetensors: __metadata__: 'a': expected a string, found integer 1"});
  expect_bad(R"({"__metadata__":"x"})", "", {"__metadata__", "expected an object, found string"});
  expect_bad("{\"a\xff\":{}}", "", {"header: expected JSON"});
}

TEST(SafetensorsTest, TensorWithoutAKey) {
  expect_bad(R"({"a":{"shape":[],"data_offsets":[0,4]}})", "1234",
             {"m.safetensors: tensor 'a': expected the key dtype, found none"});
  expect_bad(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", "1234",
             {"tensor 'a': expected the key shape, found none"});
  expect_bad(R"({"a":{"dtype":"F32","shape":[]}})", "1234",
             {"tensor 'a': expected the key data_offsets, found none"});
}

TEST(SafetensorsTest, TypesOfTheTensorsKeys) {
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}}";
  };
  const std::string f32 = "\"F32\"";
  expect_bad(tensor("7", "[]", "[0,4]"), "1234",
             {"tensor 'a': dtype: expected a string, found integer 7"});
  expect_bad(tensor(f32, "1", "[0,4]"), "1234",
             {"tensor 'a': shape: expected an array, found integer 1"});
  expect_bad(tensor(f32, "[-1]", "[0,4]"), "1234",
             {"tensor 'a': shape: expected non-negative integers, found integer -1"});
  expect_bad(tensor(f32, "[1.0]", "[0,4]"), "1234", {"shape", "found number 1.0"});
  expect_bad(tensor(f32, "[true]", "[0,4]"), "1234", {"shape", "found boolean true"});
  expect_bad(tensor(f32, "[18446744073709551615]", "[0,4]"), "1234",
             {"shape", "found integer 18446744073709551615"});
  expect_bad(tensor(f32, "[1e40]", "[0,4]"), "1234", {"shape", "found number 1e+40"});
  expect_bad(tensor(f32, "[1]", "4"), "1234",
             {"tensor 'a': data_offsets: expected [begin, end], found integer 4"});
  expect_bad(tensor(f32, "[1]", "[0,4,4]"), "1234", {"data_offsets", "found an array of 3"});
  expect_bad(tensor(f32, "[1]", "[-4,0]"), "1234", {"data_offsets", "found integer -4"});
  expect_bad(tensor(f32, "[1]", "[0,\"4\"]"), "1234", {"data_offsets", "found string '4'"});
}

TEST(SafetensorsTest, Shapes) {
  expect_bad("{" + entry("a", "F32", "[2]", "[0,4]") + "}", "1234",
             {"m.safetensors: tensor 'a': expected 8 bytes for f32[2], found 4"});
  expect_bad("{" + entry("a", "F16", "[]", "[0,4]") + "}", "1234",
             {"tensor 'a': expected 2 bytes for f16[], found 4"});
  // The product wraps to 0, or to 4, in 64 bits.
  expect_bad(
      "{" + entry("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", "",
      {"tensor 'a': shape: expected a size that fits 63 bits, found [4294967296,4294967296]"});
  expect_bad("{" + entry("a", "F32", "[4611686018427387905]", "[0,4]") + "}", "1234",
             {"tensor 'a': shape: expected a size that fits 63 bits"});
  expect_bad("{" + entry("a", "F32", "[0,9223372036854775807,2]", "[0,0]") + "}", "",
             {"tensor 'a': shape: expected a size that fits 63 bits"});
  expect_error(ErrorCode::unsupported,
               {"tensor 'a': shape: expected at most 4 dimensions, found 5"},
               [] { parse(file_of("{" + entry("a", "U8", "[1,1,1,1,1]", "[0,1]") + "}", "1")); });
}

TEST(SafetensorsTest, Layout) {
  const auto two = [](const std::string& a, const std::string& b) {
    return "{" + entry("a", "U8", "[4]", a) + "," + entry("b", "U8", "[4]", b) + "}";
  };
  EXPECT_EQ(parse(file_of(two("[4,8]", "[0,4]"), "12345678")).tensors().size(), 2u);
  expect_bad(
      two("[0,4]", "[2,6]"), "123456",
      {"m.safetensors: tensor 'b': data_offsets: expected to begin at 4", "found 2", "overlap"});
  expect_bad(two("[0,4]", "[0,4]"), "1234", {"tensor 'b'", "expected to begin at 4", "overlap"});
  expect_bad(two("[0,4]", "[5,9]"), "123456789", {"tensor 'b'", "found 5", "a gap"});
  expect_bad(two("[1,5]", "[5,9]"), "123456789", {"tensor 'a'", "expected to begin at 0", "a gap"});
  expect_bad(
      two("[0,4]", "[4,8]"), "1234567",
      {"tensor 'b': data_offsets: expected an end within the 7 bytes", "truncated", "found 8"});
  expect_bad(two("[0,4]", "[8,4]"), "12345678", {"tensor 'b'", "expected begin <= end", "[8, 4]"});
  expect_bad(two("[0,4]", "[4,8]"), "123456789",
             {"m.safetensors: expected 8 bytes of data as the header says, found 9"});
  expect_bad("{}", "1", {"expected 0 bytes of data", "found 1"});
  expect_bad("{" + entry("a", "F32", "[]", "[0,9223372036854775807]") + "}", "1234",
             {"tensor 'a'", "found 9223372036854775807"});
  // What has no size of ours must keep to the layout too.
  expect_bad("{" + entry("a", "I8", "[4]", "[0,4]") + "," + entry("b", "U8", "[2]", "[2,4]") + "}",
             "1234", {"tensor 'b'", "overlap"});
}

TEST(SafetensorsTest, TruncatedAnywhere) {
  const std::string whole = file_of("{" + entry("a", "F32", "[3]", "[0,12]") + "}", "123456789012");
  for (std::size_t length = 0; length < whole.size(); ++length)
    expect_error(ErrorCode::invalid_file, {"m.safetensors", "expected", "found"},
                 [&] { parse(whole.substr(0, length)); });
  EXPECT_EQ(parse(whole).tensors().size(), 1u);
}

TEST(SafetensorsTest, MessagesArePrintable) {
  expect_bad("{" + entry("\\u001b[31m\\u0000", "F32", "[2]", "[0,4]") + "}", "1234",
             {"tensor '\\x1b[31m\\x00': expected 8 bytes"});
  expect_bad("{" + entry(std::string(5000, 'a'), "F32", "[2]", "[0,4]") + "}", "1234",
             {"aaa...': expected 8 bytes"});
}

// --- writing -----------------------------------------------------------------------------------

TEST(WriteSafetensorsTest, ReadsBackWhatWasWritten) {
  const TempDir dir;
  std::vector<float> f(6);
  std::vector<std::uint16_t> h = {1, 2, 3};
  std::vector<double> d = {0.5};
  std::vector<unsigned char> u = {9, 8, 7};
  for (std::size_t i = 0; i < f.size(); ++i) f[i] = static_cast<float>(i) / 4;
  const std::vector<NamedTensor> tensors = {
      {"u", Tensor::dense(u.data(), DType::u8, {3})},
      {"z.bf16", Tensor::dense(h.data(), DType::bf16, {3, 1})},
      {"b.f32", Tensor::dense(f.data(), DType::f32, {2, 3})},
      {"scalar", Tensor::dense(d.data(), DType::f64, {})},
      {"empty", Tensor::dense(nullptr, DType::f16, {0, 4})},
  };
  const auto path = dir / "out.safetensors";
  write_safetensors(path, tensors, {{"format", "pt"}, {"by", "test"}});
  const SafetensorsFile file = SafetensorsFile::open(path);
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const NamedTensor& expected : tensors) {
    const Tensor found = file.tensors().at(expected.name);
    EXPECT_EQ(to_string(found), to_string(expected.tensor)) << expected.name;
    EXPECT_EQ(std::string(static_cast<const char*>(found.data), found.bytes()),
              std::string(static_cast<const char*>(expected.tensor.data), found.bytes()));
  }
  EXPECT_EQ(file.metadata(),
            (std::map<std::string, std::string>{{"format", "pt"}, {"by", "test"}}));

  // The format asks for data on a multiple of 8 bytes, reached with spaces.
  const std::string bytes = read_text_file(path);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  EXPECT_EQ(header_bytes % 8, 0u);
  EXPECT_EQ(bytes.find_last_not_of(' ', 8 + header_bytes - 1),
            bytes.rfind('}', 8 + header_bytes - 1));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);  // no temporary
}

TEST(WriteSafetensorsTest, RefusesWhatItCannotWrite) {
  const TempDir dir;
  std::vector<float> f(6);
  const Tensor dense = Tensor::dense(f.data(), DType::f32, {2, 3});
  const auto write = [&](std::vector<NamedTensor> tensors) {
    write_safetensors(dir / "out.safetensors", tensors);
  };
  expect_error(ErrorCode::invalid_argument, {"tensor 'a'", "expected a dense tensor", "f32[2, 2]"},
               [&] {
                 write({{"a", dense.cols(0, 2)}});
               });
  expect_error(ErrorCode::invalid_argument, {"tensor 'a'", "used once"}, [&] {
    write({{"a", dense}, {"a", dense}});
  });
  expect_error(ErrorCode::invalid_argument, {"__metadata__"}, [&] {
    write({{"__metadata__", dense}});
  });
  expect_error(ErrorCode::invalid_argument, {"expected UTF-8", "x\\ufffd"}, [&] {
    write({{"x\xff", dense}});
  });
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

/// Lets files grow to `bytes` only, as on a full disk, until the end of the scope.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    handler_ = std::signal(SIGXFSZ, SIG_IGN);  // write() then fails with EFBIG
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST(WriteSafetensorsTest, AFullDiskLeavesTheOldFileAndNothingElse) {
  const TempDir dir;
  const auto path = dir.write("out.safetensors", "old");
  std::vector<float> f(100'000);
  const std::vector<NamedTensor> tensors = {{"a", Tensor::dense(f.data(), DType::f32, {100'000})}};
  {
    const FileSizeLimit limit(65536);
    expect_error(ErrorCode::io, {"out.safetensors", "cannot write"},
                 [&] { write_safetensors(path, tensors); });
  }
  EXPECT_EQ(read_text_file(path), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(WriteSafetensorsTest, AFolderThatIsNotThere) {
  const TempDir dir;
  expect_error(ErrorCode::io, {"none/out.safetensors", "cannot create"},
               [&] { write_safetensors(dir / "none/out.safetensors", {}); });
}

TEST(AtomicFileTest, WithoutCommitNothingChanges) {
  const TempDir dir;
  const auto path = dir.write("state", "old");
  {
    AtomicFile file(path);
    file.write(std::as_bytes(std::span("new", 3)));
  }
  EXPECT_EQ(read_text_file(path), "old");
  write_file_atomically(path, std::as_bytes(std::span("new", 3)));
  EXPECT_EQ(read_text_file(path), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

}  // namespace
}  // namespace xlstm::formats
