// xlstm tokenize: text to ids and back.

#include "commands.hpp"
#include "console.hpp"
#include "core/check.hpp"
#include "json_output.hpp"
#include "model_options.hpp"

namespace xlstm::cli {
namespace {

constexpr const char* kExamples =
    "  xlstm tokenize -p \"To be\"            ids with commas, as --prompt-ids takes them\n"
    "  xlstm tokenize -m DIR -f book.txt --json\n"
    "  xlstm tokenize --decode 53,80,222     back to text\n"
    "  xlstm tokenize -p \"To be\" --pieces    one line per token: id and token";

}  // namespace

int run_tokenize(Arguments args) {
  RunOptions run;
  run.device = "cpu";
  std::vector<std::string> prompts;
  std::vector<std::string> decode;
  std::string file;
  bool escape = false;
  bool no_bos = false;
  bool pieces = false;
  bool json = false;
  OptionParser parser("tokenize", "Token ids of a text, with BOS where `generate` would put it.",
                      kExamples);
  parser.group("Input");
  parser.texts("-p,--prompt", "TEXT", prompts, "Text");
  parser.text("-f,--file", "FILE", file, "Text from a file, taken as it is; -: from stdin");
  parser.flag("-e,--escape", escape, "Read \\n, \\t and \\xHH in -p");
  parser.flag("--no-bos", no_bos, "Never put BOS before the text");
  parser.texts("--decode", "N,...", decode, "Text of these ids instead");
  parser.group("Output");
  parser.flag("--pieces", pieces, "One line per token: its id and how the vocabulary writes it");
  parser.flag("--json", json, "One JSON object: {\"ids\"} or {\"text\"}");
  parser.group("Model");
  parser.text("-m,--model", "DIR", run.model,
              "Model directory: Hugging Face or NX-AI (the small default model)", "XLSTM_MODEL");
  add_log_options(parser, run.log);
  if (!parser.parse(args)) return 0;
  apply(run.log);
  if ((prompts.empty() ? 0 : 1) + (file.empty() ? 0 : 1) + (decode.empty() ? 0 : 1) != 1 ||
      prompts.size() > 1 || decode.size() > 1)
    throw UsageError("give exactly one of -p TEXT, -f FILE and --decode N,...");

  const LoadedModel loaded = load_model(run);
  const Tokenizer& tokenizer =
      require_tokenizer(loaded, "copy the checkpoint's tokenizer.json beside its config.json");
  if (!decode.empty()) {
    const std::string text = tokenizer.decode(parse_ids(decode[0], "--decode"));
    write_out(json ? text_json(text) : text + "\n");
    return 0;
  }
  std::string text = file.empty() ? prompts[0] : read_text(file);
  if (escape && file.empty()) text = unescape(text);
  const std::vector<std::int32_t> ids = loaded.model.encode_prompt(text, no_bos);
  if (json) {
    write_out(ids_json(ids));
  } else if (pieces) {
    std::string lines;
    for (const std::int32_t id : ids)
      lines += fmt::format("{:>7}  {}\n", id, tokenizer.id_to_token(id));
    write_out(lines);
  } else {
    write_out(fmt::format("{}\n", fmt::join(ids, ",")));
  }
  return 0;
}

}  // namespace xlstm::cli
