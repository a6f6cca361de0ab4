// xlstm generate: continues prompts.

#include <algorithm>

#include "commands.hpp"
#include "console.hpp"
#include "core/check.hpp"
#include "json_output.hpp"
#include "model_options.hpp"
#include "sampler_options.hpp"

namespace xlstm::cli {
namespace {

constexpr const char* kExamples =
    "  xlstm generate -p \"To be, or\"                      the default model, sampled\n"
    "  xlstm generate -m DIR -p \"Once\" -n 200 --temp 0    the likeliest tokens\n"
    "  xlstm generate -f story.txt -n -1 --seed 7         from a file, until end of text\n"
    "  xlstm generate -p A -p B --json                    two prompts in one batch\n"
    "  xlstm generate --prompt-ids 0,5,9 --logprobs 5 --json\n"
    "  xlstm generate -p \"Once\" --state-save s.state      remember, and go on later:\n"
    "  xlstm generate --state-load s.state -p \" and\"";

struct GenerateArguments {
  RunOptions run;
  SamplingOptions sampling;
  std::vector<std::string> prompts;
  std::string file;
  std::vector<std::vector<std::int32_t>> prompt_ids;
  bool escape = false;
  bool no_bos = false;
  bool display_prompt = false;
  bool json = false;
  std::int64_t logprobs = -1;
  std::string state_load;
  std::string state_save;
};

bool parse(Arguments args, GenerateArguments& a) {
  OptionParser parser("generate", "Continues a prompt. The text goes to stdout.", kExamples);
  parser.group("Prompt");
  parser.texts("-p,--prompt", "TEXT", a.prompts,
               "Text to continue; several form a batch (none: starts from BOS)");
  parser.text("-f,--file", "FILE", a.file, "Prompt from a file, taken as it is; -: from stdin");
  parser.custom(
      "--prompt-ids", "N,...",
      [&a](const std::string& list) { a.prompt_ids.push_back(parse_ids(list, "--prompt-ids")); },
      "Prompt as token ids, never with BOS; several form a batch");
  parser.flag("-e,--escape", a.escape, "Read \\n, \\t and \\xHH in -p and --stop");
  parser.flag("--no-bos", a.no_bos, "Never put BOS before a text");
  parser.flag("--display-prompt", a.display_prompt, "Print the prompt before its continuation");
  add_sampling_options(parser, a.sampling);
  parser.group("Output");
  parser.flag("--json", a.json, "One JSON object");
  parser.integer("--logprobs", a.logprobs, 0, 1000,
                 "With --json: log-probabilities of each token and of the K likeliest");
  parser.group("State");
  parser.text("--state-load", "FILE", a.state_load, "Go on from a saved state");
  parser.text("--state-save", "FILE", a.state_save, "Save the state after the last token");
  add_run_options(parser, a.run);
  if (!parser.parse(args)) return false;

  const int sources =
      (a.prompts.empty() ? 0 : 1) + (a.file.empty() ? 0 : 1) + (a.prompt_ids.empty() ? 0 : 1);
  if (sources > 1)
    throw UsageError("the prompt comes from one of -p, -f and --prompt-ids, not from several");
  if ((!a.state_load.empty() || !a.state_save.empty()) &&
      std::max(a.prompts.size(), a.prompt_ids.size()) > 1)
    throw UsageError("--state-load and --state-save work with one prompt, not with several");
  a.run.sequences =
      static_cast<std::int64_t>(std::max<std::size_t>({1, a.prompts.size(), a.prompt_ids.size()}));
  if (a.logprobs >= 0 && !a.json) throw UsageError("--logprobs needs --json");
  if (a.escape) {
    for (std::string& prompt : a.prompts) prompt = unescape(prompt);
    for (std::string& stop : a.sampling.generate.stop) stop = unescape(stop);
  }
  return true;
}

// Ids of every prompt. The library puts BOS into an empty one, unless it follows a state.
std::vector<std::vector<std::int32_t>> prompt_ids(const GenerateArguments& a,
                                                  const LoadedModel& loaded, bool resumed) {
  std::vector<std::vector<std::int32_t>> prompts = a.prompt_ids;
  if (prompts.empty()) {
    std::vector<std::string> texts = a.prompts;
    if (!a.file.empty()) texts = {read_text(a.file)};
    if (texts.empty()) texts = {""};
    for (const std::string& text : texts) {
      prompts.emplace_back();
      if (text.empty()) continue;
      require_tokenizer(loaded, "give the prompt as token ids: --prompt-ids 0,5,9");
      prompts.back() = loaded.model.encode_prompt(text, a.no_bos || resumed);
    }
  }
  for (const std::vector<std::int32_t>& ids : prompts)
    XLSTM_CHECK(!ids.empty() || resumed || !a.no_bos, invalid_argument,
                "the prompt is empty and --no-bos keeps BOS away: there is nothing to continue");
  return prompts;
}

void print_timings(double load_s, std::span<const Generation> generations) {
  Timings sum;
  for (const Generation& g : generations) {
    sum.prompt_tokens += g.timings.prompt_tokens;
    sum.generated_tokens += g.timings.generated_tokens;
    sum.prompt_s += g.timings.prompt_s;  // prompts are read one after the other
    sum.generate_s = std::max(sum.generate_s, g.timings.generate_s);
  }
  const auto speed = [](std::int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  info(
      "load {:.3f} s | prompt {} tokens in {:.3f} s, {:.1f} tok/s | generated {} tokens in {:.3f} "
      "s, {:.1f} tok/s",
      load_s, sum.prompt_tokens, sum.prompt_s, speed(sum.prompt_tokens, sum.prompt_s),
      sum.generated_tokens, sum.generate_s, speed(sum.generated_tokens, sum.generate_s));
}

// What text output shows of a finished generation: its text, or its ids without a tokenizer.
std::string shown(const Generation& generation, bool has_tokenizer) {
  return has_tokenizer ? generation.text : fmt::format("{}", fmt::join(generation.ids, ","));
}

}  // namespace

int run_generate(Arguments args) {
  GenerateArguments a;
  if (!parse(args, a)) return 0;
  apply(a.run.log);
  GenerateOptions options = to_generate_options(a.sampling);
  options.logprobs = static_cast<int>(a.logprobs);
  catch_interrupt();

  LoadedModel loaded = load_model(a.run);
  Model& model = loaded.model;
  const bool has_tokenizer = model.tokenizer() != nullptr;
  if (!options.stop.empty()) require_tokenizer(loaded, "leave --stop away");
  State state = model.make_state();
  if (!a.state_load.empty()) state.load(a.state_load);
  const bool resumed = state.token_count() > 0;
  const auto prompts = prompt_ids(a, loaded, resumed);
  if (options.sampler.temperature > 0) info("seed {}", options.sampler.seed);

  const bool streaming = !a.json && has_tokenizer && prompts.size() == 1;
  if (a.display_prompt && streaming) write_out(model.tokenizer()->decode(prompts[0], true));
  bool closed = false;  // stdout went away: end early, then report it
  ProgressBar bar("reading the prompt", a.run.progress);
  GenerateCallbacks callbacks;
  callbacks.on_prompt = [&bar](std::int64_t done, std::int64_t total) {
    bar.update(static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(total));
    if (done == total) bar.finish();
  };
  callbacks.should_stop = [&closed] { return closed || interrupted(); };
  if (streaming)
    callbacks.on_text = [&closed](std::size_t, std::string_view text) {
      closed = closed || !try_write_out(text);
    };

  std::vector<Generation> generations;
  if (a.state_load.empty() && a.state_save.empty())
    generations = generate(model, prompts, options, callbacks);
  else
    generations.push_back(generate(model, state, prompts[0], options, callbacks));
  bar.finish();

  if (a.json) {
    write_out(generations_json(generations, a.logprobs >= 0, loaded.load_s));
  } else if (streaming) {
    write_out("\n");  // also reports a stdout that closed on the way
  } else {
    for (std::size_t i = 0; i < generations.size(); ++i) {
      if (generations.size() > 1) write_out(fmt::format("--- prompt {} ---\n", i + 1));
      if (a.display_prompt && has_tokenizer) write_out(model.tokenizer()->decode(prompts[i], true));
      write_out(shown(generations[i], has_tokenizer) + "\n");
    }
  }
  if (!a.state_save.empty()) {
    state.save(a.state_save);
    info("state after {} tokens saved to {}", state.token_count(), a.state_save);
  }
  print_timings(loaded.load_s, generations);
  return 0;
}

}  // namespace xlstm::cli
