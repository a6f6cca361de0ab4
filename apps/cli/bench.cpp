// xlstm bench: tokens per second beside what this machine could do at most.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

#include "commands.hpp"
#include "console.hpp"
#include "core/check.hpp"
#include "core/cpu_features.hpp"
#include "core/cuda_device.hpp"
#include "core/machine_memory.hpp"
#include "core/machine_peaks.hpp"
#include "formats/config_files.hpp"
#include "infer/sampler.hpp"
#include "json_output.hpp"
#include "model/drawing_steps.hpp"
#include "model/memory_needs.hpp"
#include "model/model_impl.hpp"
#include "model_options.hpp"
#include "ops/device_peaks.hpp"

namespace xlstm::cli {
namespace {

constexpr const char* kExamples =
    "  xlstm bench                                        the default model\n"
    "  xlstm bench -m DIR --dtype bf16 -b 1,8 -d 0,4096\n"
    "  xlstm bench --config bench/configs/xlstm-7b.json --dtype bf16 -n 16 -r 3\n"
    "                                     random weights of that shape, no download\n"
    "  xlstm bench --device cuda --dtype bf16 -p 512,2048 -b 1,8,16";

struct BenchArguments {
  RunOptions run;
  std::string config;
  std::vector<std::int64_t> prompt = {512};
  std::vector<std::int64_t> predict = {128};
  std::vector<std::int64_t> batch = {1};
  std::vector<std::int64_t> depth = {0};
  std::int64_t repetitions = 5;
  bool json = false;
};

bool parse(Arguments args, BenchArguments& a) {
  OptionParser parser(
      "bench",
      "Speed of reading a prompt (pp) and of writing (tg), beside this machine's own read "
      "bandwidth "
      "and arithmetic peak, measured in the same run. For tg the limit is the weights' bytes read "
      "once per step; for pp it is the arithmetic of the matrix products. With --device cuda both "
      "limits are the card's; its bf16 peak is that of a warp's matrix instructions (mma.sync), "
      "not of a warp group's (wgmma), which is higher on cards that have them; its f32 peak is "
      "that of multiply-adds outside the tensor cores.",
      kExamples);
  constexpr std::int64_t kMax = 1 << 24;
  parser.group("What to measure");
  parser.text(
      "--config", "FILE", a.config,
      "Random weights of this config.json's shape instead of a model; --dtype is their type "
      "too");
  parser.integers("-p,--n-prompt", a.prompt, 0, kMax, "Prompt lengths; 0: none");
  parser.integers("-n,--n-gen", a.predict, 0, kMax, "Tokens to write; 0: none");
  parser.integers("-b,--batch", a.batch, 1, 4096, "Sequences side by side");
  parser.integers("-d,--depth", a.depth, 0, kMax, "Tokens read before the clock starts");
  parser.integer("-r,--repetitions", a.repetitions, 1, 10000, "Measurements of each row (5)");
  parser.group("Output");
  parser.flag("--json", a.json, "One JSON object instead of a table");
  add_run_options(parser, a.run);
  if (!parser.parse(args)) return false;
  if (!a.config.empty() && !a.run.model.empty() && std::getenv("XLSTM_MODEL") == nullptr)
    throw UsageError("give -m or --config, not both");
  if (!a.config.empty() && !a.run.lora.empty())
    throw UsageError("--lora needs a model, and --config makes random weights");
  return true;
}

// Random weights must fit into memory beside the states, before any of it is taken. Those of a
// device are made in the machine's memory.
void check_memory(const Config& config, const LoadOptions& load, std::int64_t sequences) {
  const DType dtype = load.dtype;
  if (!load.device.is_cpu()) {
    const auto weights = model::uniform_parameters(config, dtype);
    model::MemoryMeter(config, weights, load).expect_fit(sequences);
    sequences = 0;
  }
  const auto memory = machine_memory();
  if (!memory) return;
  constexpr std::uint64_t kScratch = 300'000'000;
  const std::uint64_t weights =
      static_cast<std::uint64_t>(config.parameter_count()) * size_of(dtype);
  const std::uint64_t states =
      static_cast<std::uint64_t>(config.state_count() * sequences) * sizeof(float);
  const std::uint64_t needed = weights + states + kScratch;
  XLSTM_CHECK(needed <= memory->available, out_of_memory,
              "this shape needs {} ({} of {} weights, {} of states), but only {} of memory are "
              "free; {}",
              format_bytes(needed), format_bytes(weights), to_string(dtype), format_bytes(states),
              format_bytes(memory->available),
              dtype == DType::f32 ? "--dtype bf16 halves the weights" : "choose a smaller config");
}

void check_vocabulary(const Config& config) {
  XLSTM_CHECK(config.vocab_size > 0, unsupported,
              "bench: expected a model with a vocabulary, found a block stack alone "
              "(vocab_size 0)");
}

Model make_model(const BenchArguments& a) {
  if (a.config.empty()) {
    Model model = load_model(a.run).model;
    check_vocabulary(model.config());
    return model;
  }
  const LoadOptions load = to_load_options(a.run);
  const Config config = formats::parse_hf_config(formats::read_text_file(a.config), a.config);
  config.validate(a.config);
  check_vocabulary(config);
  check_memory(config, load, *std::max_element(a.batch.begin(), a.batch.end()) + 1);
  const Stopwatch watch;
  Model model = Model::random(config, load.dtype, 1, load);
  info("random weights of {} parameters made in {:.1f} s",
       format_count(static_cast<std::uint64_t>(config.parameter_count())), watch.seconds());
  return model;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// The machine's limits, sampled all along the run because they drift: the median counts.
class MachineLimits {
 public:
  MachineLimits(Device device, int threads, DType dtype)
      : device_(device), threads_(threads), dtype_(dtype) {}

  // Takes a sample unless the last one is fresh.
  void sample() {
    if (!read_.empty() && since_.seconds() < 2.0) return;
    const bool bf16 = dtype_ == DType::bf16;
    if (device_.is_cpu()) {
      read_.push_back(measure_read_bandwidth(threads_, 0.2));
      peak_.push_back(bf16 ? measure_bf16_peak(threads_, 0.1) : measure_f32_peak(threads_, 0.1));
    } else {
      read_.push_back(measure_device_read_bandwidth(device_, 0.05));
      peak_.push_back(bf16 ? measure_device_bf16_peak(device_, 0.05)
                           : measure_device_f32_peak(device_, 0.05));
    }
    since_ = Stopwatch();
  }
  MachineRow result() const {
    return {.device = device_.is_cpu() ? "" : cuda::name(device_),
            .read_gb_s = median(read_),
            .peak_gflop_s = median(peak_)};
  }

 private:
  Device device_;
  int threads_;
  DType dtype_;
  std::vector<double> read_, peak_;
  Stopwatch since_;
};

// Weights of the matrix products: what a token of a prompt is multiplied with. The output head and
// what the last block has behind its cell count apart, because only the last token needs them.
struct LinearWeights {
  std::int64_t blocks = 0;
  std::int64_t last = 0;
};

LinearWeights count_linear(const Model& model) {
  const Config& config = model.config();
  LinearWeights count;
  count.last = config.vocab_size * config.hidden_size;
  const std::string last_block = fmt::format(".blocks.{}.", config.num_blocks - 1);
  for (const ParameterInfo& parameter : model.parameters()) {
    const auto has = [&](std::string_view part) {
      return parameter.name.find(part) != std::string::npos;
    };
    if (parameter.shape.size() < 2 || !has(".blocks.") || has("conv1d")) continue;
    std::int64_t weights = 1;
    for (const std::int64_t size : parameter.shape) weights *= size;
    const bool is_last =
        has(last_block) && (has(".out_proj.") || has(".xlstm.proj_down.") || has(".ffn."));
    (is_last ? count.last : count.blocks) += weights;
  }
  return count;
}

class Bench {
 public:
  Bench(Model& model, const BenchArguments& a)
      : model_(model),
        arguments_(a),
        linear_(count_linear(model)),
        limits_(to_load_options(a.run).device, model.threads(), model.dtype()),
        deep_(model.make_state()) {}

  void run() {
    std::vector<std::int64_t> depths = arguments_.depth;
    std::sort(depths.begin(), depths.end());
    limits_.sample();
    for (const std::int64_t depth : depths) {
      read_to(depth);
      for (const std::int64_t batch : arguments_.batch) {
        for (const std::int64_t tokens : arguments_.prompt)
          if (tokens > 0) measure("pp", tokens, batch, depth);
        for (const std::int64_t tokens : arguments_.predict)
          if (tokens > 0) measure("tg", tokens, batch, depth);
      }
    }
    limits_.sample();
    machine_ = limits_.result();
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      rows_[i].percent_of_limit =
          is_reading_[i]
              ? 100 * rows_[i].tok_s * flops_per_token_[i] / (machine_.peak_gflop_s * 1e9)
              : 100 * rows_[i].tok_s / static_cast<double>(rows_[i].batch) *
                    static_cast<double>(model_.streamed_bytes()) / (machine_.read_gb_s * 1e9);
    }
  }

  const MachineRow& machine() const { return machine_; }
  const std::vector<BenchRow>& rows() const { return rows_; }

 private:
  std::vector<std::int32_t> random_ids(std::int64_t count) {
    std::uniform_int_distribution<std::int32_t> any(0, model_.sampleable_ids() - 1);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    for (std::int32_t& id : ids) id = any(random_);
    return ids;
  }

  // Advances the state that every deep row starts from. The cost of a token does not depend on what
  // was read, so one sequence is read and copied for a batch.
  void read_to(std::int64_t depth) {
    const std::int64_t slice = model_.impl().limits.slice;
    ProgressBar bar(fmt::format("reading to {}", depth), arguments_.run.progress);
    while (deep_.token_count() < depth) {
      const auto ids = random_ids(std::min(slice, depth - deep_.token_count()));
      const SequenceInput input{ids, &deep_};
      model_.forward({&input, 1}, Logits::none, {});
      bar.update(static_cast<std::uint64_t>(deep_.token_count()),
                 static_cast<std::uint64_t>(depth));
    }
  }

  // Seconds for one repetition: `tokens` for each sequence, at once or one after the other.
  double seconds(std::int64_t tokens, bool reading, std::vector<State>& states,
                 std::vector<float>& logits) {
    const auto ids = random_ids(tokens * static_cast<std::int64_t>(states.size()));
    const std::int64_t step = reading ? tokens : 1;
    std::vector<SequenceInput> inputs(states.size());
    const Stopwatch watch;
    std::size_t next = 0;
    for (std::int64_t done = 0; done < tokens; done += step) {
      for (std::size_t s = 0; s < states.size(); ++s) {
        inputs[s] = {std::span(ids).subspan(next, static_cast<std::size_t>(step)), &states[s]};
        next += static_cast<std::size_t>(step);
      }
      model_.forward(inputs, Logits::last, logits);
    }
    return watch.seconds();
  }

  // The same for tokens that a device draws itself.
  double seconds(std::int64_t tokens, model::DrawingSteps& steps, std::vector<State>& states) {
    const auto ids = random_ids(static_cast<std::int64_t>(states.size()));
    const SamplerOptions options;
    std::vector<model::DrawingSequence> sequences(states.size());
    for (std::size_t s = 0; s < states.size(); ++s)
      sequences[s] = {.state = &states[s],
                      .token = ids[s],
                      .draw = infer::Sampler(options, model_.sampleable_ids()).draw()};
    const Stopwatch watch;
    steps.begin(sequences);
    for (std::int64_t done = 1; done <= tokens; ++done) {
      if (done < tokens) steps.go_on();
      steps.wait();
    }
    return watch.seconds();
  }

  void measure(const char* kind, std::int64_t tokens, std::int64_t batch, std::int64_t depth) {
    const bool reading = std::string_view(kind) == "pp";
    std::vector<State> states;
    for (std::int64_t s = 0; s < batch; ++s)
      states.push_back(depth > 0 ? deep_.clone() : model_.make_state());
    std::vector<float> logits(static_cast<std::size_t>(batch * model_.config().vocab_size));
    BenchRow row;
    row.test = fmt::format("{}{}", kind, tokens);
    if (depth > 0) row.test += fmt::format(" @ d{}", depth);
    row.batch = batch;
    row.depth = depth;
    row.dtype = reading && arguments_.run.prefill_dtype != "same" ? arguments_.run.prefill_dtype
                                                                  : to_string(model_.dtype());
    ProgressBar bar(fmt::format("{} b{}", row.test, batch), arguments_.run.progress);

    const Context& context = model_.impl().context;
    // As generate() does with its defaults, tokens are drawn on a device that can.
    const std::int64_t candidates =
        std::min<std::int64_t>(SamplerOptions{}.top_k, model_.most_best());
    const auto steps =
        reading ? nullptr : model::DrawingSteps::make(model_, states.size(), candidates, false);
    const auto repeat = [&](std::int64_t count) {
      return steps ? seconds(count, *steps, states) : seconds(count, reading, states, logits);
    };
    // The first pass allocates; on a device the second one is recorded as a graph, and steps that
    // draw take two of those in turn.
    const int unmeasured = context.device().is_cpu() ? 1 : 2;
    for (int i = 0; i < unmeasured; ++i) repeat(reading ? tokens : steps ? 4 : 1);
    std::vector<double> rates, hosts;
    for (std::int64_t i = 0; i < arguments_.repetitions; ++i) {
      limits_.sample();
      const double waited = cuda::waited_seconds();
      const double took = repeat(tokens);
      rates.push_back(static_cast<double>(tokens * batch) / took);
      hosts.push_back(1e6 * (took - (cuda::waited_seconds() - waited)) /
                      static_cast<double>(reading ? 1 : tokens));
      bar.update(static_cast<std::uint64_t>(i + 1),
                 static_cast<std::uint64_t>(arguments_.repetitions));
    }
    row.tok_s = median(rates);
    if (!context.device().is_cpu()) row.host_us = median(hosts);
    double squares = 0;
    for (const double rate : rates) squares += (rate - row.tok_s) * (rate - row.tok_s);
    if (rates.size() > 1)
      row.tok_s_spread = std::sqrt(squares / static_cast<double>(rates.size() - 1));
    rows_.push_back(row);
    is_reading_.push_back(reading);
    flops_per_token_.push_back(2 *
                               (static_cast<double>(linear_.blocks) +
                                static_cast<double>(linear_.last) / static_cast<double>(tokens)));
  }

  Model& model_;
  const BenchArguments& arguments_;
  LinearWeights linear_;
  MachineLimits limits_;
  State deep_;
  std::mt19937 random_{1};
  MachineRow machine_;
  std::vector<BenchRow> rows_;
  std::vector<bool> is_reading_;
  std::vector<double> flops_per_token_;
};

std::string table(const Bench& bench, const Model& model, const std::string& name) {
  const MachineRow& machine = bench.machine();
  const std::string runs_on = machine.device.empty()
                                  ? fmt::format("{}, {}, {} threads", cpu_description(),
                                                to_string(active_isa()), model.threads())
                                  : machine.device;
  const std::string_view how = machine.device.empty()         ? ""
                               : model.dtype() == DType::bf16 ? " (mma.sync)"
                                                              : " (no tensor cores)";
  std::string text = fmt::format(
      "{}: {} parameters, {} of weights, {} read per token, {} of state per sequence\n"
      "{}; measured in this run: read {:.1f} GB/s, {} peak{} {:.0f} GFLOP/s\n\n",
      name, format_count(static_cast<std::uint64_t>(model.config().parameter_count())),
      format_bytes(model.weight_bytes()), format_bytes(model.streamed_bytes()),
      format_bytes(model.state_bytes()), runs_on, machine.read_gb_s, to_string(model.dtype()), how,
      machine.peak_gflop_s);
  text += fmt::format("| {:<16} | {:>5} | {:>5} | {:>20} | {:>8} |\n", "test", "batch", "dtype",
                      "tok/s", "of limit");
  text += "| :--------------- | ----: | ----: | -------------------: | -------: |\n";
  for (const BenchRow& row : bench.rows())
    text += fmt::format("| {:<16} | {:>5} | {:>5} | {:>20} | {:>6.0f} % |\n", row.test, row.batch,
                        row.dtype, fmt::format("{:.2f} ± {:.2f}", row.tok_s, row.tok_s_spread),
                        row.percent_of_limit);
  return text;
}

}  // namespace

int run_bench(Arguments args) {
  BenchArguments a;
  if (!parse(args, a)) return 0;
  apply(a.run.log);
  Model model = make_model(a);
  Bench bench(model, a);
  bench.run();
  const std::string name =
      a.config.empty() ? model_directory(a.run.model).filename().string() : a.config;
  write_out(a.json ? bench_json(bench.machine(), bench.rows()) : table(bench, model, name));
  info("peak memory {}", format_bytes(peak_memory()));
  return 0;
}

}  // namespace xlstm::cli
