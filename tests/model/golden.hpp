#pragma once
// Golden data of whole models: the reference's inputs and outputs, and models to run on them.

#include <filesystem>
#include <string>
#include <vector>

#include "formats/safetensors.hpp"
#include "xlstm/model.hpp"

namespace xlstm::testing {

/// One golden file and the model that belongs to it.
struct Golden {
  std::string name;
  std::filesystem::path outputs;  ///< the .safetensors file
  std::filesystem::path model;    ///< a directory; empty: made of the file's `param.` tensors
};

/// Those of tests/golden, and with `../shared/golden` beside the sources those too.
std::vector<Golden> golden_models();
/// The same of the first xLSTM.
std::vector<Golden> golden_stacks();

/// Writes an NX-AI directory from a golden file's `param.` tensors and its metadata.
void write_nxai_directory(const formats::SafetensorsFile& file,
                          const std::filesystem::path& directory);

/// Loads the model of `golden` on the test device, by way of `scratch` when it has to be written
/// first.
Model load_golden(const Golden& golden, const std::filesystem::path& scratch,
                  LoadOptions options = {});

/// A tensor of a golden file (f32, f64 or i64) as doubles or ids.
std::vector<double> numbers(const formats::SafetensorsFile& file, const std::string& name);
/// Row `row` of a matrix of token ids.
std::vector<std::int32_t> ids_of(const formats::SafetensorsFile& file, const std::string& name,
                                 std::int64_t row);

/// Largest |a - b|, and the same divided by the largest |b|.
double largest_difference(std::span<const float> a, std::span<const double> b);
double relative_difference(std::span<const float> a, std::span<const double> b);
double relative_difference(std::span<const double> a, std::span<const double> b);

}  // namespace xlstm::testing
