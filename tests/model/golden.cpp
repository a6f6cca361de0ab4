#include "model/golden.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "source_dir.hpp"
#include "test_device.hpp"

namespace xlstm::testing {

namespace fs = std::filesystem;

std::vector<Golden> golden_models() {
  const fs::path source = source_dir(), golden = source / "tests/golden";
  std::vector<Golden> list = {
      {"hf_plain", golden / "hf_plain.safetensors", golden / "hf_plain"},
      {"nxai_large", golden / "large_base.safetensors", golden / "nxai_large"},
      {"large_fused_bias", golden / "large_fused_bias.safetensors", {}},
  };
  const fs::path shared = source / "../shared/golden";
  if (fs::exists(shared / "hf_tied.safetensors")) {
    list.push_back({"hf_tied", shared / "hf_tied.safetensors", shared / "hf_tied"});
    for (const char* name : {"large_base", "large_no_out_norm", "large_wide_v"})
      list.push_back({name, shared / (std::string(name) + ".safetensors"), {}});
  }
  return list;
}

std::vector<Golden> golden_stacks() {
  const fs::path source = source_dir(), golden = source / "tests/golden";
  std::vector<Golden> list = {
      {"v1_mixed", golden / "v1_mixed.safetensors", {}},
      {"v1_community", golden / "v1_mixed_tied_bias.safetensors", golden / "v1_community"}};
  const fs::path shared = source / "../shared/golden";
  for (const char* name : {"v1_mlstm", "v1_slstm", "v1_mixed_tied_bias"}) {
    const fs::path file = shared / (std::string(name) + ".safetensors");
    if (fs::exists(file)) list.push_back({std::string(name) + "_shared", file, {}});
  }
  return list;
}

void write_nxai_directory(const formats::SafetensorsFile& file, const fs::path& directory) {
  fs::create_directories(directory);
  std::ofstream yaml(directory / "config.yaml");
  auto config = nlohmann::json::parse(file.metadata().at("config"));
  if (config.contains("slstm_at")) {  // the first xLSTM: the summary becomes NX-AI's nested form
    config["mlstm_block"] = {{"mlstm", config["mlstm"]}};
    config["slstm_block"] = {{"slstm", config["slstm"]}, {"feedforward", config["feedforward"]}};
    for (const char* key : {"mlstm", "slstm", "feedforward"}) config.erase(key);
  }
  for (const auto& [key, value] : config.items())
    yaml << key << ": " << (value.is_string() ? value.get<std::string>() : value.dump()) << "\n";
  std::vector<formats::NamedTensor> tensors;
  const std::string prefix = "param.";
  for (const auto& [name, tensor] : file.tensors())
    if (name.starts_with(prefix)) tensors.push_back({name.substr(prefix.size()), tensor});
  formats::write_safetensors(directory / "model_0.safetensors", tensors);
}

Model load_golden(const Golden& golden, const fs::path& scratch, LoadOptions options) {
  options.device = test_device();
  if (!golden.model.empty()) return Model::load(golden.model, options);
  write_nxai_directory(formats::SafetensorsFile::open(golden.outputs), scratch);
  return Model::load(scratch, options);
}

std::vector<double> numbers(const formats::SafetensorsFile& file, const std::string& name) {
  const Tensor t = file.tensors().at(name);
  std::vector<double> values(static_cast<std::size_t>(t.count()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (t.dtype == DType::f32) values[i] = t.as<float>()[i];
    if (t.dtype == DType::f64) values[i] = t.as<double>()[i];
    if (t.dtype == DType::i64) values[i] = static_cast<double>(t.as<std::int64_t>()[i]);
  }
  return values;
}

std::vector<std::int32_t> ids_of(const formats::SafetensorsFile& file, const std::string& name,
                                 std::int64_t row) {
  const Tensor t = file.tensors().at(name);
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < t.dim(1); ++i)
    ids.push_back(static_cast<std::int32_t>(t.row<std::int64_t>(row)[i]));
  return ids;
}

namespace {

template <class Real>
double largest(std::span<const Real> a, std::span<const double> b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest)) largest = difference;  // NaN counts
  }
  return largest;
}
double relative(double difference, std::span<const double> b) {
  double scale = 0;
  for (const double x : b) scale = std::max(scale, std::fabs(x));
  return scale > 0 ? difference / scale : difference;
}

}  // namespace

double largest_difference(std::span<const float> a, std::span<const double> b) {
  return largest(a, b);
}
double relative_difference(std::span<const float> a, std::span<const double> b) {
  return relative(largest(a, b), b);
}
double relative_difference(std::span<const double> a, std::span<const double> b) {
  return relative(largest(a, b), b);
}

}  // namespace xlstm::testing
