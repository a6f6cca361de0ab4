// Likelihood by windows, against its definition and against the reference.

#include <gtest/gtest.h>

#include <cmath>

#include "formats/expect_error.hpp"
#include "infer/sampler.hpp"
#include "model/small_model.hpp"
#include "xlstm/generate.hpp"

namespace xlstm::testing {
namespace {

// The definition, one token at a time.
double slow_nll(Model& model, const std::vector<std::int32_t>& ids, std::size_t n,
                std::size_t windows, bool bos, bool carry) {
  State state = model.make_state();
  double total = 0;
  for (std::size_t w = 0; w < windows; ++w) {
    if (!carry) state.reset();
    const std::int32_t id = model.bos_id();
    if (bos) model.eval(state, std::span(&id, 1));
    for (std::size_t t = w * n; t < w * n + n; ++t)
      total += infer::negative_log_likelihood(model.eval(state, std::span(&ids[t], 1)), ids[t + 1]);
  }
  return total / static_cast<double>(n * windows);
}

TEST(EvaluateTest, IsItsDefinition) {
  Model model = small_model();
  const std::vector<std::int32_t> ids = some_ids(50);
  for (const bool bos : {false, true})
    for (const bool carry : {false, true}) {
      EvaluateOptions options;
      options.window = 7;
      options.no_bos = !bos;
      options.carry = carry;
      std::vector<std::int64_t> progress;
      options.progress = [&](std::int64_t done, std::int64_t total) {
        EXPECT_EQ(total, 7);
        progress.push_back(done);
      };
      const Evaluation e = evaluate(model, ids, options);
      EXPECT_EQ(e.tokens, 49);  // 50 ids hold 49 targets: 7 windows
      EXPECT_NEAR(e.nll, slow_nll(model, ids, 7, 7, bos, carry), 1e-5);
      EXPECT_NEAR(e.perplexity, std::exp(e.nll), 1e-9);
      EXPECT_EQ(e.bits_per_byte, 0) << "there is no tokenizer";
      EXPECT_EQ(progress.size(), 7u);
    }
}

TEST(EvaluateTest, ShortWindowsAreDropped) {
  Model model = small_model();
  const std::vector<std::int32_t> ids = some_ids(50);
  EvaluateOptions options;
  options.window = 10;
  EXPECT_EQ(evaluate(model, ids, options).tokens, 40);
  options.windows = 3;
  EXPECT_EQ(evaluate(model, ids, options).tokens, 30);
  options.windows = -1;
  options.window = 49;
  EXPECT_EQ(evaluate(model, ids, options).tokens, 49);
  options.window = 50;
  expect_error(ErrorCode::invalid_argument, {"at least 51 tokens", "found 50"},
               [&] { evaluate(model, ids, options); });
  options.window = 0;
  EXPECT_THROW(evaluate(model, ids, options), Error);
  options.window = 5;
  options.windows = 0;
  EXPECT_THROW(evaluate(model, ids, options), Error);
}

TEST(EvaluateTest, LongWindowsAreReadInPieces) {
  Model model = small_model();
  const std::vector<std::int32_t> ids = some_ids(601);
  EvaluateOptions options;
  options.window = 600;
  options.no_bos = true;
  EXPECT_NEAR(evaluate(model, ids, options).nll, slow_nll(model, ids, 600, 1, false, false), 1e-5);
}

TEST(EvaluateTest, BitsPerByteCountTheTargets) {
  Model model = Model::load(std::filesystem::path(XLSTM_SOURCE_DIR) / "models/shakespeare-byte");
  const std::vector<std::int32_t> ids =
      model.encode_prompt("To be, or not to be: caf\u00e9.", true);
  EvaluateOptions options;
  options.window = 10;
  const Evaluation e = evaluate(model, ids, options);
  const std::string targets =
      model.tokenizer()->decode(std::span(ids).subspan(1, static_cast<std::size_t>(e.tokens)));
  EXPECT_NEAR(
      e.bits_per_byte,
      e.nll * static_cast<double>(e.tokens) / std::log(2.0) / static_cast<double>(targets.size()),
      1e-12);
}

}  // namespace
}  // namespace xlstm::testing
