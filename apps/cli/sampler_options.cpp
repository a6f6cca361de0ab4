#include "sampler_options.hpp"

#include <fmt/format.h>

#include <limits>
#include <random>

namespace xlstm::cli {
namespace {

constexpr double kMaxFloat = std::numeric_limits<float>::max();

// "50256-inf", "15043+1.5": the id, then the signed bias.
void take_logit_bias(const std::string& text, SamplerOptions& sampler) {
  const std::size_t sign = text.find_first_of("+-", 1);
  if (sign == std::string::npos)
    throw UsageError(fmt::format(
        "--logit-bias: expected ID+BIAS or ID-BIAS as in 15043+1.5 or 2-inf, found '{}'", text));
  const auto id = static_cast<std::int32_t>(parse_integer(std::string_view(text).substr(0, sign), 0,
                                                          std::numeric_limits<std::int32_t>::max(),
                                                          "--logit-bias"));
  const std::string size = text.substr(sign + 1);
  const bool minus = text[sign] == '-';
  if (size == "inf") {
    if (!minus) throw UsageError("--logit-bias: a bias of +inf is not possible");
    sampler.logit_bias[id] = -std::numeric_limits<float>::infinity();
    return;
  }
  const auto bias = static_cast<float>(parse_number(size, 0, kMaxFloat, "--logit-bias"));
  sampler.logit_bias[id] = minus ? -bias : bias;
}

}  // namespace

void add_sampling_options(OptionParser& parser, SamplingOptions& options) {
  SamplerOptions& sampler = options.generate.sampler;
  parser.group("Generation");
  parser.integer("-n,--predict,--n-predict", options.predict, -1,
                 std::numeric_limits<std::int64_t>::max(),
                 "Tokens to generate; -1: until end of text (128)");
  parser.texts("--stop", "TEXT", options.generate.stop,
               "End before this text; may be given several times");
  parser.flag("--ignore-eos", options.generate.ignore_eos, "Go on after end of text");
  parser.group("Sampling");
  parser.integer("-s,--seed", options.seed, -1, std::numeric_limits<std::int64_t>::max(),
                 "Random seed; -1: a new one, shown on stderr (-1)");
  parser.number("--temp,--temperature", sampler.temperature, 0, kMaxFloat,
                "Temperature; 0: always the likeliest token");
  parser.integer("--top-k", options.top_k, 0, std::numeric_limits<std::int32_t>::max(),
                 "Only the K likeliest tokens; 0: off (40)");
  parser.number("--top-p", sampler.top_p, 0, 1,
                "Only the likeliest tokens that together reach P; 1: off");
  parser.number("--min-p", sampler.min_p, 0, 1,
                "Only tokens at least P times as likely as the likeliest; 0: off");
  parser.number("--repeat-penalty", sampler.repeat_penalty, 1e-6, kMaxFloat,
                "Penalty for tokens that were there before; 1: off");
  parser.integer("--repeat-last-n", options.repeat_last_n, -1,
                 std::numeric_limits<std::int32_t>::max(),
                 "Tokens that the penalties look back on; -1: all (64)");
  parser.number("--presence-penalty", sampler.presence_penalty, -kMaxFloat, kMaxFloat,
                "Subtracted once for a token that was there before; 0: off");
  parser.number("--frequency-penalty", sampler.frequency_penalty, -kMaxFloat, kMaxFloat,
                "Subtracted for each time a token was there before; 0: off");
  parser.custom(
      "--logit-bias", "ID(+|-)BIAS",
      [&sampler](const std::string& text) { take_logit_bias(text, sampler); },
      "Add to a token's logit, as in 15043+1.5 or 2-inf; may be given several times");
}

GenerateOptions to_generate_options(const SamplingOptions& options) {
  GenerateOptions generate = options.generate;
  generate.max_tokens = options.predict;
  generate.sampler.top_k = static_cast<int>(options.top_k);
  generate.sampler.repeat_last_n = static_cast<int>(options.repeat_last_n);
  generate.sampler.seed = options.seed >= 0 ? static_cast<std::uint64_t>(options.seed)
                                            : std::uint64_t{std::random_device{}()};
  for (const std::string& stop : generate.stop)
    if (stop.empty()) throw UsageError("--stop: expected some text, found an empty string");
  return generate;
}

}  // namespace xlstm::cli
