#include "model_options.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <system_error>

#include "console.hpp"
#include "core/check.hpp"
#include "core/cuda_device.hpp"
#include "core/log.hpp"
#include "formats/safetensors.hpp"

namespace xlstm::cli {
namespace fs = std::filesystem;

void add_log_options(OptionParser& parser, LogOptions& options) {
  parser.group("Messages");
  parser.choice("--log-level", {"debug", "info", "warning", "none"}, options.level,
                "What to show on stderr", "XLSTM_LOG_LEVEL");
  parser.flag("-v,--verbose", options.verbose, "Same as --log-level debug");
}

void apply(const LogOptions& options) {
  Verbosity verbosity = Verbosity::info;
  if (options.level == "debug" || options.verbose) verbosity = Verbosity::debug;
  if (options.level == "warning") verbosity = Verbosity::warning;
  if (options.level == "none") verbosity = Verbosity::none;
  set_verbosity(verbosity);
  connect_library_log();
}

void add_lora_option(OptionParser& parser, RunOptions& options) {
  parser.texts("--lora", "DIR[=SCALE]", options.lora,
               "Adapter to add to the weights, SCALE times (1); may be given several times");
}

void add_run_options(OptionParser& parser, RunOptions& options) {
  parser.group("Model");
  parser.text("-m,--model", "DIR", options.model,
              "Model directory: Hugging Face or NX-AI (the small default model)", "XLSTM_MODEL");
  add_lora_option(parser, options);
  parser.choice("--dtype", {"f32", "bf16"}, options.dtype,
                "Arithmetic; bf16 rounds the inputs of matrix products (f32; for bf16 weights on "
                "cuda bf16)",
                "XLSTM_DTYPE");
  parser.choice(
      "--prefill-dtype", {"same", "fp8", "fp8-blocks"}, options.prefill_dtype,
      "What products of prompts multiply on cuda; fp8, with scales for rows or blocks, is faster "
      "and less exact, and takes about half the weights' memory more",
      "XLSTM_PREFILL_DTYPE");
  parser.choice(
      "--pack-weights", {"auto", "on", "off", "both"}, options.pack_weights,
      "On cuda (H100, H200): bf16 weights in three quarters of their memory, which makes writing "
      "and short prompts faster and loses nothing; both: also as they are, for long prompts (auto: "
      "on, where it is faster)",
      "XLSTM_PACK_WEIGHTS");
  parser.choice("--state-dtype", {"f32", "bf16"}, options.state_dtype,
                "States on cuda; bf16 takes half the memory and is faster with many sequences",
                "XLSTM_STATE_DTYPE");
  parser.text("--device", "NAME", options.device,
              "cpu, cuda or cuda:<index> (cuda if there is one)", "XLSTM_DEVICE");
  parser.flag("--exact", options.exact,
              "On cuda: the same bits in any batch; slower beyond 16 sequences");
  parser.integer("-t,--threads", options.threads, 0, 4096, "Threads (0: one per physical core)",
                 "XLSTM_THREADS");
  parser.integer("--chunk-size", options.chunk_size, 0, 65536,
                 "Tokens per chunk when reading a prompt (0: the engine's choice)");
  parser.flag("--check-tensors", options.check_tensors, "Refuse weights that hold NaN or infinity");
  add_log_options(parser, options.log);
  parser.flag("--progress", options.progress, "Progress bars even if stderr is no terminal");
}

namespace {

// The directory's own name may hold a '=': what exists as it is has no scale.
Adapter parse_adapter(const std::string& text) {
  std::error_code ignored;
  const std::size_t equals = text.rfind('=');
  Adapter adapter{.directory = text};
  if (equals != std::string::npos && !fs::is_directory(text, ignored)) {
    adapter.directory = text.substr(0, equals);
    adapter.scale = parse_number(std::string_view(text).substr(equals + 1), -1e6, 1e6, "--lora");
  }
  if (adapter.directory.empty())
    throw UsageError(fmt::format("--lora: expected DIR or DIR=SCALE, found '{}'", text));
  return adapter;
}

// The type that has most bytes.
DType largest(const std::map<DType, std::uint64_t>& bytes) {
  const auto most = std::max_element(
      bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? DType::f32 : most->first;
}

// The same as main_dtype() of a model's files, by their headers. Files that cannot be read are left
// to Model::load(), which says what is wrong with them.
DType main_dtype(const fs::path& directory) {
  std::map<DType, std::uint64_t> bytes;
  try {
    const auto checkpoint = formats::Checkpoint::open(directory);
    for (const auto& file : checkpoint.files())
      for (const auto& [name, tensor] : file.tensors())
        bytes[tensor.dtype] += static_cast<std::uint64_t>(tensor.count()) * size_of(tensor.dtype);
  } catch (const Error&) {
    return DType::f32;
  }
  return largest(bytes);
}

}  // namespace

DType main_dtype(const Model& model) {
  std::map<DType, std::uint64_t> bytes;
  for (const ParameterInfo& parameter : model.parameters()) {
    std::uint64_t count = size_of(parameter.dtype);
    for (const std::int64_t size : parameter.shape) count *= static_cast<std::uint64_t>(size);
    bytes[parameter.dtype] += count;
  }
  return largest(bytes);
}

DType arithmetic_on(Device device, DType weights) {
  return !device.is_cpu() && weights == DType::bf16 ? DType::bf16 : DType::f32;
}

LoadOptions to_load_options(const RunOptions& options) {
  LoadOptions load;
  try {
    if (!options.device.empty())
      load.device = parse_device(options.device);
    else if (!query_cuda().devices.empty())
      load.device = {DeviceType::cuda, 0};
  } catch (const Error& error) {
    throw UsageError(fmt::format("--{}", error.what()));
  }
  load.exact = options.exact;
  load.dtype = options.dtype.empty() ? DType::f32 : *parse_dtype(options.dtype);
  if (options.prefill_dtype == "fp8") load.prefill = Prefill::fp8;
  if (options.prefill_dtype == "fp8-blocks") load.prefill = Prefill::fp8_blocks;
  if (options.pack_weights == "on") load.packing = Packing::on;
  if (options.pack_weights == "off") load.packing = Packing::off;
  if (options.pack_weights == "both") load.packing = Packing::both;
  load.state_dtype = *parse_dtype(options.state_dtype);
  load.sequences = options.sequences;
  load.threads = static_cast<int>(options.threads);
  load.check_tensors = options.check_tensors;
  load.chunk_size = options.chunk_size;
  for (const std::string& text : options.lora) load.adapters.push_back(parse_adapter(text));
  return load;
}

std::optional<fs::path> find_default_model() {
  const fs::path model = fs::path("models") / "shakespeare-byte";
  std::vector<fs::path> candidates;
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  if (!program.empty()) {
    const fs::path bin = program.parent_path();
    candidates.push_back(bin / ".." / ".." / ".." / model);        // build/<preset>/bin
    candidates.push_back(bin / ".." / "share" / "xlstm" / model);  // installed
  }
  candidates.push_back(model);
  for (const fs::path& candidate : candidates) {
    if (fs::is_regular_file(candidate / "config.json", ignored))
      return fs::weakly_canonical(candidate, ignored);
  }
  return std::nullopt;
}

fs::path model_directory(const std::string& option) {
  std::error_code ignored;
  if (option.empty()) {
    const std::optional<fs::path> found = find_default_model();
    XLSTM_CHECK(found.has_value(), not_found,
                "no model given and the default model (models/shakespeare-byte) was not found; "
                "name a model directory with -m DIR or in XLSTM_MODEL");
    return *found;
  }
  const fs::path path = option;
  XLSTM_CHECK(fs::exists(path, ignored), not_found,
              "model directory '{}' does not exist; -m names a directory with config.json and "
              "safetensors files",
              option);
  XLSTM_CHECK(fs::is_directory(path, ignored), invalid_argument,
              "'{}' is a file; -m names the directory that holds config.json and the safetensors "
              "files",
              option);
  return path;
}

LoadedModel load_model(const RunOptions& options) {
  const Stopwatch watch;
  LoadOptions load = to_load_options(options);
  const fs::path directory = model_directory(options.model);
  if (options.dtype.empty() && !load.device.is_cpu()) {
    const DType weights = main_dtype(directory);
    load.dtype = arithmetic_on(load.device, weights);
    if (load.dtype != DType::bf16)
      log(LogLevel::info,
          fmt::format("{} weights are used as they are; --dtype bf16 rounds them, for "
                      "less memory and several times the speed",
                      to_string(weights)));
  }
  ProgressBar bar("loading", options.progress, ProgressBar::Counts::bytes);
  load.progress = [&bar](std::uint64_t done, std::uint64_t total) { bar.update(done, total); };
  Model model = Model::load(directory, load);
  return {std::move(model), directory, watch.seconds()};
}

const Tokenizer& require_tokenizer(const LoadedModel& loaded, const std::string& hint) {
  const Tokenizer* tokenizer = loaded.model.tokenizer();
  XLSTM_CHECK(tokenizer != nullptr, not_found,
              "'{}' has no tokenizer.json, so it cannot read text; {}", loaded.directory.string(),
              hint);
  return *tokenizer;
}

std::string read_text(const std::string& file) {
  std::error_code ignored;
  XLSTM_CHECK(file == "-" || !fs::is_directory(file, ignored), invalid_argument,
              "'{}' is a directory, not a text file", file);
  std::FILE* stream = file == "-" ? stdin : std::fopen(file.c_str(), "rb");
  XLSTM_CHECK(stream != nullptr, not_found, "could not open '{}': {}", file, std::strerror(errno));
  std::string text;
  char block[65536];
  while (const std::size_t n = std::fread(block, 1, sizeof(block), stream)) text.append(block, n);
  const bool failed = std::ferror(stream) != 0;
  if (stream != stdin) std::fclose(stream);
  XLSTM_CHECK(!failed, io, "could not read '{}': {}", file, std::strerror(errno));
  return text;
}

std::string unescape(const std::string& text) {
  const auto hex = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      result += text[i];
      continue;
    }
    const char c = text[++i];
    switch (c) {
      case 'n': result += '\n'; break;
      case 't': result += '\t'; break;
      case 'r': result += '\r'; break;
      case '\\':
      case '"':
      case '\'': result += c; break;
      case 'x':
        if (i + 2 < text.size() && hex(text[i + 1]) >= 0 && hex(text[i + 2]) >= 0) {
          result += static_cast<char>(hex(text[i + 1]) * 16 + hex(text[i + 2]));
          i += 2;
          break;
        }
        [[fallthrough]];
      default: result += {'\\', c};  // not an escape: leave it as it was
    }
  }
  return result;
}

std::vector<std::int32_t> parse_ids(const std::string& text, const std::string& flag) {
  std::vector<std::int32_t> ids;
  if (text.empty()) return ids;
  for (const std::int64_t id :
       parse_integers(text, 0, std::numeric_limits<std::int32_t>::max(), flag))
    ids.push_back(static_cast<std::int32_t>(id));
  return ids;
}

}  // namespace xlstm::cli
