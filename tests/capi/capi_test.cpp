// The C interface, as a C program uses it.

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "formats/temp_dir.hpp"
#include "xlstm/xlstm.h"

namespace {

const std::string kModel = std::string(XLSTM_SOURCE_DIR) + "/models/shakespeare-byte";

class CApiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(xlstm_model_load(kModel.c_str(), nullptr, &model_), XLSTM_OK) << xlstm_last_error();
    ASSERT_EQ(xlstm_state_new(model_, &state_), XLSTM_OK);
    std::size_t count = 0;
    ids_.resize(64);
    const std::string text = "ROMEO:\n";
    ASSERT_EQ(xlstm_tokenize(model_, text.data(), text.size(), 1, ids_.data(), 64, &count),
              XLSTM_OK);
    ids_.resize(count);
  }
  void TearDown() override {
    xlstm_state_free(state_);
    xlstm_model_free(model_);
  }
  xlstm_model* model_ = nullptr;
  xlstm_state* state_ = nullptr;
  std::vector<std::int32_t> ids_;
};

std::int32_t append(const char* text, std::size_t length, void* user) {
  EXPECT_EQ(std::strlen(text), length);
  static_cast<std::string*>(user)->append(text, length);
  return 0;
}

std::int32_t stop_at_once(const char* text, std::size_t length, void* user) {
  append(text, length, user);
  return 1;
}

TEST_F(CApiTest, VectorsInsteadOfTokens) {
  const auto width = static_cast<std::size_t>(xlstm_hidden_size(model_));
  ASSERT_EQ(width, 256u);
  std::vector<float> vectors(3 * width, 0.25F), outputs(vectors.size());
  ASSERT_EQ(xlstm_forward_vectors(model_, state_, vectors.data(), 3, outputs.data()), XLSTM_OK)
      << xlstm_last_error();
  EXPECT_EQ(xlstm_state_token_count(state_), 3);
  EXPECT_EQ(xlstm_state_logits(state_), nullptr);
  // In pieces and in place it is the same.
  xlstm_state_reset(state_);
  for (std::size_t t = 0; t < 3; ++t)
    ASSERT_EQ(xlstm_forward_vectors(model_, state_, vectors.data() + t * width, 1,
                                    vectors.data() + t * width),
              XLSTM_OK);
  for (std::size_t i = 0; i < outputs.size(); ++i) EXPECT_NEAR(vectors[i], outputs[i], 1e-4F);
  EXPECT_EQ(xlstm_forward_vectors(model_, state_, nullptr, 1, outputs.data()),
            XLSTM_INVALID_ARGUMENT);
  EXPECT_EQ(xlstm_forward_vectors(model_, state_, vectors.data(), 0, outputs.data()),
            XLSTM_INVALID_ARGUMENT);
}

TEST_F(CApiTest, LoadOptionsNameDeviceAndAdapters) {
  xlstm_load_options options = {};
  xlstm_model* other = nullptr;
  options.device = "cpu";
  ASSERT_EQ(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_OK) << xlstm_last_error();
  xlstm_model_free(other);
  options.device = "gpu";
  EXPECT_EQ(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_INVALID_ARGUMENT);
  options.device = nullptr;
  const char* adapter = "nowhere";
  options.adapters = &adapter;
  options.adapter_count = 1;
  EXPECT_NE(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_OK);
  EXPECT_NE(std::string(xlstm_last_error()).find("nowhere"), std::string::npos);
}

TEST_F(CApiTest, LoadOptionsNameTheTypeOfPromptsAndPackedWeights) {
  xlstm_load_options options = {};
  xlstm_model* other = nullptr;
  options.prefill = 1;  // this model runs on the CPU, which has no products of e4m3
  EXPECT_NE(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_OK);
  EXPECT_NE(std::string(xlstm_last_error()).find("fp8"), std::string::npos) << xlstm_last_error();
  options.prefill = 3;
  EXPECT_EQ(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(xlstm_last_error()), "prefill: expected 0, 1 or 2, found 3");
  options.prefill = 0;
  options.packing = 2;
  EXPECT_EQ(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_UNSUPPORTED);
  EXPECT_NE(std::string(xlstm_last_error()).find("packed weights"), std::string::npos);
  options.packing = 4;
  EXPECT_EQ(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(xlstm_last_error()), "packing: expected 0 to 3, found 4");
}

TEST_F(CApiTest, LoadOptionsNameTheTypeOfStates) {
  xlstm_load_options options = {};
  xlstm_model* other = nullptr;
  options.state_bf16 = 1;
  EXPECT_EQ(xlstm_model_load(kModel.c_str(), &options, &other), XLSTM_UNSUPPORTED);
  EXPECT_NE(std::string(xlstm_last_error()).find("states in bf16"), std::string::npos)
      << xlstm_last_error();
}

TEST_F(CApiTest, TextToIdsAndBack) {
  EXPECT_EQ(ids_, (std::vector<std::int32_t>{51, 48, 46, 38, 48, 27, 200}));
  std::size_t count = 0, length = 0;
  EXPECT_EQ(xlstm_tokenize(model_, "ROMEO", 5, 1, nullptr, 0, &count), XLSTM_OK);
  EXPECT_EQ(count, 5u);
  std::int32_t two[2];
  EXPECT_EQ(xlstm_tokenize(model_, "ROMEO", 5, 1, two, 2, &count), XLSTM_OK);
  EXPECT_EQ(count, 5u);
  char text[32];
  EXPECT_EQ(xlstm_detokenize(model_, ids_.data(), ids_.size(), text, sizeof(text), &length),
            XLSTM_OK);
  EXPECT_STREQ(text, "ROMEO:\n");
  EXPECT_EQ(length, 7u);
  EXPECT_EQ(xlstm_detokenize(model_, ids_.data(), ids_.size(), text, 4, &length), XLSTM_OK);
  EXPECT_STREQ(text, "ROM");
  EXPECT_EQ(length, 7u);
}

TEST_F(CApiTest, EvalGivesLogitsThatBelongToTheState) {
  EXPECT_EQ(xlstm_state_logits(state_), nullptr);
  const float* logits = nullptr;
  ASSERT_EQ(xlstm_eval(model_, state_, ids_.data(), ids_.size(), &logits), XLSTM_OK);
  EXPECT_EQ(logits, xlstm_state_logits(state_));
  EXPECT_EQ(xlstm_state_token_count(state_), 7);
  std::int32_t best = 0;
  for (std::int32_t i = 1; i < xlstm_vocab_size(model_); ++i)
    if (logits[i] > logits[best]) best = i;
  EXPECT_EQ(best, 34);  // golden.json
  xlstm_state_reset(state_);
  EXPECT_EQ(xlstm_state_token_count(state_), 0);
}

TEST_F(CApiTest, StatesForkAndTravel) {
  const xlstm::formats::TempDir dir;
  const std::string file = (dir / "state").string();
  ASSERT_EQ(xlstm_eval(model_, state_, ids_.data(), ids_.size(), nullptr), XLSTM_OK);
  ASSERT_EQ(xlstm_state_save(state_, file.c_str()), XLSTM_OK) << xlstm_last_error();
  xlstm_state* fork = nullptr;
  ASSERT_EQ(xlstm_state_clone(state_, &fork), XLSTM_OK);
  const std::int32_t next = 53;
  const float *a = nullptr, *b = nullptr;
  ASSERT_EQ(xlstm_eval(model_, fork, &next, 1, &a), XLSTM_OK);
  ASSERT_EQ(xlstm_state_load(state_, file.c_str()), XLSTM_OK) << xlstm_last_error();
  ASSERT_EQ(xlstm_eval(model_, state_, &next, 1, &b), XLSTM_OK);
  EXPECT_EQ(std::memcmp(a, b, sizeof(float) * static_cast<std::size_t>(xlstm_vocab_size(model_))),
            0);
  xlstm_state_free(fork);
  EXPECT_EQ(xlstm_state_load(state_, (dir / "none").string().c_str()), XLSTM_NOT_FOUND);
}

TEST_F(CApiTest, GeneratesAndStops) {
  xlstm_generate_options options = xlstm_generate_defaults();
  EXPECT_EQ(options.max_tokens, 128);
  EXPECT_FLOAT_EQ(options.temperature, 0.8F);
  options.temperature = 0;
  options.max_tokens = 30;
  std::string text;
  xlstm_finish finish = XLSTM_FINISH_STOP;
  ASSERT_EQ(
      xlstm_generate(model_, state_, ids_.data(), ids_.size(), &options, append, &text, &finish),
      XLSTM_OK)
      << xlstm_last_error();
  EXPECT_EQ(text, "And then, the county will be t");
  EXPECT_EQ(finish, XLSTM_FINISH_LENGTH);
  EXPECT_EQ(xlstm_state_token_count(state_), 37);
  text.clear();  // goes on where it was
  options.max_tokens = 10;
  ASSERT_EQ(xlstm_generate(model_, state_, nullptr, 0, &options, append, &text, nullptr), XLSTM_OK);
  EXPECT_EQ(text, "he counter");
  const char* stops[] = {" county"};
  options.stop = stops;
  options.stop_count = 1;
  options.max_tokens = 30;
  text.clear();
  ASSERT_EQ(
      xlstm_generate(model_, nullptr, ids_.data(), ids_.size(), &options, append, &text, &finish),
      XLSTM_OK);
  EXPECT_EQ(text, "And then, the");
  EXPECT_EQ(finish, XLSTM_FINISH_STOP);
  options.stop_count = 0;
  text.clear();
  ASSERT_EQ(xlstm_generate(model_, nullptr, ids_.data(), ids_.size(), &options, stop_at_once, &text,
                           &finish),
            XLSTM_OK);
  EXPECT_EQ(text, "A");
  EXPECT_EQ(finish, XLSTM_FINISH_LENGTH);
}

TEST_F(CApiTest, ErrorsHaveCodesAndMessagesOfTheirThread) {
  xlstm_model* none = nullptr;
  EXPECT_EQ(xlstm_model_load("/no/such/model", nullptr, &none), XLSTM_NOT_FOUND);
  EXPECT_EQ(none, nullptr);
  EXPECT_NE(std::string(xlstm_last_error()).find("/no/such/model"), std::string::npos);
  std::thread([] { EXPECT_STREQ(xlstm_last_error(), ""); }).join();
  const std::int32_t bad = 5000;
  EXPECT_EQ(xlstm_eval(model_, state_, &bad, 1, nullptr), XLSTM_INVALID_ARGUMENT);
  EXPECT_NE(std::string(xlstm_last_error()).find("found 5000"), std::string::npos);
  EXPECT_EQ(xlstm_eval(model_, state_, nullptr, 3, nullptr), XLSTM_INVALID_ARGUMENT);
  EXPECT_EQ(xlstm_eval(nullptr, state_, &bad, 1, nullptr), XLSTM_INVALID_ARGUMENT);
  EXPECT_EQ(xlstm_model_load(nullptr, nullptr, &none), XLSTM_INVALID_ARGUMENT);
  EXPECT_EQ(xlstm_tokenize(model_, "\xff", 1, 0, nullptr, 0, nullptr), XLSTM_INVALID_ARGUMENT);
  EXPECT_EQ(xlstm_state_token_count(state_), 0);
  std::size_t count = 0;
  EXPECT_EQ(xlstm_tokenize(model_, "ok", 2, 0, nullptr, 0, &count), XLSTM_OK);
  EXPECT_STREQ(xlstm_last_error(), "");
  xlstm_model_free(nullptr);
  xlstm_state_free(nullptr);
  xlstm_state_reset(nullptr);
}

TEST_F(CApiTest, TellsAboutItsModel) {
  EXPECT_EQ(xlstm_vocab_size(model_), 320);
  EXPECT_EQ(xlstm_bos_id(model_), 0);
  EXPECT_EQ(xlstm_is_eos(model_, 0), 1);
  EXPECT_EQ(xlstm_is_eos(model_, 1), 0);
  // 6 blocks of 4 heads: C [32, 64], n [32], m, each part on 256 bytes.
  EXPECT_EQ(xlstm_state_bytes(model_), 6u * (4 * 32 * 64 * 4 + 4 * 32 * 8 + 256));
  EXPECT_STREQ(xlstm_version(), XLSTM_TEST_VERSION);
}

}  // namespace
