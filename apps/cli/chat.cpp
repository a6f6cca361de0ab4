// xlstm chat: continues line by line what the user types, in one state that never fills up.

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "commands.hpp"
#include "console.hpp"
#include "core/check.hpp"
#include "model_options.hpp"
#include "sampler_options.hpp"

namespace xlstm::cli {
namespace {

constexpr const char* kExamples =
    "  xlstm chat                                the default model\n"
    "  xlstm chat -m DIR -n 200 --temp 0.7\n"
    "  xlstm chat --state-load evening.state     go on where /save left off";

constexpr const char* kCommandHelp =
    "Type text and the model continues it. A base model is no assistant: it writes on.\n"
    "  an empty line  writes on without new text\n"
    "  text\\          a backslash at the end of a line: the text goes on in the next line\n"
    "  /regen         writes the last answer anew, from another seed\n"
    "  /reset         forgets everything\n"
    "  /save FILE     writes the state to a file      /load FILE  goes on from it\n"
    "  /help          this text                       /quit       ends (so does Ctrl-D)\n"
    "  Ctrl-C         ends the answer; what was written stays in the state";

enum class ReadResult { line, end, interrupted };

// Lines of stdin, by poll() and read(), so that Ctrl-C ends the wait.
class LineReader {
 public:
  ReadResult read(std::string& line) {
    while (true) {
      const std::size_t newline = buffer_.find('\n');
      if (newline != std::string::npos) {
        line = buffer_.substr(0, newline);
        buffer_.erase(0, newline + 1);
        return ReadResult::line;
      }
      struct pollfd input = {STDIN_FILENO, POLLIN, 0};
      if (poll(&input, 1, -1) < 0) {
        if (errno == EINTR && interrupted()) return ReadResult::interrupted;
        continue;
      }
      char block[4096];
      const ssize_t n = ::read(STDIN_FILENO, block, sizeof(block));
      if (n > 0) {
        buffer_.append(block, static_cast<std::size_t>(n));
      } else if (n == 0 || errno != EINTR) {
        if (buffer_.empty()) return ReadResult::end;
        line = std::exchange(buffer_, {});
        return ReadResult::line;
      }
    }
  }

 private:
  std::string buffer_;
};

class Chat {
 public:
  Chat(LoadedModel& loaded, const GenerateOptions& options)
      : model_(loaded.model), options_(options), state_(loaded.model.make_state()) {}

  State& state() { return state_; }

  // Reads `text` and writes the answer.
  void say(const std::string& text) {
    std::vector<std::int32_t> ids;
    const bool fresh = state_.token_count() == 0;
    if (!text.empty()) ids = model_.encode_prompt(text, !fresh);
    turn_.emplace(Turn{state_.clone(), std::move(ids)});
    answer();
  }

  void regenerate() {
    if (!turn_) {
      info("nothing was written yet");
      return;
    }
    state_ = turn_->before.clone();
    answer();
  }

  void reset() {
    state_.reset();
    turn_.reset();
    info("the state is empty again");
  }

  void save(const std::string& file) {
    state_.save(file);
    info("state after {} tokens saved to {}", state_.token_count(), file);
  }

  void load(const std::string& file) {
    state_.load(file);
    turn_.reset();
    info("state after {} tokens loaded from {}", state_.token_count(), file);
  }

 private:
  // What the last answer started from.
  struct Turn {
    State before;
    std::vector<std::int32_t> ids;
  };

  void answer() {
    clear_interrupt();
    bool closed = false;
    GenerateCallbacks callbacks;
    callbacks.should_stop = [&closed] { return closed || interrupted(); };
    callbacks.on_text = [&closed](std::size_t, std::string_view text) {
      closed = closed || !try_write_out(text);
    };
    generate(model_, state_, turn_->ids, options_, callbacks);
    write_out("\n");
    ++options_.sampler.seed;  // the next answer, or the same one anew, draws other numbers
  }

  Model& model_;
  GenerateOptions options_;
  State state_;
  std::optional<Turn> turn_;
};

// False: the user wants to leave.
bool obey(Chat& chat, const std::string& line) {
  const std::size_t space = line.find(' ');
  const std::string command = line.substr(0, space);
  const std::string file = space == std::string::npos ? "" : line.substr(space + 1);
  if (command == "/quit" || command == "/exit") return false;
  if ((command == "/save" || command == "/load") && file.empty()) {
    info("{} needs a file name", command);
  } else if (command == "/save") {
    chat.save(file);
  } else if (command == "/load") {
    chat.load(file);
  } else if (command == "/regen") {
    chat.regenerate();
  } else if (command == "/reset") {
    chat.reset();
  } else if (command == "/help") {
    info("{}", kCommandHelp);
  } else {
    const std::vector<std::string> commands = {"/save",  "/load", "/regen",
                                               "/reset", "/help", "/quit"};
    const std::string guess = nearest(command, commands);
    info("unknown command {}{}; /help lists them", command,
         guess.empty() ? "" : fmt::format(", did you mean {}?", guess));
  }
  return true;
}

}  // namespace

int run_chat(Arguments args) {
  RunOptions run;
  SamplingOptions sampling;
  std::string state_load;
  OptionParser parser("chat",
                      "Continues line by line what you type. The state holds everything said so "
                      "far, however long; /help lists the commands inside.",
                      kExamples);
  add_sampling_options(parser, sampling);
  parser.group("State");
  parser.text("--state-load", "FILE", state_load, "Go on from a saved state");
  add_run_options(parser, run);
  if (!parser.parse(args)) return 0;
  apply(run.log);
  const GenerateOptions options = to_generate_options(sampling);
  if (options.max_tokens < 0 && options.ignore_eos)
    throw UsageError("-n -1 with --ignore-eos would never come back to you");

  LoadedModel loaded = load_model(run);
  require_tokenizer(loaded, "chat needs one");
  Chat chat(loaded, options);
  if (!state_load.empty()) chat.load(state_load);
  const bool terminal = isatty(STDIN_FILENO) == 1;
  if (options.sampler.temperature > 0) info("seed {}", options.sampler.seed);
  if (terminal) info("{}", kCommandHelp);

  LineReader reader;
  std::string text;
  bool warned = false;  // Ctrl-C at the prompt: once is a slip, twice is a wish
  while (true) {
    clear_interrupt();
    if (terminal) fmt::print(stderr, "{}", text.empty() ? "> " : ". ");
    std::string line;
    const ReadResult result = reader.read(line);
    if (result == ReadResult::end) break;
    if (result == ReadResult::interrupted) {
      text.clear();
      if (std::exchange(warned, true)) break;
      info("\n(Ctrl-C again, Ctrl-D or /quit to leave)");
      continue;
    }
    warned = false;
    if (text.empty() && line.starts_with("/")) {
      try {
        if (!obey(chat, line)) break;
      } catch (const Error& error) {
        if (error.code() == ErrorCode::internal) throw;
        fmt::print(stderr, "{}\n", error.what());  // a mistyped file name must not end the session
      }
      continue;
    }
    if (line.ends_with("\\")) {
      text += line.substr(0, line.size() - 1) + "\n";
      continue;
    }
    text += line;
    try {
      chat.say(text);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::invalid_argument) throw;
      fmt::print(stderr, "{}\n", error.what());  // as for text that is not UTF-8
    }
    text.clear();
  }
  return 0;
}

}  // namespace xlstm::cli
