#pragma once
// Flags that every subcommand with a model has, and loading by them.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "option_parser.hpp"
#include "xlstm/xlstm.hpp"

namespace xlstm::cli {

/// What all subcommands have: how much to tell on stderr.
struct LogOptions {
  std::string level = "info";
  bool verbose = false;
};
void add_log_options(OptionParser& parser, LogOptions& options);
void apply(const LogOptions& options);

struct RunOptions {
  std::string model;
  std::string dtype;  ///< empty: f32, or on cuda bf16 if the weights are
  std::string prefill_dtype = "same", state_dtype = "f32";
  std::string pack_weights = "auto";
  std::string device;  ///< as typed; empty: cuda where there is one, else cpu
  bool exact = false;
  std::vector<std::string> lora;  ///< as typed: DIR or DIR=SCALE
  std::int64_t sequences = 1;     ///< at once, without an option of its own
  std::int64_t threads = 0;
  std::int64_t chunk_size = 0;
  bool check_tensors = false;
  bool progress = false;
  LogOptions log;
};

/// --lora, for commands that have not all of add_run_options().
void add_lora_option(OptionParser& parser, RunOptions& options);
/// -m, --threads and the other flags of RunOptions.
void add_run_options(OptionParser& parser, RunOptions& options);

/// The library's form of these options. @throws UsageError
LoadOptions to_load_options(const RunOptions& options);

/// The type of most of the weights' bytes.
DType main_dtype(const Model& model);
/// The arithmetic of a model with weights of this type where no --dtype is given: a card is slow in
/// f32 and fast in bf16.
DType arithmetic_on(Device device, DType weights);

/// The default model: beside the program, in the current directory, or installed.
std::optional<std::filesystem::path> find_default_model();
/// The directory -m names, or else the default model. @throws Error(not_found) with a hint
std::filesystem::path model_directory(const std::string& option);

struct LoadedModel {
  Model model;
  std::filesystem::path directory;
  double load_s = 0;
};
/// Loads with a progress bar. @throws UsageError, Error
LoadedModel load_model(const RunOptions& options);

/// The tokenizer, or Error(not_found) that says what to do without. `hint` ends the message.
const Tokenizer& require_tokenizer(const LoadedModel& loaded, const std::string& hint);

/// Content of a file, or of stdin for "-". @throws Error(not_found), Error(io)
std::string read_text(const std::string& file);
/// Text with \n, \t, \r, \\, \", \' and \xHH replaced.
std::string unescape(const std::string& text);

/// "0,5,9" as ids. @throws UsageError
std::vector<std::int32_t> parse_ids(const std::string& text, const std::string& flag);

}  // namespace xlstm::cli
