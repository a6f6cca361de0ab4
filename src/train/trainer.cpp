#include "train/trainer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "core/machine_memory.hpp"
#include "core/machine_peaks.hpp"
#include "core/threads.hpp"
#include "formats/mapped_file.hpp"
#include "model/trainable.hpp"
#include "train/checkpoint.hpp"
#include "train/learner.hpp"
#include "train/metrics.hpp"
#include "train/schedule.hpp"
#include "train/sources.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int thread_count(const TrainConfig& config, const Communicator& processes) {
  return config.run.threads > 0 ? static_cast<int>(config.run.threads)
                                : processes.share_of_cores(physical_cores());
}

Model make_model(const TrainConfig& config, const Sources& sources, int threads) {
  LoadOptions options;
  options.threads = threads;
  options.chunk_size = config.run.chunk_size;
  if (config.model.init_from.empty())
    return model::initial_model(architecture(config, sources.training->vocabulary()),
                                static_cast<std::uint64_t>(config.run.seed), sources.vocabulary,
                                options);
  Model model = model::trainable_model(config.model.init_from, options);
  XLSTM_CHECK(model.config().vocab_size >= sources.training->vocabulary(), invalid_argument,
              "model.init_from: {}: expected a vocabulary of at least the {} ids of the data, "
              "found {}",
              config.model.init_from, sources.training->vocabulary(), model.config().vocab_size);
  return model;
}

LearnerOptions learner_options(const TrainConfig& config, const Sources& sources, int threads) {
  LearnerOptions options;
  options.compute = config.run.compute == "bf16" ? DType::bf16 : DType::f32;
  if (config.run.recompute == "norms") options.recompute = model::Recompute::norms;
  if (config.run.recompute == "blocks") options.recompute = model::Recompute::blocks;
  options.exact_backward = config.run.exact_backward;
  // v1: the configuration of the model has it.
  if (config.model.dropout > 0) options.dropout = config.model.dropout;
  options.threads = threads;
  options.streams = sources.training->streams();
  options.lora = {.rank = config.lora.rank,
                  .alpha = config.lora.alpha,
                  .targets = config.lora.targets,
                  .seed = static_cast<std::uint64_t>(config.run.seed),
                  .base = config.model.init_from};
  return options;
}

// Rows of one pass.
std::int64_t pass_rows(const TrainConfig& config, int processes) {
  return config.data.batch / config.run.accumulation / processes;
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (fs::temp_directory_path() / "xlstm-XXXXXX").string();
    XLSTM_CHECK(mkdtemp(name.data()) != nullptr, io, "{}: could not make a directory", name);
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Seconds after which the peak is measured again: clocks, and what others do, change.
constexpr double kPeakLasts = 30;

class Run {
 public:
  Run(const TrainConfig& config, Communicator& processes, const TrainCallbacks& callbacks)
      : config_(config),
        processes_(processes),
        callbacks_(callbacks),
        out_(config.run.out),
        sources_(prepare(config, processes)),
        threads_(thread_count(config, processes)),
        learner_(make_model(config, sources_, threads_),
                 learner_options(config, sources_, threads_)) {}

  TrainResult run();

 private:
  static Sources prepare(const TrainConfig& config, Communicator& processes);
  bool first() const { return processes_.rank() == 0; }
  std::int64_t last_step() const {
    const RunKeys& r = config_.run;
    return r.stop_at > 0 ? std::min(r.stop_at, r.steps) : r.steps;
  }
  void message(const std::string& text) const {
    if (first() && callbacks_.on_message) callbacks_.on_message(text);
  }
  void check_memory();
  void resume();
  RunFacts facts() const;
  void gather_streams();
  void check_equal_state(std::int64_t step);
  void checkpoint(std::int64_t step);
  StepReport step(std::int64_t index);
  ValidationReport validate(std::int64_t step);
  void sample(std::int64_t step);
  void save(const fs::path& directory);
  void measure_peak(double seconds);

  const TrainConfig& config_;
  Communicator& processes_;
  const TrainCallbacks& callbacks_;
  fs::path out_;
  Sources sources_;
  int threads_;
  Learner learner_;
  std::optional<Metrics> metrics_;
  TrainResult result_;
  std::int64_t first_step_ = 0;  ///< steps made before this run
  double peak_ = 0;              ///< operations per second of one process, at peak_measured_
  Clock::time_point peak_measured_;
  Clock::time_point start_ = Clock::now();
};

// Process 0 fills the cache and writes the tokenizer before the others read them.
Sources Run::prepare(const TrainConfig& config, Communicator& processes) {
  train::validate(config, processes.size());
  const fs::path out = config.run.out;
  const bool used = !list_checkpoints(out / "checkpoints").empty() || fs::exists(out / "model");
  XLSTM_CHECK(config.run.resume || !used, invalid_argument,
              "run.out: {} holds a run; --resume goes on with it, another directory begins anew",
              out.string());
  if (processes.rank() != 0) processes.barrier();
  formats::make_directory(out);
  Sources sources = open_sources(config, out / "tokenizer");
  if (processes.rank() == 0) processes.barrier();
  return sources;
}

// A page that is not there kills a process without a word, so what is needed is compared first.
void Run::check_memory() {
  const std::int64_t rows = pass_rows(config_, processes_.size());
  const auto bytes_for = [&](std::int64_t count) {
    Examples examples;
    sources_.training->rows(0, 0, count, examples);
    return examples.tokens() == 0 ? 0 : learner_.activation_bytes(examples);
  };
  // Every process of this machine takes as much, and none before all have compared.
  const auto memory = machine_memory();
  const std::uint64_t needed = bytes_for(rows);
  processes_.barrier();
  if (!memory) return;
  const std::uint64_t have =
      memory->available / static_cast<std::uint64_t>(processes_.local_size());
  if (needed <= have) return;
  std::string advice = "; even one row does not fit";
  for (std::int64_t parts = 2; parts <= rows; ++parts) {
    if (rows % parts != 0) continue;
    const std::uint64_t less = bytes_for(rows / parts);
    if (less > have) continue;
    advice = fmt::format("; with --accumulation {} it takes {:.1f} GB",
                         config_.run.accumulation * parts, static_cast<double>(less) / 1e9);
    break;
  }
  if (config_.run.recompute != "blocks") advice += ", and --recompute blocks saves most of it";
  fail(ErrorCode::out_of_memory,
       "a pass over {} rows needs {:.1f} GB for activations, {:.1f} GB "
       "are free{}",
       rows, static_cast<double>(needed) / 1e9, static_cast<double>(have) / 1e9, advice);
}

RunFacts Run::facts() const {
  RunFacts facts;
  for (const auto& [key, value] : snapshot(config_)) facts["key." + key] = value;
  facts["data"] = sources_.training->identity();
  // The checkpoints of an adapter do not hold the weights that it is for.
  if (config_.lora.rank > 0) facts["base"] = fmt::format("{:016x}", learner_.model().hash());
  facts["best_step"] = fmt::format("{}", result_.best.step);
  facts["best_loss"] = fmt::format("{}", result_.best.loss);
  return facts;
}

void Run::resume() {
  const fs::path folder = out_ / "checkpoints";
  const std::vector<std::int64_t> steps = list_checkpoints(folder);
  if (steps.empty()) {
    message(fmt::format("{} holds no checkpoint: starting from the beginning", folder.string()));
    return;
  }
  const std::int64_t step = steps.back();
  const RunFacts facts = read_facts(folder, step);
  const auto fact = [&](const std::string& name) {
    const auto found = facts.find(name);
    XLSTM_CHECK(found != facts.end(), invalid_file, "{}: step {}: '{}' is missing", folder.string(),
                step, name);
    return found->second;
  };
  std::vector<std::pair<std::string, std::string>> keys;
  for (const auto& [name, value] : facts)
    if (name.starts_with("key.")) keys.emplace_back(name.substr(4), value);
  check_same(keys, config_, out_.string());
  XLSTM_CHECK(fact("data") == sources_.training->identity(), invalid_argument,
              "{}: the run was started on other data: {}; found {}", out_.string(), fact("data"),
              sources_.training->identity());
  if (config_.lora.rank > 0) {
    const std::string base = this->facts().at("base");
    XLSTM_CHECK(fact("base") == base, invalid_argument,
                "{}: the run was started on another model: hash {}; found {} in {}", out_.string(),
                fact("base"), base, config_.model.init_from);
  }
  read_tensors(folder, step, learner_.state());
  learner_.state_changed();
  result_.best.step = std::stoll(fact("best_step"));
  result_.best.loss = std::stod(fact("best_loss"));
  result_.step = first_step_ = step;
  message(fmt::format("resuming after step {}", step));
}

// Each process carries the states of its own rows; a checkpoint holds those of all.
void Run::gather_streams() {
  if (sources_.training->streams() == 0) return;
  for (const formats::NamedTensor& t : learner_.state()) {
    if (t.name != "streams") continue;
    const std::span<std::byte> all(static_cast<std::byte*>(t.tensor.data), t.tensor.bytes());
    const std::size_t share = all.size() / static_cast<std::size_t>(processes_.size());
    for (int from = 0; from < processes_.size(); ++from)
      processes_.broadcast(all.subspan(share * static_cast<std::size_t>(from), share), from);
  }
}

// Equal sums make equal steps, unless the machines' arithmetic differs.
void Run::check_equal_state(std::int64_t step) {
  if (processes_.size() == 1) return;
  gather_streams();
  std::uint64_t own = 0;
  for (const formats::NamedTensor& t : learner_.state())
    own = hash_bytes({static_cast<const std::byte*>(t.tensor.data), t.tensor.bytes()}, own);
  std::uint64_t first = own;
  processes_.broadcast(std::as_writable_bytes(std::span(&first, 1)), 0);
  XLSTM_CHECK(own == first, unsupported,
              "step {}: the weights differ from those of process 0: processes that train together "
              "need machines with the same instruction sets, or XLSTM_ISA set to one that all "
              "have; the last checkpoint is as it was",
              step);
  processes_.barrier();
}

void Run::checkpoint(std::int64_t step) {
  check_equal_state(step);
  if (first())
    write_checkpoint(out_ / "checkpoints", step, learner_.state(), facts(),
                     config_.run.keep_checkpoints);
  processes_.barrier();
}

StepReport Run::step(std::int64_t index) {
  const auto start = Clock::now();
  const std::int64_t rows = pass_rows(config_, processes_.size());
  const std::int64_t first_row = rows * config_.run.accumulation * processes_.rank();
  learner_.zero_gradients();
  double sums[3] = {0, 0, 0};  // loss, targets, tokens
  for (std::int64_t part = 0; part < config_.run.accumulation; ++part) {
    const std::int64_t begin = first_row + part * rows;
    Examples examples;
    sources_.training->rows(index - 1, begin, begin + rows, examples);
    const std::uint64_t key =
        mix64(static_cast<std::uint64_t>(config_.run.seed) ^
              mix64(static_cast<std::uint64_t>(index) << 20 | static_cast<std::uint64_t>(begin)));
    const double loss = learner_.forward_backward(examples, key);
    XLSTM_CHECK(std::isfinite(loss), invalid_argument,
                "step {}: the loss is {}: the first number that is not finite comes from {}; the "
                "last checkpoint is as it was",
                index, loss, learner_.find_nonfinite(examples));
    sums[0] += loss;
    sums[1] += static_cast<double>(examples.scored());
    sums[2] += static_cast<double>(examples.tokens());
  }
  processes_.sum(learner_.gradients());
  processes_.sum(sums);
  XLSTM_CHECK(sums[1] > 0, invalid_argument, "step {}: the batch has nothing to predict", index);

  StepReport report;
  report.step = index;
  report.steps = config_.run.steps;
  report.loss = sums[0] / sums[1];
  report.gradient_norm = learner_.gradient_norm() / sums[1];
  XLSTM_CHECK(std::isfinite(report.gradient_norm), invalid_argument,
              "step {}: the gradient of {} is not finite; the last checkpoint is as it was", index,
              learner_.nonfinite_gradient());
  const OptimizerKeys& o = config_.optimizer;
  report.lr = learning_rate(o, config_.run.steps, index);
  double scale = 1 / sums[1];
  if (o.clip > 0) scale *= std::min(1.0, o.clip / (report.gradient_norm + 1e-6));
  learner_.step({.step = index,
                 .lr = report.lr,
                 .beta1 = o.beta1,
                 .beta2 = o.beta2,
                 .eps = o.eps,
                 .weight_decay = o.weight_decay},
                scale);

  const double seconds = seconds_since(start);
  result_.tokens += static_cast<std::int64_t>(sums[2]);
  report.tokens_per_second = sums[2] / seconds;
  const Operations operations = learner_.operations();
  if (peak_ > 0)
    report.percent_of_peak = 100 * (sums[2] * operations.token + sums[1] * operations.target) /
                             seconds / peak_ / processes_.size();
  report.seconds_left = seconds_since(start_) / static_cast<double>(index - first_step_) *
                        static_cast<double>(last_step() - index);
  return report;
}

ValidationReport Run::validate(std::int64_t step) {
  const DataSource& source = *sources_.validation;
  std::int64_t count = source.count();
  if (config_.run.validation_windows > 0) count = std::min(count, config_.run.validation_windows);
  const std::int64_t rows = std::max<std::int64_t>(1, pass_rows(config_, processes_.size()));
  double sums[3] = {0, 0, 0};  // loss, right, targets
  for (std::int64_t begin = rows * processes_.rank(); begin < count;
       begin += rows * processes_.size()) {
    Examples examples;
    source.rows(0, begin, std::min(begin + rows, count), examples);
    const Learner::Score score = learner_.evaluate(examples);
    sums[0] += score.loss;
    sums[1] += static_cast<double>(score.correct);
    sums[2] += static_cast<double>(examples.scored());
  }
  processes_.sum(sums);
  ValidationReport report;
  report.step = step;
  report.loss = sums[0] / sums[2];
  report.accuracy = sums[1] / sums[2];
  if (source.bytes_per_token() > 0)
    report.bits_per_byte = report.loss / std::log(2.0) / source.bytes_per_token();
  if (source.chance() >= 0)
    report.scaled_accuracy = (report.accuracy - source.chance()) / (1 - source.chance());
  report.best = result_.best.step == 0 || report.loss < result_.best.loss;
  if (report.best) result_.best = report;
  result_.validation = report;
  result_.validated = true;
  return report;
}

void Run::sample(std::int64_t step) {
  Model& model = learner_.model();
  if (model.tokenizer() == nullptr || !callbacks_.on_sample) return;
  const std::vector<std::int32_t> prompt = model.encode_prompt(config_.run.sample_prompt);
  if (prompt.empty()) return;
  GenerateOptions options;
  options.max_tokens = config_.run.sample_tokens;
  options.sampler.seed = static_cast<std::uint64_t>(step);
  callbacks_.on_sample(step, generate(model, std::span(&prompt, 1), options).front().text);
}

void Run::save(const fs::path& directory) {
  formats::replace_directory(directory, [&](const fs::path& temporary) {
    learner_.save(temporary, *parse_dtype(config_.run.save_dtype));
  });
}

// All measure at the same time, as they work; the mean counts.
void Run::measure_peak(double seconds) {
  processes_.barrier();
  double peak[1] = {1e9 * (config_.run.compute == "bf16" ? measure_bf16_peak(threads_, seconds)
                                                         : measure_f32_peak(threads_, seconds))};
  processes_.sum(peak);
  peak_ = peak[0] / processes_.size();
  peak_measured_ = Clock::now();
}

TrainResult Run::run() {
  check_memory();
  if (config_.run.resume) resume();
  if (first()) {
    metrics_.emplace(out_, first_step_, config_.run.tensorboard);
    formats::write_file_atomically(out_ / "config.toml", to_toml(config_));
  }
  measure_peak(0.2);
  const RunKeys& r = config_.run;
  const std::int64_t end = last_step();
  const auto every = [&](std::int64_t n, std::int64_t step) { return n > 0 && step % n == 0; };
  message(fmt::format(
      "{} numbers to train, {}; {}", learner_.trained_count(), sources_.training->identity(),
      sources_.validation ? "validation: " + sources_.validation->identity() : "no validation"));
  if (processes_.size() > 1)
    message(fmt::format("{} processes, {} {} in each", processes_.size(), threads_,
                        threads_ == 1 ? "thread" : "threads"));
  start_ = Clock::now();
  std::int64_t step_index = first_step_;
  while (step_index < end) {
    const StepReport report = step(++step_index);
    result_.loss = report.loss;
    result_.step = step_index;
    if (first()) {
      metrics_->add("train", step_index,
                    {{"loss", report.loss},
                     {"learning_rate", report.lr},
                     {"gradient_norm", report.gradient_norm},
                     {"tokens_per_second", report.tokens_per_second},
                     {"percent_of_peak", report.percent_of_peak}});
      if (callbacks_.on_step && (every(r.log_every, step_index) || step_index == end))
        callbacks_.on_step(report);
    }
    if (sources_.validation && (every(r.validate_every, step_index) || step_index == end)) {
      const ValidationReport validation = validate(step_index);
      if (first()) {
        Scalars scalars = {{"loss", validation.loss}, {"accuracy", validation.accuracy}};
        if (validation.bits_per_byte > 0)
          scalars.emplace_back("bits_per_byte", validation.bits_per_byte);
        if (sources_.validation->chance() >= 0)
          scalars.emplace_back("scaled_accuracy", validation.scaled_accuracy);
        metrics_->add("validation", step_index, scalars);
        if (callbacks_.on_validation) callbacks_.on_validation(validation);
        if (validation.best && r.keep_best) save(out_ / "best");
      }
    }
    if (first() && every(r.sample_every, step_index)) sample(step_index);
    double ask[2] = {callbacks_.should_stop && callbacks_.should_stop() ? 1.0 : 0.0,
                     first() && seconds_since(peak_measured_) > kPeakLasts ? 1.0 : 0.0};
    processes_.sum(ask);
    result_.interrupted = ask[0] > 0 && step_index < end;
    if (ask[1] > 0) measure_peak(0.02);
    if (every(r.checkpoint_every, step_index) || step_index == end || result_.interrupted)
      checkpoint(step_index);
    else if (step_index == first_step_ + 1)
      check_equal_state(step_index);  // early, when little is lost
    if (result_.interrupted) break;
  }
  if (!result_.interrupted) {
    if (first()) save(out_ / "model");
    result_.model = out_ / "model";
  }
  result_.seconds = seconds_since(start_);
  return result_;
}

}  // namespace

TrainResult train(const TrainConfig& config, Communicator& processes,
                  const TrainCallbacks& callbacks) {
  return Run(config, processes, callbacks).run();
}

TrainPlan plan(const TrainConfig& config) {
  validate(config);
  const TemporaryDirectory folder;  // a plan leaves nothing in run.out
  const Sources sources = open_sources(config, folder.path());
  const int threads = static_cast<int>(config.run.threads);
  Learner learner(make_model(config, sources, threads), learner_options(config, sources, threads));
  Examples examples;
  sources.training->rows(0, 0, pass_rows(config, 1), examples);
  TrainPlan plan;
  plan.parameters = learner.parameter_count();
  plan.trained = learner.trained_count();
  plan.tokens_per_step = examples.tokens() * config.run.accumulation;
  plan.parameter_bytes = learner.parameter_bytes();
  plan.activation_bytes = learner.activation_bytes(examples);
  const Operations operations = learner.operations();
  plan.flops_per_token = operations.token + operations.target;
  return plan;
}

}  // namespace xlstm::train
