// States: values that are cloned, reset, saved and loaded, and files that are not states.

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "formats/expect_error.hpp"
#include "formats/temp_dir.hpp"
#include "model/small_model.hpp"
#include "model/state_numbers.hpp"

namespace xlstm::testing {
namespace {

using formats::TempDir;

std::vector<float> logits_after(Model& model, State& state, std::int32_t id) {
  const std::span<const float> logits = model.eval(state, std::span(&id, 1));
  return {logits.begin(), logits.end()};
}

TEST(StateTest, BeginsEmptyAndResets) {
  Model model = small_model();
  State state = model.make_state();
  EXPECT_EQ(state.token_count(), 0);
  EXPECT_TRUE(state.last_logits().empty());
  EXPECT_EQ(state.bytes(), model.state_bytes());
  EXPECT_EQ(to_string(state.c(1)), "f32[3, 8, 16]");
  EXPECT_EQ(to_string(state.n(1)), "f64[3, 8]");
  EXPECT_EQ(to_string(state.m(1)), "f64[3]");
  EXPECT_THROW(state.c(2), Error);
  EXPECT_THROW(state.c(-1), Error);
  const std::vector<float> first = logits_after(model, state, 5);
  model.eval(state, some_ids(30));
  EXPECT_EQ(state.token_count(), 31);
  state.reset();
  EXPECT_EQ(state.token_count(), 0);
  EXPECT_TRUE(state.last_logits().empty());
  EXPECT_EQ(logits_after(model, state, 5), first);
}

TEST(StateTest, OnePromptForksIntoManyContinuations) {
  Model model = small_model();
  State prompt = model.make_state();
  model.eval(prompt, some_ids(40));
  const std::vector<double> before = outcome(prompt);
  for (std::int32_t id = 0; id < 8; ++id) {
    State fork = prompt.clone();
    EXPECT_EQ(outcome(fork), before);
    EXPECT_EQ(fork.token_count(), 40);
    const std::vector<float> forked = logits_after(model, fork, id);
    State alone = model.make_state();
    model.eval(alone, some_ids(40));
    EXPECT_EQ(logits_after(model, alone, id), forked);
  }
  EXPECT_EQ(outcome(prompt), before) << "a continuation changed the state it was forked from";
}

TEST(StateTest, SavedAndLoadedChangesNothing) {
  const TempDir dir;
  Model model = small_model();
  for (const std::size_t n : {0, 1, 23}) {
    State state = model.make_state();
    if (n > 0) model.eval(state, some_ids(n));
    state.save(dir / "state");
    State loaded = model.make_state();
    model.eval(loaded, some_ids(9, 3));
    loaded.load(dir / "state");
    EXPECT_EQ(loaded.token_count(), static_cast<std::int64_t>(n));
    EXPECT_EQ(outcome(loaded), outcome(state));
    EXPECT_EQ(logits_after(model, loaded, 4), logits_after(model, state, 4));
  }
}

TEST(StateTest, ALoadedStateSurvivesItsModel) {
  const TempDir dir;
  std::vector<float> expected;
  {
    Model model = small_model();
    State state = model.make_state();
    model.eval(state, some_ids(12));
    state.save(dir / "state");
    expected = logits_after(model, state, 1);
  }
  Model again = small_model();  // another process: the same weights have the same hash
  State state = again.make_state();
  state.load(dir / "state");
  EXPECT_EQ(logits_after(again, state, 1), expected);
}

TEST(StateTest, GoesFromModelToModelOfTheSameWeights) {
  Model a = small_model(), b = small_model();
  State state = a.make_state(), alone = a.make_state();
  for (int i = 0; i < 5; ++i) {
    a.eval(state, some_ids(1));
    EXPECT_NO_THROW(b.eval(state, some_ids(1)));
    a.eval(alone, some_ids(1));
    a.eval(alone, some_ids(1));
  }
  EXPECT_EQ(outcome(state), outcome(alone));
}

class StateFileTest : public ::testing::Test {
 protected:
  StateFileTest() {
    model_.eval(state_, some_ids(12));
    state_.save(dir_ / "state");
    std::ifstream in(dir_ / "state", std::ios::binary);
    good_.assign(std::istreambuf_iterator<char>(in), {});
  }
  // The state must refuse the file and stay as it is.
  void expect_refused(const std::string& content, std::string_view message) {
    dir_.write("bad", content);
    const std::vector<double> before = outcome(state_);
    expect_error(ErrorCode::invalid_file, {"bad", message}, [&] { state_.load(dir_ / "bad"); });
    EXPECT_EQ(outcome(state_), before);
    EXPECT_EQ(state_.token_count(), 12);
  }
  TempDir dir_;
  Model model_ = small_model();
  State state_ = model_.make_state();
  std::string good_;
};

TEST_F(StateFileTest, CutShort) {
  for (const std::size_t n : {std::size_t{0}, std::size_t{7}, std::size_t{55}})
    expect_refused(good_.substr(0, n), "at least 56 bytes");
  for (const std::size_t n : {std::size_t{56}, good_.size() / 2, good_.size() - 1})
    expect_refused(good_.substr(0, n), "bytes, found");
}

TEST_F(StateFileTest, TooLong) { expect_refused(good_ + "x", "bytes, found"); }

TEST_F(StateFileTest, AnotherFile) {
  expect_refused("{\"model_type\": \"xlstm\"}" + std::string(200, ' '), "something else");
}

TEST_F(StateFileTest, AnotherVersion) {
  std::string file = good_;
  file[8] = 2;
  expect_refused(file, "version 3, found version 2");
}

TEST_F(StateFileTest, EveryDamagedByte) {
  for (std::size_t i = 0; i < good_.size(); i += i < 100 ? 1 : 997) {
    std::string file = good_;
    file[i] = static_cast<char>(file[i] ^ 0x10);
    expect_refused(file, "expected");
  }
}

TEST_F(StateFileTest, AnotherModel) {
  Model other = Model::random(small_config(), DType::f32, 8);
  State foreign = other.make_state();
  expect_error(ErrorCode::invalid_file, {"state of model"}, [&] { foreign.load(dir_ / "state"); });
  EXPECT_THROW(other.eval(state_, some_ids(1)), Error);
}

TEST_F(StateFileTest, Missing) {
  expect_error(ErrorCode::not_found, {"nowhere"}, [&] { state_.load(dir_ / "nowhere"); });
}

}  // namespace
}  // namespace xlstm::testing
