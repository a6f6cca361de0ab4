// Checkpoints: round trips to the bit, and what is left when something goes wrong.

#include "train/checkpoint.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>

#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;
using formats::NamedTensor;
using formats::TempDir;
using Steps = std::vector<std::int64_t>;

// Two tensors with memory of their own.
struct Values {
  explicit Values(float seed, std::size_t count = 1000) : a(count), b(7) {
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = seed + static_cast<float>(i) / 3;
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::uint16_t>(i + 40000);
    if (!a.empty()) a[0] = -0.0F;
    if (a.size() > 1) {  // a NaN of some bits, which a comparison of numbers would not see
      const std::uint32_t bits = 0x7fc12345U;
      std::memcpy(&a[1], &bits, sizeof(bits));
    }
  }
  std::vector<NamedTensor> tensors() {
    return {
        {"weight.a", Tensor::dense(a.data(), DType::f32, {static_cast<std::int64_t>(a.size())})},
        {"m.b", Tensor::dense(b.data(), DType::bf16, {7})}};
  }
  bool same_bits(const Values& other) const {
    return a.size() == other.a.size() && b == other.b &&
           std::memcmp(a.data(), other.a.data(), a.size() * sizeof(float)) == 0;
  }
  std::vector<float> a;
  std::vector<std::uint16_t> b;
};

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

class TrainCheckpointTest : public ::testing::Test {
 protected:
  void write(std::int64_t step, float seed, std::int64_t keep = 10) {
    Values values(seed);
    write_checkpoint(folder, step, values.tensors(), {{"seed", std::to_string(seed)}}, keep);
  }
  void expect_holds(std::int64_t step, float seed) {
    Values values(0);
    read_tensors(folder, step, values.tensors());
    EXPECT_TRUE(values.same_bits(Values(seed))) << step;
    EXPECT_EQ(read_facts(folder, step).at("seed"), std::to_string(seed));
  }
  // Reading fails and changes nothing.
  void expect_unreadable(std::int64_t step, std::initializer_list<std::string_view> parts,
                         std::vector<NamedTensor> tensors, const Values& values,
                         ErrorCode code = ErrorCode::invalid_file) {
    const Values before = values;
    expect_error(code, parts, [&] { read_tensors(folder, step, tensors); });
    EXPECT_TRUE(values.same_bits(before));
  }
  fs::path state_of(std::int64_t step) const {
    return folder / ("step-00000000" + std::to_string(step)) / "state.safetensors";
  }

  TempDir dir;
  fs::path folder = dir / "checkpoints";
};

TEST_F(TrainCheckpointTest, ComesBackToTheBit) {
  EXPECT_EQ(list_checkpoints(folder), Steps{});
  const RunFacts facts = {{"key.run.sample_prompt", "\"\\n\""},
                          {"data", "text, 5 tokens"},
                          {"empty", ""},
                          {"gr\xc3\xbc\xc3\x9f\x65", "\xe2\x82\xac"}};
  Values written(3), read(9);
  write_checkpoint(folder, 1234, written.tensors(), facts, 1);
  EXPECT_TRUE(fs::exists(folder / "step-000001234" / "state.safetensors"));
  EXPECT_EQ(list_checkpoints(folder), Steps{1234});
  EXPECT_FALSE(read.same_bits(written));
  read_tensors(folder, 1234, read.tensors());
  EXPECT_TRUE(read.same_bits(written));
  EXPECT_EQ(read_facts(folder, 1234), facts);
}

TEST_F(TrainCheckpointTest, KeepsTheNewest) {
  for (const std::int64_t step : {2, 7, 10, 100}) write(step, static_cast<float>(step), 2);
  EXPECT_EQ(list_checkpoints(folder), (Steps{10, 100}));
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"step-000000010", "step-000000100"}));
  expect_holds(10, 10);
  expect_holds(100, 100);
  write(101, 5, 1);
  EXPECT_EQ(list_checkpoints(folder), Steps{101});
  // By number, not by name.
  write(9'999'999'999, 6, 2);
  EXPECT_EQ(list_checkpoints(folder), (Steps{101, 9'999'999'999}));
}

TEST_F(TrainCheckpointTest, TheSameStepIsReplaced) {
  write(5, 1);
  write(5, 2);
  EXPECT_EQ(list_checkpoints(folder), Steps{5});
  expect_holds(5, 2);
}

TEST_F(TrainCheckpointTest, WhatIsLeftOfAnInterruptedWriteIsNone) {
  write(5, 1);
  fs::create_directories(folder / "step-000000006.tmp");
  std::ofstream(folder / "step-000000006.tmp" / "state.safetensors") << "half";
  fs::create_directories(folder / "step-");
  fs::create_directories(folder / "best");
  std::ofstream(folder / "step-000000009") << "a file";
  EXPECT_EQ(list_checkpoints(folder), Steps{5});
  write(6, 2);
  EXPECT_EQ(list_checkpoints(folder), (Steps{5, 6}));
  EXPECT_FALSE(fs::exists(folder / "step-000000006.tmp"));
  expect_holds(6, 2);
}

TEST_F(TrainCheckpointTest, ATruncatedStateIsNamedAndChangesNothing) {
  write(5, 1);
  const auto size = fs::file_size(state_of(5));
  Values values(8);
  for (const auto left : {size - 1, size - 4000, size / 2, std::uintmax_t{20}, std::uintmax_t{4},
                          std::uintmax_t{0}}) {
    SCOPED_TRACE(left);
    fs::resize_file(state_of(5), left);
    expect_unreadable(5, {state_of(5).string()}, values.tensors(), values);
    expect_error(ErrorCode::invalid_file, {state_of(5).string()}, [&] { read_facts(folder, 5); });
  }
  fs::remove(state_of(5));
  expect_unreadable(5, {state_of(5).string()}, values.tensors(), values, ErrorCode::not_found);
}

TEST_F(TrainCheckpointTest, TensorsThatDoNotFitAreNamedAndChangeNothing) {
  write(5, 1);
  const std::string file = state_of(5).string();
  Values values(8), other(8, 999);
  auto tensors = values.tensors();
  tensors.push_back({"v.c", tensors[1].tensor});
  expect_unreadable(5, {file, "'v.c' is missing"}, tensors, values);
  expect_unreadable(5, {file, "'weight.a'", "999", "1000"}, other.tensors(), other);
  tensors = values.tensors();
  tensors[1].tensor.dtype = DType::f16;
  expect_unreadable(5, {file, "'m.b'", "expected", "found"}, tensors, values);
}

TEST_F(TrainCheckpointTest, AFolderThatCannotBeIsNamed) {
  dir.write("checkpoints", "a file");
  expect_error(ErrorCode::io, {folder.string(), "create"}, [&] { write(5, 1); });
  EXPECT_EQ(list_checkpoints(folder), Steps{});
  folder = dir / std::string(300, 'x');
  expect_error(ErrorCode::io, {std::string(300, 'x')}, [&] { write(5, 1); });
}

// A limit on the size of files, as a disk that is full.
class FileLimit {
 public:
  explicit FileLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;
  ~FileLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

TEST_F(TrainCheckpointTest, AWriteThatFailsLeavesTheEarlierOnesWhole) {
  write(5, 1, 2);
  write(6, 2, 2);
  for (const rlim_t limit : {0, 100, 3000}) {
    SCOPED_TRACE(limit);
    for (const std::int64_t step : {6, 7}) {  // one that is there, and a new one
      expect_error(ErrorCode::io, {"state.safetensors"}, [&] {
        const FileLimit full(limit);
        write(step, 3, 1);
      });
      EXPECT_EQ(names_in(folder), (std::vector<std::string>{"step-000000005", "step-000000006"}));
    }
  }
  expect_holds(5, 1);
  expect_holds(6, 2);
  write(7, 3, 2);
  EXPECT_EQ(list_checkpoints(folder), (Steps{6, 7}));
}

}  // namespace
}  // namespace xlstm::train
