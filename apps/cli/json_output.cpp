#include "json_output.hpp"

#include <nlohmann/json.hpp>

namespace xlstm::cli {
namespace {

using Json = nlohmann::ordered_json;

// Bytes that are no valid UTF-8 become U+FFFD: what we print is always JSON.
std::string line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json logprob_json(const TokenLogprob& logprob) {
  Json top = Json::array();
  for (const auto& [id, value] : logprob.top) top.push_back(Json::array({id, value}));
  return {{"id", logprob.id}, {"logprob", logprob.logprob}, {"top", std::move(top)}};
}

Json generation_json(const Generation& generation, bool with_logprobs, double load_s) {
  Json json = {
      {"prompt_ids", generation.prompt_ids},
      {"ids", generation.ids},
      {"text", generation.text},
      {"finish_reason", generation.finish_reason == FinishReason::stop ? "stop" : "length"}};
  if (with_logprobs) {
    Json list = Json::array();
    for (const TokenLogprob& logprob : generation.logprobs) list.push_back(logprob_json(logprob));
    json["logprobs"] = std::move(list);
  }
  const Timings& timings = generation.timings;
  json["timings"] = {{"load_s", load_s},
                     {"prompt_tokens", timings.prompt_tokens},
                     {"prompt_s", timings.prompt_s},
                     {"generated_tokens", timings.generated_tokens},
                     {"generate_s", timings.generate_s}};
  return json;
}

}  // namespace

std::string generations_json(std::span<const Generation> generations, bool with_logprobs,
                             double load_s) {
  if (generations.size() == 1) return line(generation_json(generations[0], with_logprobs, load_s));
  Json results = Json::array();
  for (const Generation& generation : generations)
    results.push_back(generation_json(generation, with_logprobs, load_s));
  return line({{"results", std::move(results)}});
}

std::string ids_json(std::span<const std::int32_t> ids) {
  return line({{"ids", std::vector<std::int32_t>(ids.begin(), ids.end())}});
}

std::string text_json(const std::string& text) { return line({{"text", text}}); }

std::string evaluation_json(const Evaluation& evaluation) {
  return line({{"nll", evaluation.nll},
               {"tokens", evaluation.tokens},
               {"perplexity", evaluation.perplexity},
               {"bits_per_byte", evaluation.bits_per_byte}});
}

std::string bench_json(const MachineRow& machine, std::span<const BenchRow> rows) {
  Json list = Json::array();
  for (const BenchRow& row : rows) {
    list.push_back({{"test", row.test},
                    {"batch", row.batch},
                    {"depth", row.depth},
                    {"dtype", row.dtype},
                    {"tok_s", row.tok_s},
                    {"tok_s_spread", row.tok_s_spread},
                    {"percent_of_limit", row.percent_of_limit}});
    if (row.host_us >= 0) list.back()["host_us"] = row.host_us;
  }
  Json limits = {{"read_gb_s", machine.read_gb_s}, {"peak_gflop_s", machine.peak_gflop_s}};
  if (!machine.device.empty()) limits["device"] = machine.device;
  return line({{"machine", std::move(limits)}, {"rows", std::move(list)}});
}

}  // namespace xlstm::cli
