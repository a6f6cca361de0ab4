// xlstm convert: writes a model as a Hugging Face directory.

#include "commands.hpp"
#include "console.hpp"
#include "core/check.hpp"
#include "model_options.hpp"

namespace xlstm::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kExamples =
    "  xlstm convert -m nxai_directory -o hf_directory       NX-AI to Hugging Face\n"
    "  xlstm convert -m DIR -o DIR-bf16 --dtype bf16         half the size of float32\n"
    "  xlstm convert -m DIR --lora ADAPTER -o MERGED         an adapter becomes part of the "
    "weights";

}  // namespace

int run_convert(Arguments args) {
  RunOptions run;
  run.device = "cpu";
  std::string output;
  std::string dtype;
  bool force = false;
  std::int64_t shard_megabytes = 5000;
  OptionParser parser("convert",
                      "Writes a model as a Hugging Face directory that transformers reads: "
                      "config.json, safetensors, the tokenizer's files.",
                      kExamples);
  parser.group("Model");
  parser.text("-m,--model", "DIR", run.model, "Model directory: Hugging Face or NX-AI",
              "XLSTM_MODEL");
  add_lora_option(parser, run);
  parser.flag("--check-tensors", run.check_tensors, "Refuse weights that hold NaN or infinity");
  parser.group("Output");
  parser.text("-o,--output", "DIR", output, "Directory to write");
  parser.choice("--dtype", {"f32", "bf16", "f16"}, dtype,
                "Type of the weights in the new files (as most of them are now)");
  parser.integer("--max-shard-size", shard_megabytes, 1, 1'000'000,
                 "Start a new file after so many megabytes (5000)");
  parser.flag("--force", force, "Write into a directory that is not empty");
  add_log_options(parser, run.log);
  parser.flag("--progress", run.progress, "Progress bars even if stderr is no terminal");
  if (!parser.parse(args)) return 0;
  apply(run.log);
  if (output.empty()) throw UsageError("convert needs a directory to write: -o DIR");

  std::error_code ignored;
  XLSTM_CHECK(!fs::exists(output, ignored) || fs::is_directory(output, ignored), invalid_argument,
              "'{}' exists and is not a directory", output);
  XLSTM_CHECK(force || !fs::exists(output, ignored) || fs::is_empty(output, ignored),
              invalid_argument, "'{}' is not empty; --force writes into it all the same", output);
  const LoadedModel loaded = load_model(run);
  XLSTM_CHECK(!fs::equivalent(loaded.directory, output, ignored), invalid_argument,
              "the output directory is the model's own: '{}'", output);
  const DType to = dtype.empty() ? main_dtype(loaded.model) : *parse_dtype(dtype);
  const Stopwatch watch;
  loaded.model.save(output, to, static_cast<std::uint64_t>(shard_megabytes) * 1'000'000);
  info("wrote {} as {} in {:.1f} s", output, to_string(to), watch.seconds());
  return 0;
}

}  // namespace xlstm::cli
