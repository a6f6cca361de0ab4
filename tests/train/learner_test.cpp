// What holds for a learner whatever the numbers: states that go on to the bit, streams, bf16 copies
// and decay.

#include "train/learner.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <ostream>
#include <set>

#include "model/small_model.hpp"
#include "model/trainable.hpp"

namespace xlstm::train {
namespace {

using Ids = std::vector<std::int32_t>;
using Bytes = std::map<std::string, std::vector<std::byte>>;

constexpr std::int64_t kVocabulary = 50;

Config large_config() {
  Config config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 48;
  config.num_blocks = 2;
  config.num_heads = 2;
  return config;
}

Config stack_config() { return testing::small_stack_config(kVocabulary, 3); }

Config tied_config() {
  Config config = large_config();
  config.tie_word_embeddings = true;
  return config;
}

Learner make_learner(const Config& config, LearnerOptions options = {}, std::uint64_t seed = 4) {
  options.threads = 2;
  LoadOptions load;
  load.threads = 2;
  return {model::initial_model(config, seed, {}, load), options};
}

// A text that can be learned: each token follows from the one before.
Ids some_ids(std::int32_t count, std::int32_t first) {
  Ids ids;
  for (std::int32_t i = 0; i < count; ++i) ids.push_back((first + 7 * i) % kVocabulary);
  return ids;
}

// Appends the tokens [begin, end) of a text as one sequence with the next tokens as its targets.
void add(Examples& examples, const Ids& text, std::size_t begin, std::size_t end, int in = -1,
         int out = -1) {
  Ids targets;
  for (std::size_t i = begin + 1; i <= end; ++i) targets.push_back(i < text.size() ? text[i] : -1);
  examples.add(std::span(text).subspan(begin, end - begin), targets, in, out);
}

Examples rows_of(std::int64_t step, bool streams) {
  Examples examples;
  const auto at = static_cast<std::size_t>(step) * 12;
  for (int row = 0; row < 2; ++row) {
    const Ids text = some_ids(400, 11 * row);
    if (!streams) {
      add(examples, text, at, at + 12);
    } else if (row == 1 && step == 2) {  // a document ends inside of the row
      add(examples, text, at, at + 5, 1, -1);
      add(examples, text, at + 5, at + 12, -1, 1);
    } else {
      add(examples, text, at, at + 12, step == 0 ? -1 : row, row);
    }
  }
  return examples;
}

Bytes bytes_of(const Learner& learner) {
  Bytes bytes;
  for (const formats::NamedTensor& t : learner.state()) {
    const auto* data = static_cast<const std::byte*>(t.tensor.data);
    EXPECT_TRUE(bytes.emplace(t.name, std::vector(data, data + t.tensor.bytes())).second) << t.name;
  }
  return bytes;
}

void restore(Learner& learner, const Bytes& bytes) {
  for (const formats::NamedTensor& t : learner.state())
    std::memcpy(t.tensor.data, bytes.at(t.name).data(), bytes.at(t.name).size());
  learner.state_changed();
}

std::map<std::string, std::vector<float>> floats_of(const Learner& learner,
                                                    const std::string& prefix) {
  std::map<std::string, std::vector<float>> floats;
  for (const formats::NamedTensor& t : learner.state()) {
    if (!t.name.starts_with(prefix)) continue;
    EXPECT_EQ(t.tensor.dtype, DType::f32) << t.name;
    const float* data = t.tensor.as<float>();
    floats[t.name.substr(prefix.size())] = {data, data + t.tensor.count()};
  }
  return floats;
}

double train(Learner& learner, std::int64_t step, const Examples& examples, double lr = 1e-2) {
  learner.zero_gradients();
  const double loss = learner.forward_backward(examples, static_cast<std::uint64_t>(step));
  AdamW adamw;
  adamw.step = step + 1;
  adamw.lr = lr;
  learner.step(adamw, 1.0 / static_cast<double>(examples.tokens()));
  return loss;
}

struct LearnerCase {
  std::string name;
  Config config;
  LearnerOptions options;
};

void PrintTo(const LearnerCase& c, std::ostream* out) { *out << c.name; }

std::vector<LearnerCase> learner_cases() {
  std::vector<LearnerCase> cases;
  for (const auto& [name, config] :
       {std::pair{"large", large_config()}, {"tied", tied_config()}, {"stack", stack_config()}})
    for (const DType compute : {DType::f32, DType::bf16}) {
      LearnerOptions options;
      options.compute = compute;
      options.streams = 2;
      options.dropout = 0.1;
      cases.push_back(
          {std::string(name) + (compute == DType::f32 ? "" : "_bf16"), config, options});
    }
  return cases;
}

class LearnerTest : public ::testing::TestWithParam<LearnerCase> {};

INSTANTIATE_TEST_SUITE_P(Family, LearnerTest, ::testing::ValuesIn(learner_cases()),
                         [](const auto& c) { return c.param.name; });

// --- all kinds -----------------------------------------------------------------------------------

TEST_P(LearnerTest, Learns) {
  LearnerOptions options = GetParam().options;
  options.dropout = 0;
  Learner learner = make_learner(GetParam().config, options);
  Examples examples;
  add(examples, some_ids(41, 0), 0, 40);
  const double before = learner.evaluate(examples).loss / 40;
  EXPECT_NEAR(before, std::log(kVocabulary), 0.7);
  double last = 0;
  for (std::int64_t step = 0; step < 60; ++step) last = train(learner, step, examples) / 40;
  EXPECT_LT(last, 0.5);
  EXPECT_EQ(learner.evaluate(examples).correct, 40);
}

TEST_P(LearnerTest, RestoredStateGoesOnToTheBit) {
  Learner whole = make_learner(GetParam().config, GetParam().options);
  for (std::int64_t step = 0; step < 4; ++step) train(whole, step, rows_of(step, true));
  const Bytes saved = bytes_of(whole);
  // Of another seed and with steps of its own behind it.
  Learner resumed = make_learner(GetParam().config, GetParam().options, 99);
  train(resumed, 0, rows_of(1, true));
  const Bytes unlike = bytes_of(resumed);
  ASSERT_EQ(unlike.size(), saved.size());
  for (const auto& [name, bytes] : saved)
    if (name.starts_with("weight.") && name.find("proj") != std::string::npos) {
      EXPECT_NE(unlike.at(name), bytes) << name;
    }
  EXPECT_NE(unlike.at("streams"), saved.at("streams"));
  restore(resumed, saved);
  EXPECT_EQ(resumed.evaluate(rows_of(7, false)).loss, whole.evaluate(rows_of(7, false)).loss);
  for (std::int64_t step = 4; step < 8; ++step)
    EXPECT_EQ(train(resumed, step, rows_of(step, true)), train(whole, step, rows_of(step, true)));
  EXPECT_EQ(bytes_of(resumed), bytes_of(whole));
  EXPECT_NE(bytes_of(whole), saved);
}

TEST_P(LearnerTest, StateHoldsEveryParameterOnce) {
  Learner learner = make_learner(GetParam().config, GetParam().options);
  std::set<std::string> expected = {"streams"};
  for (const ParameterInfo& p : learner.model().parameters())
    for (const char* prefix : {"weight.", "m.", "v."}) expected.insert(prefix + p.name);
  std::set<std::string> names;
  for (const auto& [name, bytes] : bytes_of(learner)) names.insert(name);
  EXPECT_EQ(names, expected);
}

TEST_P(LearnerTest, GradientsAddUpUntilTheyAreZeroed) {
  Learner learner = make_learner(GetParam().config, GetParam().options);
  learner.zero_gradients();
  EXPECT_EQ(learner.gradient_norm(), 0);
  learner.forward_backward(rows_of(0, false), 1);
  double squares = 0;
  for (const float g : learner.gradients()) squares += static_cast<double>(g) * g;
  const double norm = learner.gradient_norm();
  EXPECT_GT(norm, 0.1);
  EXPECT_NEAR(norm, std::sqrt(squares), 1e-5 * norm);
  learner.forward_backward(rows_of(0, false), 1);
  EXPECT_NEAR(learner.gradient_norm(), 2 * norm, 1e-4 * norm);
  learner.zero_gradients();
  EXPECT_EQ(learner.gradient_norm(), 0);
  EXPECT_EQ(learner.forward_backward(Examples(), 1), 0);
  EXPECT_EQ(learner.gradient_norm(), 0);
}

// Without gradients a step is decay alone.
TEST_P(LearnerTest, DecayIsOfTheParametersThatDecay) {
  const bool stack = GetParam().config.block_stack.has_value();
  Learner learner = make_learner(GetParam().config, GetParam().options);
  // Weights that begin at 0 would not show decay.
  for (const formats::NamedTensor& t : learner.state())
    if (t.name.starts_with("weight."))
      for (std::int64_t i = 0; i < t.tensor.count(); ++i)
        if (t.tensor.as<float>()[i] == 0) t.tensor.as<float>()[i] = 0.5F;
  learner.state_changed();
  const auto before = floats_of(learner, "weight.");
  learner.zero_gradients();
  AdamW adamw;
  adamw.lr = 0.5;
  adamw.weight_decay = 0.25;
  learner.step(adamw, 1);
  int decayed = 0;
  for (const auto& [name, values] : floats_of(learner, "weight.")) {
    // Specification B.6, and the matrices of the large family.
    const bool decays = name.find("weight") != std::string::npos &&
                        name.find("norm") == std::string::npos &&
                        (!stack || name.find("embedding") == std::string::npos);
    decayed += decays ? 1 : 0;
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_FLOAT_EQ(values[i], before.at(name)[i] * (decays ? 0.875F : 1.0F)) << name;
  }
  EXPECT_GT(decayed, 10);
}

TEST_P(LearnerTest, EvaluationChangesNothing) {
  Learner learner = make_learner(GetParam().config, GetParam().options);
  train(learner, 0, rows_of(0, true));
  const Bytes before = bytes_of(learner);
  learner.zero_gradients();
  const auto score = learner.evaluate(rows_of(1, true));
  // Dropout and the states of streams have no part in it.
  EXPECT_EQ(learner.evaluate(rows_of(1, false)).loss, score.loss);
  EXPECT_EQ(learner.activation_bytes(rows_of(1, true)),
            learner.activation_bytes(rows_of(1, false)));
  EXPECT_EQ(bytes_of(learner), before);
  EXPECT_EQ(learner.gradient_norm(), 0);
}

TEST_P(LearnerTest, NumbersThatAreNotFiniteAreFound) {
  LearnerOptions options = GetParam().options;
  options.streams = 0;
  Learner learner = make_learner(GetParam().config, options);
  const Examples examples = rows_of(0, false);
  learner.zero_gradients();
  learner.forward_backward(examples, 1);
  EXPECT_EQ(learner.find_nonfinite(examples), "");
  EXPECT_EQ(learner.nonfinite_gradient(), "");
  const std::string name = learner.model().parameters()[3].name;
  for (const formats::NamedTensor& t : learner.state())
    if (t.name == "weight." + name) t.tensor.as<float>()[0] = NAN;
  learner.state_changed();
  EXPECT_NE(learner.find_nonfinite(examples).find("block 0"), std::string::npos) << name;
  EXPECT_EQ(learner.nonfinite_gradient(), "");
  learner.gradients().front() = INFINITY;
  EXPECT_EQ(learner.nonfinite_gradient(), learner.model().parameters()[0].name);
}

// --- streams -------------------------------------------------------------------------------------

std::vector<std::byte> stream_of(const Learner& learner, std::size_t index, std::size_t streams) {
  const auto bytes = bytes_of(learner).at("streams");
  const auto size = static_cast<std::ptrdiff_t>(bytes.size() / streams);
  const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(index) * size;
  return {begin, begin + size};
}

double relative(double a, double b) { return std::abs(a - b) / std::abs(b); }

TEST(LearnerStreams, CarryTheState) {
  for (const Config& config : {large_config(), stack_config()}) {
    SCOPED_TRACE(config.num_blocks);
    LearnerOptions options;
    options.streams = 2;
    Learner learner = make_learner(config, options);
    const Ids text = some_ids(31, 3);
    Examples whole, first, second, anew;
    add(whole, text, 0, 30);
    add(first, text, 0, 13, -1, 1);
    add(second, text, 13, 30, 1, 1);
    add(anew, text, 13, 30);
    const double all = learner.evaluate(whole).loss;
    const double begin = learner.forward_backward(first, 0);
    EXPECT_NE(stream_of(learner, 1, 2), stream_of(learner, 0, 2));
    const auto other = stream_of(learner, 0, 2);
    EXPECT_EQ(other, std::vector<std::byte>(other.size(), std::byte{}));
    const double end = learner.forward_backward(second, 0);
    EXPECT_LT(relative(begin + end, all), 1e-5);
    EXPECT_GT(relative(begin + learner.forward_backward(anew, 0), all), 1e-4);
  }
}

// A row in which one document ends, a second is whole, and a third begins.
TEST(LearnerStreams, ABorderInsideARowEndsOneDocumentAndBeginsAnother) {
  for (const Config& config : {large_config(), stack_config()}) {
    SCOPED_TRACE(config.num_blocks);
    LearnerOptions options;
    options.streams = 2;
    const Ids a = some_ids(31, 3), b = some_ids(8, 20), c = some_ids(40, 31);
    Examples begin, tail, row, next, alone, whole;
    add(begin, a, 0, 13, -1, 0);
    add(tail, a, 13, 20, 0, 0);
    add(row, a, 13, 20, 0, -1);
    add(row, b, 0, 8);
    add(row, c, 0, 9, -1, 0);
    add(next, c, 9, 21, 0, 0);
    add(alone, c, 0, 9, -1, 0);
    add(whole, c, 0, 21);

    Learner apart = make_learner(config, options), together = make_learner(config, options);
    together.forward_backward(begin, 0);
    const double found = together.forward_backward(row, 0);
    apart.forward_backward(begin, 0);
    const double of_tail = apart.forward_backward(tail, 0);
    Examples middle;
    add(middle, b, 0, 8);
    const double expected =
        of_tail + apart.evaluate(middle).loss + apart.forward_backward(alone, 0);
    EXPECT_LT(relative(found, expected), 1e-5);
    EXPECT_EQ(stream_of(together, 1, 2), stream_of(apart, 1, 2));
    // What the stream holds now is the third document's alone.
    const double on = together.forward_backward(next, 0);
    EXPECT_LT(relative(on, apart.forward_backward(next, 0)), 1e-5);
    EXPECT_LT(relative(apart.evaluate(alone).loss + on, apart.evaluate(whole).loss), 1e-5);
  }
}

TEST(LearnerStreams, AnEndThatIsDroppedLeavesTheStream) {
  LearnerOptions options;
  options.streams = 1;
  Learner learner = make_learner(stack_config(), options);
  const Ids text = some_ids(31, 3);
  Examples begin, dropped;
  add(begin, text, 0, 13, -1, 0);
  add(dropped, text, 13, 20, 0, -1);
  learner.forward_backward(begin, 0);
  const auto before = stream_of(learner, 0, 1);
  const double loss = learner.forward_backward(dropped, 0);
  EXPECT_EQ(stream_of(learner, 0, 1), before);
  EXPECT_EQ(learner.forward_backward(dropped, 0), loss);
}

TEST(LearnerStreams, ASequenceMayLeaveItsEndToAnotherStream) {
  LearnerOptions options;
  options.streams = 2;
  Learner straight = make_learner(stack_config(), options),
          crossed = make_learner(stack_config(), options);
  const Ids a = some_ids(31, 3), b = some_ids(31, 22);
  Examples begin, same, other;
  add(begin, a, 0, 13, -1, 0);
  add(begin, b, 0, 13, -1, 1);
  add(same, a, 13, 20, 0, 0);
  add(same, b, 13, 20, 1, 1);
  add(other, a, 13, 20, 0, 1);
  add(other, b, 13, 20, 1, 0);
  for (Learner* learner : {&straight, &crossed}) learner->forward_backward(begin, 0);
  EXPECT_EQ(straight.forward_backward(same, 0), crossed.forward_backward(other, 0));
  EXPECT_EQ(stream_of(straight, 0, 2), stream_of(crossed, 1, 2));
  EXPECT_EQ(stream_of(straight, 1, 2), stream_of(crossed, 0, 2));
}

// --- compute types and options -------------------------------------------------------------------

TEST(LearnerBf16, MastersAreFloatsAndTheirCopiesFollow) {
  for (const Config& config : {large_config(), tied_config(), stack_config()}) {
    SCOPED_TRACE(config.num_blocks);
    LearnerOptions exact, rounded;
    exact.dropout = rounded.dropout = 0;
    rounded.compute = DType::bf16;
    Learner f32 = make_learner(config, exact), bf16 = make_learner(config, rounded);
    const Examples examples = rows_of(0, false);
    EXPECT_NE(bf16.evaluate(examples).loss, f32.evaluate(examples).loss);
    EXPECT_LT(relative(bf16.evaluate(examples).loss, f32.evaluate(examples).loss), 5e-3);

    // Steps too small for a bf16 number add up in the masters.
    const auto before = floats_of(bf16, "weight.");
    const double first = bf16.evaluate(examples).loss;
    for (std::int64_t step = 0; step < 20; ++step) train(bf16, step, examples, 1e-6);
    const auto after = floats_of(bf16, "weight.");
    std::int64_t moved = 0, finer = 0, all = 0;
    for (const auto& [name, values] : after)
      for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &values[i], sizeof(bits));
        ++all;
        moved += values[i] != before.at(name)[i] ? 1 : 0;
        finer += (bits & 0xffffU) != 0 ? 1 : 0;
      }
    EXPECT_GT(moved, all * 8 / 10);
    EXPECT_GT(finer, all * 8 / 10);

    // What the passes read is what the masters round to: a learner that rounds these masters
    // afresh has the same losses.
    for (std::int64_t step = 20; step < 30; ++step) train(bf16, step, examples, 1e-2);
    Learner fresh = make_learner(config, rounded, 8);
    restore(fresh, bytes_of(bf16));
    EXPECT_EQ(fresh.evaluate(examples).loss, bf16.evaluate(examples).loss);
    EXPECT_LT(bf16.evaluate(examples).loss, 0.9 * first);
  }
}

TEST(LearnerOptionsTest, DropoutIsOfTheKey) {
  for (const Config& config : {large_config(), stack_config()}) {
    LearnerOptions options;
    options.dropout = 0.3;
    Learner learner = make_learner(config, options);
    const Examples examples = rows_of(0, false);
    const double loss = learner.forward_backward(examples, 1);
    EXPECT_EQ(learner.forward_backward(examples, 1), loss);
    EXPECT_NE(learner.forward_backward(examples, 2), loss);
    EXPECT_NE(learner.evaluate(examples).loss, loss);
    options.dropout = 0;
    Learner sober = make_learner(config, options);
    EXPECT_EQ(sober.forward_backward(examples, 1), sober.forward_backward(examples, 2));
  }
}

TEST(LearnerOptionsTest, GradientsAreScaledByTheStep) {
  Learner once = make_learner(large_config()), twice = make_learner(large_config());
  const Examples examples = rows_of(0, false);
  AdamW adamw;
  adamw.eps = 1;  // else the size of a gradient would not matter
  for (Learner* learner : {&once, &twice}) {
    learner->zero_gradients();
    learner->forward_backward(examples, 1);
  }
  for (float& g : twice.gradients()) g *= 2;
  once.step(adamw, 0.25);
  twice.step(adamw, 0.125);
  EXPECT_EQ(bytes_of(once), bytes_of(twice));
}

TEST(LearnerOptionsTest, ComputingBlocksAgainNeedsLessMemory) {
  LearnerOptions options;
  Learner keeps = make_learner(large_config(), options);
  options.recompute = model::Recompute::blocks;
  Learner again = make_learner(large_config(), options);
  const Examples examples = rows_of(0, false);
  EXPECT_LT(again.activation_bytes(examples), keeps.activation_bytes(examples));
  EXPECT_EQ(again.forward_backward(examples, 1), keeps.forward_backward(examples, 1));
  options.compute = DType::bf16;
  options.streams = 3;
  EXPECT_GT(make_learner(large_config(), options).parameter_bytes(), keeps.parameter_bytes());
}

}  // namespace
}  // namespace xlstm::train
