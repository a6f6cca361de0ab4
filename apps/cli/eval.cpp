// xlstm eval: how likely a model finds a text.

#include <limits>

#include "commands.hpp"
#include "console.hpp"
#include "core/check.hpp"
#include "json_output.hpp"
#include "model_options.hpp"

namespace xlstm::cli {
namespace {

constexpr const char* kExamples =
    "  xlstm eval -f held_out.txt                        windows of 512 tokens\n"
    "  xlstm eval -m DIR -f book.txt --window 2048 --windows 40 --json\n"
    "  xlstm eval -f book.txt --carry                    keep the state between windows";

}  // namespace

int run_eval(Arguments args) {
  RunOptions run;
  EvaluateOptions options;
  std::string file;
  bool json = false;
  OptionParser parser("eval",
                      "Mean negative log-likelihood, perplexity and bits per byte of a text. "
                      "Window i reads ids[N i ..] and predicts the N ids that follow each.",
                      kExamples);
  parser.group("Text");
  parser.text("-f,--file", "FILE", file, "The text; -: from stdin");
  parser.integer("--window", options.window, 1, std::numeric_limits<std::int32_t>::max(),
                 "Predicted tokens per window; a last short window is dropped (512)");
  parser.integer("--windows", options.windows, -1, std::numeric_limits<std::int64_t>::max(),
                 "At most so many windows; -1: all (-1)");
  parser.flag("--no-bos", options.no_bos, "No BOS before each window");
  parser.flag("--carry", options.carry, "Keep the state from window to window");
  parser.group("Output");
  parser.flag("--json", json,
              "One JSON object: {\"nll\",\"tokens\",\"perplexity\",\"bits_per_byte\"}");
  add_run_options(parser, run);
  if (!parser.parse(args)) return 0;
  apply(run.log);
  if (file.empty()) throw UsageError("eval needs a text: -f FILE");
  if (options.windows == 0) throw UsageError("--windows: expected -1 or at least 1, found '0'");

  const std::string text = read_text(file);
  LoadedModel loaded = load_model(run);
  const Tokenizer& tokenizer =
      require_tokenizer(loaded, "copy the checkpoint's tokenizer.json beside its config.json");
  const std::vector<std::int32_t> ids = tokenizer.encode(text);
  XLSTM_CHECK(static_cast<std::int64_t>(ids.size()) > options.window, invalid_argument,
              "'{}' has {} tokens, but a window of {} needs {}; choose a smaller --window", file,
              ids.size(), options.window, options.window + 1);

  ProgressBar bar("evaluating", run.progress);
  options.progress = [&bar](std::int64_t done, std::int64_t total) {
    bar.update(static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(total));
  };
  const Stopwatch watch;
  const Evaluation result = evaluate(loaded.model, ids, options);
  const double seconds = watch.seconds();
  bar.finish();
  if (json)
    write_out(evaluation_json(result));
  else
    write_out(
        fmt::format("nll            {:.6f}\ntokens         {}\nperplexity     {:.4f}\n"
                    "bits per byte  {:.4f}\n",
                    result.nll, result.tokens, result.perplexity, result.bits_per_byte));
  info("load {:.3f} s | {} tokens in {:.3f} s, {:.1f} tok/s", loaded.load_s, result.tokens, seconds,
       static_cast<double>(result.tokens) / seconds);
  return 0;
}

}  // namespace xlstm::cli
