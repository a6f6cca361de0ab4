#pragma once
// Models whose weights are float32 and may be written to: where training begins.

#include <cstdint>
#include <filesystem>

#include "xlstm/model.hpp"

namespace xlstm::model {

/// A model with the weights that the reference begins training with (specification A.6 and B.5).
/// A weight is a function of the seed, its parameter and its position alone.
/// @param vocabulary  directory of the tokenizer's files, or empty
Model initial_model(const Config& config, std::uint64_t seed,
                    const std::filesystem::path& vocabulary, const LoadOptions& options);

/// The model of a directory, its weights copied to float32. A configuration that ties lm_head to
/// the embedding is followed where the files hold the same numbers for both.
/// @throws Error naming file, tensor, expected and found
Model trainable_model(const std::filesystem::path& directory, const LoadOptions& options);

}  // namespace xlstm::model
