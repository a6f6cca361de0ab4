#pragma once
// Generation: prompts in, text out.

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "xlstm/model.hpp"

namespace xlstm {

/// The sampler chain, applied in this order: logit bias, penalties, temperature, top-k, top-p,
/// min-p. Temperature 0 is greedy.
struct SamplerOptions {
  float temperature = 0.8F;
  int top_k = 40;               ///< 0: off
  float top_p = 0.95F;          ///< 1: off
  float min_p = 0.05F;          ///< 0: off
  float repeat_penalty = 1.0F;  ///< 1: off; divides positive and multiplies negative logits
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  int repeat_last_n = 64;  ///< tokens the penalties look back on; -1: all
  std::map<std::int32_t, float> logit_bias;
  std::uint64_t seed = 0;
};

struct GenerateOptions {
  SamplerOptions sampler;
  std::int64_t max_tokens = 128;  ///< -1: until end of text
  std::vector<std::string> stop;  ///< ends before the first of these, even across token borders
  bool ignore_eos = false;
  int logprobs = -1;  ///< -1: none; K >= 0: the chosen token's and the top K
};

/// Natural logarithms of the full softmax, before penalties, temperature and masks.
struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<std::int32_t, float>> top;
};

enum class FinishReason { stop, length };

struct Timings {
  std::int64_t prompt_tokens = 0;
  double prompt_s = 0;
  std::int64_t generated_tokens = 0;
  double generate_s = 0;
};

struct Generation {
  std::vector<std::int32_t> prompt_ids;
  std::vector<std::int32_t> ids;  ///< neither the prompt nor the end token
  std::string text;               ///< empty without a tokenizer
  FinishReason finish_reason = FinishReason::length;
  std::vector<TokenLogprob> logprobs;
  Timings timings;
};

/// What generate() tells while it works. Every member may be empty. None may use the states that
/// are being continued: on a CUDA device they are already ahead of the text.
struct GenerateCallbacks {
  /// New text of sequence `index`: whole UTF-8 characters, never part of a stop string.
  std::function<void(std::size_t index, std::string_view text)> on_text;
  /// Prompt tokens read so far and in all.
  std::function<void(std::int64_t done, std::int64_t total)> on_prompt;
  /// Asked before every token, and before what it takes to compute it; true ends all sequences with
  /// FinishReason::length.
  std::function<bool()> should_stop;
};

/// Continues each prompt (token ids, BOS included where wanted) from an empty state. All prompts
/// advance in one batch; in batches of 1 to 16 each result is the same, bit for bit, as alone.
/// Every sequence samples with a generator of its own, seeded by `sampler.seed`.
std::vector<Generation> generate(Model& model, std::span<const std::vector<std::int32_t>> prompts,
                                 const GenerateOptions& options,
                                 const GenerateCallbacks& callbacks = {});

/// The same for one sequence that continues `state`, which afterwards holds the prompt and the
/// generated text: the way to chat, to resume and to fork.
Generation generate(Model& model, State& state, std::span<const std::int32_t> prompt,
                    const GenerateOptions& options, const GenerateCallbacks& callbacks = {});

struct EvaluateOptions {
  std::int64_t window = 512;  ///< targets per window
  std::int64_t windows = -1;  ///< at most so many; -1: all
  bool no_bos = false;        ///< no BOS before each window
  bool carry = false;         ///< keep the state from window to window
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

struct Evaluation {
  double nll = 0;           ///< mean negative log-likelihood per target, natural logarithm
  std::int64_t tokens = 0;  ///< targets
  double perplexity = 0;
  double bits_per_byte = 0;  ///< over the UTF-8 bytes of the targets; 0 without a tokenizer
};

/// Likelihood of `ids`: window i reads ids[N i .. N i + N - 1] and predicts ids[N i + 1 .. N i +
/// N]; a last short window is dropped.
Evaluation evaluate(Model& model, std::span<const std::int32_t> ids,
                    const EvaluateOptions& options);

}  // namespace xlstm
