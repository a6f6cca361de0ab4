// Likelihood of a text, window by window.

#include <algorithm>
#include <cmath>

#include "core/check.hpp"
#include "core/threads.hpp"
#include "infer/sampler.hpp"
#include "xlstm/generate.hpp"

namespace xlstm {
namespace {

// Tokens of one forward pass with all logits: bounds the memory for them.
constexpr std::size_t kPiece = 512;

}  // namespace

Evaluation evaluate(Model& model, std::span<const std::int32_t> ids,
                    const EvaluateOptions& options) {
  XLSTM_CHECK(options.window >= 1, invalid_argument, "eval: window: expected 1 or more, found {}",
              options.window);
  XLSTM_CHECK(options.windows >= -1 && options.windows != 0, invalid_argument,
              "eval: windows: expected 1 or more, or -1 for all, found {}", options.windows);
  XLSTM_CHECK(model.config().vocab_size > 0, unsupported,
              "eval: expected a model with a vocabulary, found a block stack alone (vocab_size 0)");
  XLSTM_CHECK(options.no_bos || model.bos_id() >= 0, invalid_argument,
              "eval: the model has no BOS token to put before each window");
  const auto have = static_cast<std::int64_t>(ids.size());
  std::int64_t windows = have > 0 ? (have - 1) / options.window : 0;
  XLSTM_CHECK(windows >= 1, invalid_argument,
              "eval: expected at least {} tokens for one window of {} targets, found {}",
              options.window + 1, options.window, have);
  if (options.windows > 0) windows = std::min(windows, options.windows);

  const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
  const auto window = static_cast<std::size_t>(options.window);
  std::vector<float> logits(std::min(window, kPiece) * vocab);
  std::vector<double> nll(std::min(window, kPiece));
  State state = model.make_state();
  double total = 0;
  for (std::int64_t w = 0; w < windows; ++w) {
    if (!options.carry) state.reset();
    if (!options.no_bos) {
      const std::int32_t bos = model.bos_id();
      const SequenceInput input{.ids = std::span(&bos, 1), .state = &state};
      model.forward(std::span(&input, 1), Logits::none, {});
    }
    for (std::size_t begin = 0; begin < window; begin += kPiece) {
      const std::size_t n = std::min(kPiece, window - begin);
      const std::size_t at = static_cast<std::size_t>(w) * window + begin;
      const SequenceInput input{.ids = ids.subspan(at, n), .state = &state};
      model.forward(std::span(&input, 1), Logits::all, logits);
      parallel_for(model.threads(), static_cast<std::int64_t>(n), [&](std::int64_t t) {
        const auto row = static_cast<std::size_t>(t);
        const std::span<const float> values(logits.data() + row * vocab, vocab);
        nll[row] = infer::negative_log_likelihood(values, ids[at + row + 1]);
      });
      for (std::size_t t = 0; t < n; ++t) {
        if (std::isnan(nll[t])) infer::log_sum_exp({logits.data() + t * vocab, vocab});  // throws
        total += nll[t];
      }
    }
    if (options.progress) options.progress(w + 1, windows);
  }

  Evaluation result;
  result.tokens = windows * options.window;
  result.nll = total / static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.nll);
  if (model.tokenizer() != nullptr) {
    const std::size_t targets = static_cast<std::size_t>(result.tokens);
    const std::size_t bytes = model.tokenizer()->decode(ids.subspan(1, targets)).size();
    if (bytes > 0) result.bits_per_byte = total / std::log(2.0) / static_cast<double>(bytes);
  }
  return result;
}

}  // namespace xlstm
