// Any text as config.json, config.yaml and generation_config.json: an Error, or a configuration
// whose sizes can be computed and that survives being written.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "formats/config_files.hpp"
#include "xlstm/error.hpp"

namespace {

using namespace xlstm;           // NOLINT: one file, one function
using namespace xlstm::formats;  // NOLINT

template <class Parse>
void try_config(std::string_view text, Parse&& parse) {
  Config config;
  try {
    config = parse(text, "fuzz");
  } catch (const Error&) {
    return;
  }
  if (config.parameter_count() <= 0 || config.state_count() <= 0 || config.ffn_dim() <= 0)
    __builtin_trap();
  const Config back = parse_hf_config(write_hf_config(config, "f32"), "written");
  if (back.parameter_count() != config.parameter_count() || back.unknown != config.unknown)
    __builtin_trap();
  if (config.block_stack && back.block_stack->unknown != config.block_stack->unknown)
    __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try_config(text, parse_hf_config);
  try_config(text, parse_nxai_config);
  try {
    parse_generation_config(text, "fuzz");
  } catch (const Error&) {
  }
  return 0;
}
