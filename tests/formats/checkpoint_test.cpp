// Checkpoint: which files of a directory count, and what is wrong with them.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "formats/expect_error.hpp"
#include "formats/safetensors.hpp"
#include "formats/temp_dir.hpp"

namespace xlstm::formats {
namespace {

const std::string kSource = XLSTM_SOURCE_DIR;

TEST(CheckpointTest, ReadsAnNxaiDirectory) {
  const Checkpoint checkpoint = Checkpoint::open(kSource + "/tests/golden/nxai_large");
  EXPECT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(to_string(checkpoint.find("embedding.weight")), "f32[131, 64]");
  EXPECT_EQ(to_string(checkpoint.find("lm_head.weight")), "f32[131, 64]");
  EXPECT_FALSE(checkpoint.find("no.such.tensor"));
  EXPECT_EQ(checkpoint.file_of("no.such.tensor"), kSource + "/tests/golden/nxai_large");
}

TEST(CheckpointTest, ReadsTheDefaultModel) {
  const Checkpoint checkpoint = Checkpoint::open(kSource + "/models/shakespeare-byte");
  EXPECT_EQ(to_string(checkpoint.find("lm_head.weight")), "bf16[320, 256]");
  EXPECT_EQ(checkpoint.file_of("lm_head.weight"),
            kSource + "/models/shakespeare-byte/model.safetensors");
}

TEST(CheckpointTest, ReadsBytesOfTensorsFromTheirFiles) {
  Checkpoint checkpoint = Checkpoint::open(kSource + "/tests/golden/nxai_large");
  for (const bool closed : {false, true}) {
    if (closed) checkpoint.close();
    for (const std::string& name : checkpoint.names()) {
      const Tensor t = checkpoint.find(name);
      const auto* const mapped = static_cast<const std::byte*>(t.data);
      std::vector<std::byte> read(t.bytes());
      checkpoint.read(mapped, read);
      EXPECT_EQ(std::memcmp(read.data(), mapped, read.size()), 0) << name;
      checkpoint.read(mapped + read.size() - 3, std::span(read).first(3));
      EXPECT_EQ(std::memcmp(read.data(), mapped + t.bytes() - 3, 3), 0) << name;
    }
  }
  const std::vector<std::byte> elsewhere(5, std::byte{7});
  std::vector<std::byte> read(5);
  checkpoint.read(elsewhere.data(), read);
  EXPECT_EQ(read, elsewhere);
}

TEST(MappedFileTest, ReadsWhatItKeptOpen) {
  const TempDir dir;
  const auto path = dir.write("file", "0123456789");
  std::vector<std::byte> read(4);
  const MappedFile closed(path);
  EXPECT_FALSE(closed.read(closed.bytes().data(), read));
  MappedFile file(path, true);
  EXPECT_FALSE(file.read(closed.bytes().data(), read));
  EXPECT_FALSE(file.read(file.bytes().data() + 10, std::span(read).first(0)));
  EXPECT_TRUE(file.read(file.bytes().data() + 6, read));
  EXPECT_EQ(std::memcmp(read.data(), "6789", 4), 0);
  std::filesystem::resize_file(path, 8);
  expect_error(ErrorCode::io, {path.string(), "expected 10 bytes", "end at byte 8", "cut short"},
               [&] { file.read(file.bytes().data() + 6, read); });
  file.close();
  EXPECT_FALSE(file.read(file.bytes().data(), read));
}

/// A shard holding one-element tensors of these names.
void write_shard(const TempDir& dir, const std::string& file,
                 const std::vector<std::string>& names) {
  float value = 1;
  std::vector<NamedTensor> tensors;
  for (const std::string& name : names)
    tensors.push_back({name, Tensor::dense(&value, DType::f32, {1})});
  write_safetensors(dir / file, tensors);
}

void write_index(const TempDir& dir, const std::string& weight_map) {
  dir.write("model.safetensors.index.json",
            R"({"metadata": {"total_size": 8}, "weight_map": )" + weight_map + "}");
}

TEST(CheckpointTest, ReadsShardsByTheirIndex) {
  const TempDir dir;
  write_shard(dir, "model-00001-of-00002.safetensors", {"a", "b"});
  write_shard(dir, "model-00002-of-00002.safetensors", {"c"});
  write_index(dir, R"({"a": "model-00001-of-00002.safetensors",
                       "b": "model-00001-of-00002.safetensors",
                       "c": "model-00002-of-00002.safetensors"})");
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(checkpoint.bytes(), 12u);
  EXPECT_EQ(checkpoint.file_of("c"), (dir / "model-00002-of-00002.safetensors").string());
  EXPECT_EQ(checkpoint.find("c").as<float>()[0], 1.0f);
}

TEST(CheckpointTest, OneFileCountsBeforeShards) {  // as in transformers
  const TempDir dir;
  write_shard(dir, "model.safetensors", {"a"});
  write_index(dir, R"({"b": "no-such-file.safetensors"})");
  EXPECT_EQ(Checkpoint::open(dir.path()).names(), std::vector<std::string>{"a"});
}

TEST(CheckpointTest, NothingThere) {
  const TempDir dir;
  expect_error(ErrorCode::not_found,
               {dir.path().string(),
                "expected model.safetensors, model.safetensors.index.json or "
                "model_0.safetensors, found none"},
               [&] { Checkpoint::open(dir.path()); });
  expect_error(ErrorCode::not_found, {"none", "expected a directory, found nothing there"},
               [&] { Checkpoint::open(dir / "none"); });
  dir.write("file", "");
  expect_error(ErrorCode::not_found, {"expected a directory, found a file"},
               [&] { Checkpoint::open(dir / "file"); });
}

TEST(CheckpointTest, IndexNamesAMissingShard) {
  const TempDir dir;
  write_shard(dir, "x.safetensors", {"a"});
  write_index(dir, R"({"a": "x.safetensors", "b": "y.safetensors"})");
  expect_error(ErrorCode::not_found,
               {"y.safetensors: expected this shard, which model.safetensors.index.json names"},
               [&] { Checkpoint::open(dir.path()); });
}

TEST(CheckpointTest, ShardLacksATensor) {
  const TempDir dir;
  write_shard(dir, "x.safetensors", {"a"});
  write_shard(dir, "y.safetensors", {"c"});
  write_index(dir, R"({"a": "x.safetensors", "b": "y.safetensors", "c": "y.safetensors"})");
  expect_error(ErrorCode::invalid_file,
               {"index.json: tensor 'b': expected it in y.safetensors, found it in no shard"},
               [&] { Checkpoint::open(dir.path()); });
  write_index(dir, R"({"a": "x.safetensors", "c": "x.safetensors", "d": "y.safetensors"})");
  expect_error(
      ErrorCode::invalid_file,
      {"index.json: tensor 'c': expected it in x.safetensors, found it in ", "y.safetensors"},
      [&] { Checkpoint::open(dir.path()); });
}

TEST(CheckpointTest, TensorInTwoShards) {
  const TempDir dir;
  write_shard(dir, "x.safetensors", {"a", "b"});
  write_shard(dir, "y.safetensors", {"b"});
  write_index(dir, R"({"a": "x.safetensors", "b": "y.safetensors"})");
  expect_error(ErrorCode::invalid_file,
               {"y.safetensors: tensor 'b': expected it in one file, found it in", "x.safetensors"},
               [&] { Checkpoint::open(dir.path()); });
}

TEST(CheckpointTest, IndexStaysInItsDirectory) {
  for (const std::string name : {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".",
                                 "", "a\\\\b", "a\\u0000"}) {
    const TempDir dir;
    write_index(dir, R"({"a": ")" + name + "\"}");
    expect_error(ErrorCode::invalid_file,
                 {"index.json: tensor 'a': expected the name of a file beside it, found string"},
                 [&] { Checkpoint::open(dir.path()); });
  }
}

TEST(CheckpointTest, BrokenIndex) {
  const TempDir dir;
  const auto expect_bad = [&](const std::string& text, std::string_view found) {
    dir.write("model.safetensors.index.json", text);
    expect_error(ErrorCode::invalid_file, {"index.json: ", "expected", found},
                 [&] { Checkpoint::open(dir.path()); });
  };
  expect_bad("", "expected JSON");
  expect_bad("[]", "expected an object with an object weight_map, found an array");
  expect_bad("{}", "expected an object with an object weight_map");
  expect_bad(R"({"weight_map": []})", "expected an object with an object weight_map");
  expect_bad(R"({"weight_map": {}})", "weight_map: expected tensors, found none");
  expect_bad(R"({"weight_map": {"a": 1}})", "tensor 'a': expected the name of a file");
  expect_bad(R"({"weight_map": {"a": "x", "a": "y"}})", "found 'a' twice");
}

TEST(CheckpointTest, NumberedFiles) {
  const TempDir dir;
  write_shard(dir, "model_1.safetensors", {"b"});
  expect_error(ErrorCode::invalid_file,
               {"model_0.safetensors: expected this file, since there is a model_1.safetensors"},
               [&] { Checkpoint::open(dir.path()); });
  write_shard(dir, "model_0.safetensors", {"a"});
  dir.write("model_x.safetensors", "not one of them");
  for (int i = 2; i <= 10; ++i)
    write_shard(dir, fmt::format("model_{}.safetensors", i), {fmt::format("c{}", i)});
  EXPECT_EQ(Checkpoint::open(dir.path()).files().size(), 11u);
  std::filesystem::remove(dir / "model_9.safetensors");
  expect_error(ErrorCode::invalid_file,
               {"model_9.safetensors: expected this file, since there is a model_10.safetensors"},
               [&] { Checkpoint::open(dir.path()); });
  write_shard(dir, "model_9.safetensors", {"a"});
  expect_error(ErrorCode::invalid_file,
               {"model_9.safetensors: tensor 'a': expected it in one file", "model_0.safetensors"},
               [&] { Checkpoint::open(dir.path()); });
}

TEST(CheckpointTest, UnknownElementTypesMatterWhenAsked) {
  const TempDir dir;
  const std::string header = R"({"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]},)"
                             R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  dir.write("model.safetensors", bytes + header + "1234");
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(checkpoint.find("b"));
  expect_error(ErrorCode::unsupported,
               {"model.safetensors: tensor 'a': expected dtype", "found F8_E5M2"},
               [&] { checkpoint.find("a"); });
}

}  // namespace
}  // namespace xlstm::formats
