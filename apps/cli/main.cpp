// xlstm: the command-line program. Results go to stdout, everything else to stderr; the exit status
// is 0 for success, 2 for a wrong command line and 1 for every other failure.

#include <signal.h>

#include <array>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "commands.hpp"
#include "console.hpp"
#include "option_parser.hpp"
#include "xlstm/error.hpp"

namespace xlstm::cli {
namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(Arguments);
};

constexpr std::array kCommands = {
    Command{"generate", "Continue a prompt", run_generate},
    Command{"chat", "Continue line by line what you type, keeping the state", run_chat},
    Command{"tokenize", "Text to token ids and back", run_tokenize},
    Command{"eval", "Likelihood, perplexity and bits per byte of a text", run_eval},
    Command{"info", "What a model directory holds", run_info},
    Command{"convert", "Write a model as a Hugging Face directory", run_convert},
    Command{"train", "Train a model, from a configuration file", run_train},
    Command{"bench", "Speed beside what this machine could do at most", run_bench},
    Command{"doctor", "Check this machine and this build", run_doctor},
};

std::string usage() {
  std::string text = "xlstm " XLSTM_VERSION
                     ": runs xLSTM language models\n\n"
                     "Usage: xlstm COMMAND [OPTIONS]\n\nCommands:\n";
  for (const Command& command : kCommands)
    text += fmt::format("  {:<10}{}\n", command.name, command.summary);
  text +=
      "\nOptions:\n"
      "  -h, --help     This text; `xlstm COMMAND --help` tells more about a command\n"
      "  --version      Version\n\n"
      "Examples:\n"
      "  xlstm generate -p \"To be, or\" -n 200      the default model continues a prompt\n"
      "  xlstm generate -m DIR -f prompt.txt       another model, a prompt from a file\n"
      "  xlstm info -m DIR                         what is in a model directory\n"
      "  xlstm doctor                              is this machine set up well?\n";
  return text;
}

int dispatch(const std::vector<std::string>& args) {
  if (args.empty()) {
    fmt::print(stderr, "{}", usage());
    return 2;
  }
  const std::string& first = args.front();
  if (first == "-h" || first == "--help" || first == "help") {
    if (first == "help" && args.size() > 1) return dispatch({args[1], "--help"});
    write_out(usage());
    return 0;
  }
  if (first == "--version") {
    write_out("xlstm " XLSTM_VERSION "\n");
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (first == command.name) return command.run(Arguments(args).subspan(1));
    names.emplace_back(command.name);
  }
  if (first.starts_with("-")) {
    names = {"--help", "--version"};
    const std::string guess = nearest(first, names);
    throw UsageError(
        guess.empty()
            ? fmt::format("'{}' comes after a command, as in `xlstm generate {} ...`", first, first)
            : fmt::format("unknown option '{}'; did you mean {}?", first, guess));
  }
  const std::string guess = nearest(first, names);
  throw UsageError(fmt::format("unknown command '{}'{}", first,
                               guess.empty() ? "" : fmt::format("; did you mean {}?", guess)));
}

// The border: exceptions become a message and an exit status.
int guarded_main(const std::vector<std::string>& args) {
  try {
    return dispatch(args);
  } catch (const UsageError& error) {
    bool known = false;
    for (const Command& command : kCommands) known |= !args.empty() && args[0] == command.name;
    fmt::print(stderr, "xlstm: {}\nTry `xlstm {}--help`.\n", error.what(),
               known ? args[0] + " " : "");
    return 2;
  } catch (const Error& error) {
    fmt::print(stderr, "xlstm: error: {}\n", error.what());
    if (error.code() == ErrorCode::internal)
      fmt::print(
          stderr,
          "If the model's files are sound (--check-tensors), this is a bug: please report it.\n");
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "xlstm: error: out of memory\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "xlstm: error: {}\n", error.what());
  }
  return 1;
}

}  // namespace
}  // namespace xlstm::cli

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);  // a closed pipe is a failed write: a message and status 1
  const std::vector<std::string> args(argv + 1, argv + argc);
  return xlstm::cli::guarded_main(args);
}
