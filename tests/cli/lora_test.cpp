// Adapters on the command line: --lora where a model is loaded, and merging by convert.

#include <gtest/gtest.h>

#include "cli/program.hpp"
#include "formats/adapter.hpp"

namespace xlstm::test {
namespace {

namespace fs = std::filesystem;

// An adapter of the default model that changes what it writes.
std::string write_adapter(const TemporaryFolder& folder) {
  const fs::path path = folder.path() / "adapter=1";
  fs::create_directories(path);
  std::vector<float> numbers(4 * 256);
  std::uint32_t seed = 1;
  for (float& x : numbers) {
    seed = seed * 1664525U + 1013904223U;
    x = static_cast<float>(seed >> 8) * 0x1p-23F - 1;
  }
  const formats::AdapterMatrix out{"backbone.blocks.5.mlstm_layer.out_proj",
                                   Tensor::dense(numbers.data(), DType::f32, {2, 256}),
                                   Tensor::dense(numbers.data() + 512, DType::f32, {256, 2})};
  formats::write_adapter(path, {.base = "", .rank = 2, .alpha = 0.25, .targets = {"out_proj"}},
                         {&out, 1});
  return path.string();
}

Outcome generate(std::vector<std::string> more) {
  more.insert(more.begin(),
              {"generate", "-p", "ROMEO:", "-n", "40", "--temp", "0", "--threads", "2"});
  const Outcome outcome = run(more);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome;
}

TEST(CliLora, MergedByConvertWritesTheSameText) {
  const TemporaryFolder folder;
  const std::string adapter = write_adapter(folder), merged = folder / "merged";
  const Outcome base = generate({}), with = generate({"--lora", adapter});
  EXPECT_NE(with.out, base.out);
  const Outcome converted =
      run({"convert", "--lora", adapter, "-o", merged, "-m", default_model().string()});
  ASSERT_EQ(converted.status, 0) << converted.err;
  EXPECT_EQ(generate({"-m", merged}).out, with.out);
  EXPECT_EQ(generate({"--lora", adapter + "=0"}).out, base.out);
  EXPECT_NE(generate({"--lora", adapter + "=3"}).out, with.out);
  EXPECT_EQ(generate({"--lora", adapter + "=-1", "--lora", adapter + "=2"}).out, with.out);
}

TEST(CliLora, InfoNamesThemAndStatesBelongToThem) {
  const TemporaryFolder folder;
  const std::string adapter = write_adapter(folder), state = folder / "state";
  const Outcome info = run({"info", "--lora", adapter + "=2", "--json"});
  EXPECT_EQ(info.json()["adapters"], nlohmann::json::array({adapter + "=2"}));
  EXPECT_FALSE(run({"info", "--json"}).json().contains("adapters"));
  EXPECT_NE(run({"info", "--lora", adapter}).out.find("adapters              " + adapter),
            std::string::npos);

  generate({"--state-save", state});
  EXPECT_EQ(run({"generate", "-p", "A", "-n", "1", "--state-load", state}).status, 0);
  const Outcome other =
      run({"generate", "-p", "A", "-n", "1", "--state-load", state, "--lora", adapter});
  EXPECT_EQ(other.status, 1);
  EXPECT_NE(other.err.find("expected a state of model"), std::string::npos) << other.err;
}

TEST(CliLora, WrongOnesAreErrors) {
  const TemporaryFolder folder;
  const Outcome scale = run({"generate", "-p", "A", "--lora", "somewhere=much"});
  EXPECT_EQ(scale.status, 2);
  EXPECT_NE(scale.err.find("'much'"), std::string::npos) << scale.err;
  EXPECT_EQ(run({"generate", "-p", "A", "--lora", "=1"}).status, 2);
  const Outcome missing = run({"generate", "-p", "A", "--lora", folder / "missing"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_NE(missing.err.find("no such adapter directory"), std::string::npos) << missing.err;
  EXPECT_EQ(run({"bench", "--config", "x", "--lora", "y"}).status, 2);
}

}  // namespace
}  // namespace xlstm::test
