// xlstm train: a training run from a configuration file and keys on the command line.

#include "train/trainer.hpp"

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "commands.hpp"
#include "console.hpp"
#include "core/check.hpp"
#include "option_parser.hpp"
#include "train/config.hpp"

namespace xlstm::cli {
namespace {

constexpr const char* kHelp =
    "Usage: xlstm train CONFIG.toml [--KEY VALUE ...] [OPTIONS]\n\n"
    "Trains a model. Every key of the configuration (docs/training.md) may be given as --key "
    "value\n"
    "or --section.key value, and counts more than the file. The run's directory gets "
    "metrics.jsonl,\n"
    "event files for TensorBoard, checkpoints, and at the end the model.\n\n"
    "Options:\n"
    "  --resume       Go on after the last checkpoint of the run's directory\n"
    "  --plan         Say what the run needs (parameters, memory, operations) and end\n"
    "  --json         The result as one JSON object on stdout\n"
    "  -q, --quiet    Only warnings and errors\n"
    "  -h, --help     This text\n\n"
    "Examples:\n"
    "  xlstm train configs/shakespeare.toml\n"
    "  xlstm train configs/shakespeare.toml --lr 1e-3 --run.out runs/other\n"
    "  mpirun -n 2 xlstm train configs/shakespeare.toml     two processes share each batch\n";

struct Command {
  train::TrainConfig config;
  bool plan = false, json = false, quiet = false;
};

// False: the help was asked for and printed.
bool parse(Arguments args, Command& command) {
  std::string file;
  std::vector<std::pair<std::string, std::string>> keys;
  for (std::size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "-h" || arg == "--help") {
      write_out(kHelp);
      return false;
    }
    if (arg == "--plan" || arg == "--json" || arg == "-q" || arg == "--quiet") {
      (arg == "--plan" ? command.plan : arg == "--json" ? command.json : command.quiet) = true;
      continue;
    }
    if (!arg.starts_with("-")) {
      if (!file.empty())
        throw UsageError(
            fmt::format("expected one configuration file, found '{}' and '{}'", file, arg));
      file = arg;
      continue;
    }
    if (!arg.starts_with("--")) throw UsageError(fmt::format("unknown option '{}'", arg));
    const std::size_t equals = arg.find('=');
    const std::string name = arg.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::string value;
    try {
      if (equals != std::string::npos) {
        value = arg.substr(equals + 1);
      } else if (train::is_switch(name) &&
                 (i + 1 == args.size() || (args[i + 1] != "true" && args[i + 1] != "false"))) {
        value = "true";
      } else {
        if (i + 1 == args.size()) {
          train::set_key(command.config, name, "");  // says what the key expects, or a better name
          throw UsageError(fmt::format("--{} needs a value", name));
        }
        value = args[++i];
      }
      train::TrainConfig scratch;  // mistyped keys come to light before the file is read
      train::set_key(scratch, name, value);
    } catch (const Error& error) {
      throw UsageError(error.what());
    }
    keys.emplace_back(name, value);
  }
  if (!file.empty()) train::read_config_file(file, command.config);
  if (file.empty() && keys.empty())
    throw UsageError("train needs a configuration: xlstm train CONFIG.toml");
  for (const auto& [name, value] : keys) train::set_key(command.config, name, value);
  return true;
}

std::string format_duration(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds + 0.5);
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

void print_plan(const train::TrainPlan& plan, bool json) {
  if (json) {
    const nlohmann::ordered_json object = {{"parameters", plan.parameters},
                                           {"trained", plan.trained},
                                           {"tokens_per_step", plan.tokens_per_step},
                                           {"parameter_bytes", plan.parameter_bytes},
                                           {"activation_bytes", plan.activation_bytes},
                                           {"flops_per_token", plan.flops_per_token}};
    return write_out(object.dump() + "\n");
  }
  write_out(
      fmt::format("parameters           {}\ntrained              {}\ntokens per step      "
                  "{}\nweights, gradients, moments  {}\n"
                  "activations of a pass        {}\noperations per token {:.3g}\n",
                  format_count(static_cast<std::uint64_t>(plan.parameters)),
                  format_count(static_cast<std::uint64_t>(plan.trained)), plan.tokens_per_step,
                  format_bytes(plan.parameter_bytes), format_bytes(plan.activation_bytes),
                  plan.flops_per_token));
}

void print_result(const train::TrainResult& result) {
  nlohmann::ordered_json object = {{"step", result.step},
                                   {"loss", result.loss},
                                   {"tokens", result.tokens},
                                   {"seconds", result.seconds},
                                   {"interrupted", result.interrupted},
                                   {"model", result.model.string()}};
  if (result.validated) {
    object["validation"] = {{"step", result.validation.step},
                            {"loss", result.validation.loss},
                            {"accuracy", result.validation.accuracy},
                            {"scaled_accuracy", result.validation.scaled_accuracy},
                            {"bits_per_byte", result.validation.bits_per_byte}};
    object["best"] = {{"step", result.best.step}, {"loss", result.best.loss}};
  }
  write_out(object.dump() + "\n");
}

int train_with(train::Communicator& processes, Arguments args) {
  Command command;
  if (processes.rank() != 0) set_verbosity(Verbosity::none);  // process 0 speaks for all
  if (!parse(args, command)) return 0;
  if (processes.rank() == 0) set_verbosity(command.quiet ? Verbosity::warning : Verbosity::info);
  connect_library_log();
  if (command.plan) {
    if (processes.rank() == 0) print_plan(train::plan(command.config), command.json);
    return 0;
  }
  catch_interrupt();
  catch_termination();  // what Ctrl-C becomes under mpirun
  train::TrainCallbacks callbacks;
  callbacks.on_message = [](const std::string& text) { info("{}", text); };
  callbacks.on_step = [](const train::StepReport& r) {
    info("step {}/{}  loss {:.4f}  lr {:.2e}  |g| {:.3f}  {:.0f} tok/s  {:.0f} % of peak  {} left",
         r.step, r.steps, r.loss, r.lr, r.gradient_norm, r.tokens_per_second, r.percent_of_peak,
         format_duration(r.seconds_left));
  };
  callbacks.on_validation = [](const train::ValidationReport& r) {
    std::string text =
        fmt::format("step {}  validation loss {:.4f}  accuracy {:.4f}", r.step, r.loss, r.accuracy);
    if (r.bits_per_byte > 0) text += fmt::format("  {:.4f} bits/byte", r.bits_per_byte);
    if (r.scaled_accuracy != 0) text += fmt::format("  scaled accuracy {:.4f}", r.scaled_accuracy);
    info("{}{}", text, r.best ? "  (best)" : "");
  };
  callbacks.on_sample = [](std::int64_t step, const std::string& text) {
    info("step {}  sample:\n{}", step, text);
  };
  callbacks.should_stop = [] { return interrupted(); };
  const train::TrainResult result = train::train(command.config, processes, callbacks);
  if (processes.rank() != 0) return 0;
  if (command.json) print_result(result);
  if (result.interrupted) {
    message(LogLevel::warning,
            fmt::format("interrupted after step {}; --resume goes on", result.step));
    return 1;
  }
  info("{} tokens in {}; the model is {}", result.tokens, format_duration(result.seconds),
       result.model.string());
  return 0;
}

}  // namespace

int run_train(Arguments args) {
  const std::unique_ptr<train::Communicator> processes = train::world();
  if (processes->size() == 1) return train_with(*processes, args);
  try {
    return train_with(*processes, args);
  } catch (const std::exception& error) {
    // What all processes meet alike, process 0 tells: it ends the others while they wait.
    if (processes->rank() != 0) std::this_thread::sleep_for(std::chrono::seconds(2));
    fmt::print(stderr, "xlstm: error: process {}: {}\n", processes->rank(), error.what());
    processes->end_all();
  }
  return 1;
}

}  // namespace xlstm::cli
