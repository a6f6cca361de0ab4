// xlstm info: what a model directory holds.

#include <array>
#include <map>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "console.hpp"
#include "core/cuda_device.hpp"
#include "core/machine_memory.hpp"
#include "formats/config_files.hpp"
#include "model/memory_needs.hpp"
#include "model/packed_weights.hpp"
#include "model_options.hpp"
#include "train/footprint.hpp"

namespace xlstm::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kExamples =
    "  xlstm info                 the default model\n"
    "  xlstm info -m DIR --json\n"
    "  xlstm info --device cuda --sequences 16\n"
    "  xlstm info --device cuda --config bench/configs/xlstm-7b.json --dtype bf16\n"
    "  xlstm info --train --config bench/configs/xlstm-7b.json --rows 1 --seq-len 2048";

// How the weights lie in the files.
struct Weights {
  std::int64_t parameters = 0;
  std::map<std::string, std::uint64_t> bytes_by_dtype;
};

Weights count_weights(const Model& model) {
  Weights weights;
  for (const ParameterInfo& parameter : model.parameters()) {
    std::int64_t count = 1;
    for (const std::int64_t size : parameter.shape) count *= size;
    weights.parameters += count;
    weights.bytes_by_dtype[to_string(parameter.dtype)] +=
        static_cast<std::uint64_t>(count) * size_of(parameter.dtype);
  }
  return weights;
}

// "mLSTM mLSTM sLSTM": what a stack of the first xLSTM consists of, runs counted.
std::string block_list(const Config& config) {
  std::string text;
  for (std::int64_t begin = 0; begin < config.num_blocks;) {
    const bool slstm = config.block_stack->is_slstm(begin);
    std::int64_t end = begin + 1;
    while (end < config.num_blocks && config.block_stack->is_slstm(end) == slstm) ++end;
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ", end - begin, slstm ? "sLSTM" : "mLSTM");
    begin = end;
  }
  return text;
}

Json stack_json(const Config& config) {
  const BlockStackConfig& stack = *config.block_stack;
  Json json = {{"model_type", "xlstm"},
               {"family", "first"},
               {"num_blocks", config.num_blocks},
               {"hidden_size", config.hidden_size},
               {"slstm_at", stack.slstm_at},
               {"vocab_size", config.vocab_size},
               {"bias", stack.bias},
               {"add_post_blocks_norm", stack.add_post_blocks_norm},
               {"tie_word_embeddings", config.tie_word_embeddings}};
  if (stack.mlstm)
    json["mlstm"] = {{"num_heads", stack.mlstm->num_heads},
                     {"inner_dim", stack.inner_dim(config.hidden_size)},
                     {"conv1d_kernel_size", stack.mlstm->conv1d_kernel_size},
                     {"qkv_proj_blocksize", stack.mlstm->qkv_proj_blocksize}};
  if (stack.slstm)
    json["slstm"] = {{"num_heads", stack.slstm->num_heads},
                     {"conv1d_kernel_size", stack.slstm->conv1d_kernel_size},
                     {"ffn_dim", stack.ffn_dim(config.hidden_size)},
                     {"act_fn", stack.slstm->ffn_act_fn}};
  return json;
}

Json architecture_json(const Config& config) {
  if (config.block_stack) return stack_json(config);
  Json json = {{"model_type", "xlstm"},
               {"num_blocks", config.num_blocks},
               {"hidden_size", config.hidden_size},
               {"num_heads", config.num_heads},
               {"qk_head_dim", config.qk_head_dim()},
               {"v_head_dim", config.v_head_dim()},
               {"ffn_dim", config.ffn_dim()},
               {"vocab_size", config.vocab_size},
               {"weight_mode", config.weight_mode},
               {"use_bias", config.use_bias},
               {"add_out_norm", config.add_out_norm},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"input_gate", config.has_sigmoid_input_gate() ? "sigmoid" : "exponential"},
               {"gate_soft_cap", nullptr},
               {"output_logit_soft_cap", nullptr}};
  if (config.gate_soft_cap) json["gate_soft_cap"] = *config.gate_soft_cap;
  if (config.output_logit_soft_cap) json["output_logit_soft_cap"] = *config.output_logit_soft_cap;
  return json;
}

// Those of the file and, by their JSON pointers, the nested ones of a stack.
std::map<std::string, std::string> unknown_settings(const Config& config) {
  std::map<std::string, std::string> all = config.unknown;
  if (config.block_stack)
    all.insert(config.block_stack->unknown.begin(), config.block_stack->unknown.end());
  return all;
}

Json info_json(const LoadedModel& loaded, const std::vector<std::string>& adapters) {
  const Model& model = loaded.model;
  const Weights weights = count_weights(model);
  Json json = {{"model", loaded.directory.string()},
               {"architecture", architecture_json(model.config())},
               {"parameters", weights.parameters},
               {"weights", {{"bytes", model.weight_bytes()}, {"by_dtype", weights.bytes_by_dtype}}},
               {"streamed_bytes_per_token", model.streamed_bytes()},
               {"state_bytes_per_sequence", model.state_bytes()},
               {"tokenizer", nullptr},
               {"bos_id", model.bos_id()},
               {"adds_bos", model.adds_bos()},
               {"eos_ids", model.eos_ids()},
               {"unknown_config_keys", Json::object()},
               {"unexpected_tensors", model.unexpected_tensors()}};
  if (!adapters.empty()) json["adapters"] = adapters;
  if (const Tokenizer* tokenizer = model.tokenizer())
    json["tokenizer"] = {{"size", tokenizer->size()}, {"description", tokenizer->description()}};
  for (const auto& [key, text] : unknown_settings(model.config())) {
    const Json value = Json::parse(text, nullptr, false);
    json["unknown_config_keys"][key] = value.is_discarded() ? Json(text) : value;
  }
  return json;
}

std::string info_text(const LoadedModel& loaded, const std::vector<std::string>& adapters) {
  const Model& model = loaded.model;
  const Config& config = model.config();
  const Weights weights = count_weights(model);
  std::string text;
  const auto row = [&text](std::string_view name, const std::string& value) {
    text += fmt::format("{:<22}{}\n", name, value);
  };
  const auto list = [](const auto& items) {
    return items.empty() ? std::string("none") : fmt::format("{}", fmt::join(items, ", "));
  };
  std::vector<std::string> dtypes;
  for (const auto& [dtype, bytes] : weights.bytes_by_dtype)
    dtypes.push_back(fmt::format("{} {}", format_bytes(bytes), dtype));
  std::vector<std::string> unknown;
  for (const auto& [key, value] : unknown_settings(config)) unknown.push_back(key);

  row("model", loaded.directory.string());
  if (!adapters.empty()) row("adapters", list(adapters));
  if (config.block_stack)
    row("architecture", fmt::format("first xLSTM, {} blocks ({}), width {}", config.num_blocks,
                                    block_list(config), config.hidden_size));
  else
    row("architecture",
        fmt::format("xLSTM{}, {} blocks, width {}, {} heads (key {}, value {}), "
                    "feed-forward {}",
                    config.has_sigmoid_input_gate() ? " with sigmoid input gates" : "",
                    config.num_blocks, config.hidden_size, config.num_heads, config.qk_head_dim(),
                    config.v_head_dim(), config.ffn_dim()));
  row("vocabulary", config.vocab_size > 0 ? fmt::format("{}", config.vocab_size)
                                          : "none: a block stack alone, which reads vectors");
  row("parameters",
      fmt::format("{} ({})", format_count(static_cast<std::uint64_t>(weights.parameters)),
                  weights.parameters));
  row("weights", fmt::format("{}", fmt::join(dtypes, ", ")));
  row("read per token", format_bytes(model.streamed_bytes()));
  row("state", format_bytes(model.state_bytes()) + " per sequence, however long it is");
  const Tokenizer* tokenizer = model.tokenizer();
  if (config.vocab_size > 0)
    row("tokenizer", tokenizer != nullptr ? tokenizer->description()
                                          : "none: only --prompt-ids work with this model");
  row("begin of text",
      fmt::format("{}, {}", model.bos_id() < 0 ? "none" : fmt::format("{}", model.bos_id()),
                  model.adds_bos() ? "put before every prompt" : "not put before prompts"));
  row("end of text", list(model.eos_ids()));
  row("unknown config keys", list(unknown));
  row("unexpected tensors", list(model.unexpected_tensors()));
  return text;
}

// What running takes of a device's memory, and what there is.
struct RunningMemory {
  Device device;
  DType arithmetic;
  Packing packing;
  bool packing_unknown;  ///< the device would have to be there to be asked
  model::MemoryNeeds needs;
  std::optional<std::uint64_t> free = {};
  std::string why_unknown = {};
  std::int64_t fit = 0;  ///< sequences, where `free` is known
};

RunningMemory running_memory(const Config& config, std::span<const ParameterInfo> weights,
                             LoadOptions options, std::int64_t sequences, std::int64_t prompt) {
  bool packing_unknown = false;
  if (!options.device.is_cpu()) {
    try {
      options.packing = model::choose_packing(config, weights, options);
    } catch (const Error&) {  // no such device: nothing tells how much memory is free
      options.packing = Packing::off;
      packing_unknown = true;
    }
  }
  model::MemoryMeter meter(config, weights, options);
  RunningMemory memory{.device = options.device,
                       .arithmetic = options.dtype,
                       .packing = options.packing,
                       .packing_unknown = packing_unknown,
                       .needs = meter.needs(sequences, prompt)};
  if (options.device.is_cpu()) {
    if (const auto machine = machine_memory()) memory.free = machine->available;
  } else {
    try {
      memory.free = cuda::memory(options.device).free;
    } catch (const Error& error) {
      memory.why_unknown = error.what();
    }
  }
  if (memory.free) memory.fit = meter.sequences_within(*memory.free, prompt);
  return memory;
}

Json memory_json(const RunningMemory& memory) {
  const model::MemoryNeeds& needs = memory.needs;
  Json json = {{"device", to_string(memory.device)},
               {"dtype", to_string(memory.arithmetic)},
               {"sequences", needs.sequences},
               {"packed_weights", model::packs(memory.packing)},
               {"weights_bytes", needs.weights},
               {"state_bytes_per_sequence", needs.state},
               {"states_bytes", needs.states()},
               {"decode_scratch_bytes", needs.decode_scratch},
               {"prompt_scratch_bytes", needs.prompt_scratch},
               {"prompt_tokens_of_a_pass", needs.prompt_tokens},
               {"step_inputs_bytes", needs.step_inputs},
               {"results_bytes", needs.results},
               {"total_bytes", needs.total()},
               {"free_bytes", nullptr},
               {"sequences_that_fit", nullptr}};
  if (memory.free) {
    json["free_bytes"] = *memory.free;
    json["sequences_that_fit"] = memory.fit;
  }
  return json;
}

std::string memory_text(const RunningMemory& memory) {
  const model::MemoryNeeds& needs = memory.needs;
  std::string text =
      fmt::format("memory of {}, {} sequence{}, {} arithmetic\n", to_string(memory.device),
                  needs.sequences, needs.sequences == 1 ? "" : "s", to_string(memory.arithmetic));
  const auto row = [&text](std::string_view name, const std::string& value) {
    text += fmt::format("  {:<20}{}\n", name, value);
  };
  row("weights",
      format_bytes(needs.weights) +
          (memory.packing == Packing::both ? ", packed and as they are"
           : memory.packing == Packing::on ? ", packed"
           : memory.packing_unknown ? ", as they are; on an H100 or H200 packed (--pack-weights on)"
                                    : ""));
  row("states",
      fmt::format("{}, {} each", format_bytes(needs.states()), format_bytes(needs.state)));
  row("scratch", fmt::format("{}: the larger of {} for a step and {} for {} tokens of a prompt",
                             format_bytes(needs.scratch()), format_bytes(needs.decode_scratch),
                             format_bytes(needs.prompt_scratch), needs.prompt_tokens));
  if (!memory.device.is_cpu()) {
    row("step inputs", format_bytes(needs.step_inputs));
    row("results of a step", format_bytes(needs.results));
  }
  row("in all", format_bytes(needs.total()));
  row("free", memory.free
                  ? fmt::format("{}: {} sequence{} fit{}", format_bytes(*memory.free), memory.fit,
                                memory.fit == 1 ? "" : "s", memory.fit == 1 ? "s" : "")
                  : "unknown: " + memory.why_unknown);
  return text;
}

struct TrainOptions {
  bool wanted = false;
  std::string config;
  std::int64_t rows = 8, seq_len = 512;
};

// The levels of `run.recompute`, and what each takes.
constexpr std::array kLevels = {std::pair{"none", model::Recompute::none},
                                std::pair{"norms", model::Recompute::norms},
                                std::pair{"blocks", model::Recompute::blocks}};

train::Footprint footprint(const Config& config, const TrainOptions& options, DType compute,
                           model::Recompute recompute) {
  return train::training_footprint(config, options.rows, options.seq_len, compute, recompute);
}

std::string footprint_json(const Config& config, const TrainOptions& options) {
  const auto first = footprint(config, options, DType::f32, model::Recompute::none);
  Json json = {{"parameters", first.parameters},
               {"rows", options.rows},
               {"seq_len", options.seq_len},
               {"weights_bytes", first.weights},
               {"gradients_bytes", first.gradients},
               {"moments_bytes", first.moments},
               {"flops_per_token", first.flops_per_token}};
  for (const DType compute : {DType::f32, DType::bf16})
    for (const auto& [name, level] : kLevels) {
      const auto f = footprint(config, options, compute, level);
      json["compute"][to_string(compute)][name] = {{"rounded_bytes", f.rounded},
                                                   {"activations_bytes", f.activations},
                                                   {"total_bytes", f.total()}};
    }
  return json.dump() + "\n";
}

std::string footprint_text(const Config& config, const TrainOptions& options) {
  const auto first = footprint(config, options, DType::f32, model::Recompute::none);
  std::string text = fmt::format(
      "parameters            {}\nweights, float32      {}\ngradients             {}\n"
      "moments of AdamW      {}\noperations per token  {:.3g}\n\n"
      "One pass over {} sequences of {} tokens:\n"
      "compute  recompute  activations   in all\n",
      format_count(static_cast<std::uint64_t>(first.parameters)), format_bytes(first.weights),
      format_bytes(first.gradients), format_bytes(first.moments), first.flops_per_token,
      options.rows, options.seq_len);
  for (const DType compute : {DType::f32, DType::bf16})
    for (const auto& [name, level] : kLevels) {
      const auto f = footprint(config, options, compute, level);
      text += fmt::format("{:<9}{:<11}{:<14}{}\n", to_string(compute), name,
                          format_bytes(f.activations), format_bytes(f.total()));
    }
  return text;
}

}  // namespace

int run_info(Arguments args) {
  RunOptions run;
  run.device = "cpu";
  TrainOptions train;
  std::int64_t sequences = 0, prompt = 0;  // not asked for
  bool json = false;
  OptionParser parser("info", "Architecture, size, tokenizer and oddities of a model.", kExamples);
  parser.group("Output");
  parser.flag("--json", json, "One JSON object");
  parser.text("--config", "FILE", train.config,
              "With --train, --device or --sequences: the shape of this config.json, without a "
              "model; --dtype is the type of its weights too");
  parser.integer("--sequences", sequences, 1, 1 << 20,
                 "What so many side by side take of the memory of --device (1)");
  parser.integer("--prompt-len", prompt, 1, 1LL << 40,
                 "With --device or --sequences: tokens of the longest prompt (any number)");
  parser.group("Training");
  parser.flag("--train", train.wanted, "What training a model of this shape takes");
  parser.integer("--rows", train.rows, 1, 1 << 20, "Sequences of one pass (8)");
  parser.integer("--seq-len", train.seq_len, 1, 1 << 24, "Their tokens (512)");
  add_run_options(parser, run);
  if (!parser.parse(args)) return 0;
  apply(run.log);
  LoadOptions options = to_load_options(run);
  const bool with_memory = sequences > 0 || !options.device.is_cpu();
  if (prompt > 0 && !with_memory)
    throw UsageError("--prompt-len goes with --device or --sequences");
  run.device = "cpu";  // weights are looked at where they are
  run.prefill_dtype = "same";
  run.pack_weights = "auto";
  run.state_dtype = "f32";
  if (!train.wanted && !with_memory && !train.config.empty())
    throw UsageError(
        "--config goes with --train, --device or --sequences; a model is named with -m");
  if (train.wanted) {
    const Config config =
        train.config.empty()
            ? load_model(run).model.config()
            : formats::parse_hf_config(formats::read_text_file(train.config), train.config);
    write_out(json ? footprint_json(config, train) : footprint_text(config, train));
    return 0;
  }
  const auto memory_of = [&](const Config& config, const std::vector<ParameterInfo>& weights) {
    return running_memory(config, weights, options, std::max<std::int64_t>(1, sequences), prompt);
  };
  const auto line = [](const Json& object) {
    return object.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  };
  if (!train.config.empty()) {
    const Config config =
        formats::parse_hf_config(formats::read_text_file(train.config), train.config);
    config.validate(train.config);
    const RunningMemory memory =
        memory_of(config, model::uniform_parameters(config, options.dtype));
    write_out(json ? line({{"memory", memory_json(memory)}}) : memory_text(memory));
    return 0;
  }
  const LoadedModel loaded = load_model(run);
  if (run.dtype.empty()) options.dtype = arithmetic_on(options.device, main_dtype(loaded.model));
  Json object = json ? info_json(loaded, run.lora) : Json();
  std::string text = json ? "" : info_text(loaded, run.lora);
  if (with_memory) {
    const RunningMemory memory = memory_of(loaded.model.config(), loaded.model.parameters());
    if (json)
      object["memory"] = memory_json(memory);
    else
      text += memory_text(memory);
  }
  write_out(json ? line(object) : text);
  return 0;
}

}  // namespace xlstm::cli
