#pragma once
// Flags of the sampler and of when to stop, as `generate` and `chat` have them.

#include <cstdint>
#include <string>
#include <vector>

#include "option_parser.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::cli {

struct SamplingOptions {
  GenerateOptions generate;
  std::int64_t predict = 128;
  std::int64_t top_k = 40;
  std::int64_t repeat_last_n = 64;
  std::int64_t seed = -1;
};

void add_sampling_options(OptionParser& parser, SamplingOptions& options);

/// The library's form; draws a random seed where none was given.
GenerateOptions to_generate_options(const SamplingOptions& options);

}  // namespace xlstm::cli
