// Deviations of whole models: from the reference implementations' results, and from the oracle.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/cpu_features.hpp"
#include "equivalence/report.hpp"
#include "formats/config_files.hpp"
#include "formats/safetensors.hpp"
#include "model/golden.hpp"
#include "oracle/xlstm_large.hpp"
#include "source_dir.hpp"
#include "test_device.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::equivalence {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kSource = source_dir();
const fs::path kShared = kSource / "../shared";
constexpr DType kTypes[] = {DType::f32, DType::bf16};

LoadOptions options_for(DType dtype, std::int64_t chunk = 0) {
  LoadOptions options;
  options.device = test_device();
  options.dtype = dtype;
  options.chunk_size = chunk;
  return options;
}

/// Logits [T, V] of one sequence read in pieces of these lengths, the last one repeated.
std::vector<float> logits_of(Model& model, std::span<const std::int32_t> ids,
                             const std::vector<std::size_t>& pieces) {
  State state = model.make_state();
  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  std::vector<float> logits(ids.size() * vocab);
  for (std::size_t at = 0, piece = 0; at < ids.size(); ++piece) {
    const std::size_t count = std::min(pieces[std::min(piece, pieces.size() - 1)], ids.size() - at);
    const SequenceInput input{ids.subspan(at, count), &state};
    model.forward({&input, 1}, Logits::all, std::span(logits).subspan(at * vocab, count * vocab));
    at += count;
  }
  return logits;
}

/// Every golden model, chunk size and split of its tokens: the largest deviation of a logit.
void measure_golden(bool quick, const fs::path& scratch) {
  std::vector<testing::Golden> models = testing::golden_models();
  for (testing::Golden& stack : testing::golden_stacks()) models.push_back(std::move(stack));
  for (const testing::Golden& golden : models) {
    const auto file = formats::SafetensorsFile::open(golden.outputs);
    const bool ragged = file.tensors().count("ragged.logits") != 0;
    const std::string prefix = ragged ? "ragged." : "";
    const std::vector<double> want = testing::numbers(file, prefix + "logits");
    const auto sequences = file.tensors().at(prefix + "input_ids").dim(0);
    const std::size_t per_sequence = want.size() / static_cast<std::size_t>(sequences);
    for (DType dtype : kTypes)
      for (std::int64_t chunk : {1, 7, 16, 64, 77}) {
        if (quick && chunk != 16) continue;
        Model model = testing::load_golden(golden, scratch, options_for(dtype, chunk));
        double worst = 0;
        for (std::int64_t s = 0; s < sequences; ++s) {
          const auto ids = testing::ids_of(file, prefix + "input_ids", s);
          const std::span<const double> exact =
              std::span(want).subspan(static_cast<std::size_t>(s) * per_sequence, per_sequence);
          for (const std::vector<std::size_t>& split :
               {std::vector<std::size_t>{ids.size()}, {1}, {38}, {72, 1}, {5, 1, 20}})
            worst =
                std::max(worst, testing::largest_difference(logits_of(model, ids, split), exact));
        }
        report(kGolden, fmt::format("{}, {}, chunk {}", golden.name, to_string(dtype), chunk),
               worst);
      }
  }
}

/// A model's weights as the oracle takes them.
oracle::Weights weights_of(const fs::path& directory) {
  const auto checkpoint = formats::Checkpoint::open(directory);
  oracle::Weights weights;
  for (const std::string& name : checkpoint.names()) {
    const Tensor tensor = checkpoint.find(name);
    std::vector<double>& values = weights[name];
    values.resize(static_cast<std::size_t>(tensor.count()));
    for (std::size_t i = 0; i < values.size(); ++i) {  // bf16 is the upper half of a float
      std::uint32_t bits = 0;
      const auto* at = static_cast<const std::byte*>(tensor.data);
      if (tensor.dtype == DType::bf16)
        std::memcpy(reinterpret_cast<std::byte*>(&bits) + 2, at + 2 * i, 2);
      else
        std::memcpy(&bits, at + 4 * i, 4);
      float value;
      std::memcpy(&value, &bits, 4);
      values[i] = value;
    }
  }
  return weights;
}

void measure_default_model(bool quick) {
  const fs::path directory = kSource / "models/shakespeare-byte";
  const json golden = json::parse(formats::read_text_file(directory / "golden.json"));
  std::vector<std::int32_t> ids = golden.at("prompt_ids");
  for (std::int32_t id : golden.at("greedy").get<std::vector<std::int32_t>>()) ids.push_back(id);
  const std::size_t length = quick ? 20 : 107;
  ids.resize(std::min(ids.size(), length));

  const oracle::Weights weights = weights_of(directory);
  std::vector<double> exact;
  for (DType dtype : kTypes) {
    Model model = Model::load(directory, options_for(dtype));
    if (exact.empty()) {
      auto states = oracle::make_states(model.config());
      exact = oracle::forward(model.config(), weights, ids, states);
    }
    for (const auto& [name, pieces] :
         {std::pair{"one pass", ids.size()}, {"one token at a time", std::size_t{1}}}) {
      const std::vector<float> got = logits_of(model, ids, {pieces});
      double log_likelihood = 0;  // largest deviation of log p(any token), what a sampler sees
      std::size_t same = 0;
      const std::size_t vocab = exact.size() / ids.size();
      for (std::size_t t = 0; t < ids.size(); ++t) {
        const double* a = &exact[t * vocab];
        const float* b = &got[t * vocab];
        same += std::max_element(a, a + vocab) - a == std::max_element(b, b + vocab) - b;
        double sum_a = 0, sum_b = 0;
        for (std::size_t v = 0; v < vocab; ++v) {
          sum_a += std::exp(a[v]);
          sum_b += std::exp(static_cast<double>(b[v]));
        }
        for (std::size_t v = 0; v < vocab; ++v)
          log_likelihood = std::max(log_likelihood,
                                    std::abs((a[v] - std::log(sum_a)) - (b[v] - std::log(sum_b))));
      }
      const std::string row = fmt::format("{}, {} tokens, {}", to_string(dtype), ids.size(), name);
      report(kDefaultModel, row + ": largest deviation of a logit",
             testing::largest_difference(got, exact));
      report(kDefaultModel, row + ": of a log-probability", log_likelihood);
      report(kDefaultModel, row + ": same most likely token",
             fmt::format("{} of {}", same, ids.size()));
    }
  }
}

/// The part of a text from a fraction of its characters on.
std::string tail(const fs::path& path, double from) {
  const std::string text = formats::read_text_file(path);
  std::vector<std::size_t> starts;
  for (std::size_t i = 0; i < text.size(); ++i)
    if ((static_cast<unsigned char>(text[i]) & 0xC0U) != 0x80U) starts.push_back(i);
  return text.substr(
      starts.at(static_cast<std::size_t>(static_cast<double>(starts.size()) * from)));
}

void measure_checkpoint() {
  const fs::path directory = kShared / "golden/reference_checkpoint";
  if (!fs::exists(directory / "golden.json")) return;
  const json golden = json::parse(formats::read_text_file(directory / "golden.json"));
  for (DType dtype : kTypes) {
    Model model = Model::load(directory, options_for(dtype));
    const double close = dtype == DType::f32 ? 1e-3 : 0.1;  // a margin at which either may win
    std::size_t same = 0, all = 0, lost = 0;
    double logits = 0;
    for (const json& prompt : golden.at("prompts")) {
      const std::vector<std::int32_t> ids = prompt.at("input_ids"), greedy = prompt.at("greedy");
      GenerateOptions options;
      options.sampler.temperature = 0;
      options.ignore_eos = true;
      options.max_tokens = static_cast<std::int64_t>(greedy.size());
      const Generation got = generate(model, std::span(&ids, 1), options)[0];
      const auto [end, unused] =
          std::mismatch(greedy.begin(), greedy.end(), got.ids.begin(), got.ids.end());
      same += static_cast<std::size_t>(end - greedy.begin());
      all += greedy.size();
      const std::vector<double> margins = prompt.at("greedy_margin");
      lost +=
          end != greedy.end() && margins.at(static_cast<std::size_t>(end - greedy.begin())) > close;
      State state = model.make_state();
      const std::span<const float> next = model.eval(state, ids);
      const std::vector<double> want = prompt.at("next_logits");
      logits = std::max(logits, testing::largest_difference(next.first(want.size()), want));
    }
    const std::string name = to_string(dtype);
    report(kCheckpoint, name + ": greedy tokens before the first difference",
           fmt::format("{} of {}", same, all));
    report(kCheckpoint,
           fmt::format("{}: first differences where the margin exceeds {}", name, close),
           std::to_string(lost));
    report(kCheckpoint, name + ": largest deviation of a logit", logits);
    if (active_isa() < Isa::avx2) continue;  // minutes without them, for nothing new
    for (const auto& [text, key, from] :
         {std::tuple{"tinyshakespeare.txt", "nll_shakespeare_tail", 0.95},
          {"wikitext2_test.txt", "nll_wikitext2_test_second_half", 0.5}}) {
      EvaluateOptions options;
      options.window = 512;
      options.windows = 40;
      options.no_bos = true;
      const auto ids = model.tokenizer()->encode(tail(kShared / "data" / text, from));
      report(kCheckpoint, fmt::format("{}: likelihood of {}, deviation", name, text),
             std::abs(evaluate(model, ids, options).nll - golden.at(key).at("nll").get<double>()));
    }
  }
}

}  // namespace

void measure_models(bool quick, const fs::path& scratch) {
  measure_golden(quick, scratch);
  measure_default_model(quick);
  if (!quick) measure_checkpoint();
}

}  // namespace xlstm::equivalence
