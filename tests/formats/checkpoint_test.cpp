// Checkpoint: which files of a directory count, and what is wrong with them.

#include <gtest/gtest.h>

#include <string>

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

}  // namespace
}  // namespace xlstm::formats
