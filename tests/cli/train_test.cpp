// `xlstm train` as its users meet it: runs, resumed runs, killed runs, and what is refused.

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "cli/program.hpp"
#include "train/checkpoint.hpp"

namespace xlstm::test {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

constexpr const char* kConfig = R"([model]
hidden_size = 32
num_blocks = 2
num_heads = 2
[data]
seq_len = 32
batch = 8
validation_fraction = 0.1
[optimizer]
warmup_steps = 2
[run]
steps = 24
threads = 1
validate_every = 12
validation_windows = 7
checkpoint_every = 6
)";

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

class TrainTest : public ::testing::Test {
 protected:
  Strings command(const std::string& out, const Strings& more = {}) const {
    Strings arguments = {"train",        config_,           "--data.train", text_,
                         "--data.cache", folder_ / "cache", "--out",        folder_ / out};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Outcome train(const std::string& out, const Strings& more = {}) const {
    return run(command(out, more));
  }
  std::string weights(const std::string& out) const {
    return read(folder_.path() / out / "model" / "model.safetensors");
  }
  // "step" of every line of a kind, and its loss.
  std::vector<std::pair<int, double>> losses(const std::string& out,
                                             const std::string& kind = "train") const {
    std::ifstream file(folder_.path() / out / "metrics.jsonl");
    std::vector<std::pair<int, double>> list;
    for (std::string line; std::getline(file, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.at("kind") == kind) list.emplace_back(json.at("step"), json.at("loss"));
    }
    return list;
  }

  TemporaryFolder folder_;
  std::string config_ = folder_.write("config.toml", kConfig);
  std::string text_ = folder_.write("text.txt", training_text());
};

TEST_F(TrainTest, ARunLeavesAModelThatGenerates) {
  const Outcome outcome = train("run", {"--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const nlohmann::json result = outcome.json();
  EXPECT_EQ(result.at("step"), 24);
  EXPECT_EQ(result.at("tokens"), 24 * 8 * 32);
  EXPECT_FALSE(result.at("interrupted"));
  EXPECT_NE(outcome.err.find("step 24/24  loss "), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("% of peak"), std::string::npos);
  EXPECT_NE(outcome.err.find("validation loss"), std::string::npos);

  const auto curve = losses("run");
  ASSERT_EQ(curve.size(), 24U);
  EXPECT_GT(curve.front().second, 5.0);  // of 320 ids, nearly evenly
  EXPECT_LT(curve.back().second, curve.front().second - 1);
  ASSERT_EQ(losses("run", "validation").size(), 2U);
  EXPECT_NEAR(losses("run", "validation").back().second, result.at("validation").at("loss"), 1e-12);
  for (const char* name : {"config.toml", "model/config.json", "model/tokenizer.json",
                           "best/model.safetensors", "checkpoints/step-000000024"})
    EXPECT_TRUE(fs::exists(folder_.path() / "run" / name)) << name;
  EXPECT_EQ(train::list_checkpoints(folder_.path() / "run/checkpoints"),
            (std::vector<std::int64_t>{18, 24}));  // the last two are kept

  const Outcome text = run({"generate", "-m", folder_ / "run/model", "-p", "the sun", "-n", "8",
                            "--temp", "0", "--json"});
  ASSERT_EQ(text.status, 0) << text.err;
  EXPECT_EQ(text.json().at("ids").size(), 8U);
  // The resolved configuration is one that trains.
  const Outcome again = run({"train", folder_ / "run/config.toml", "--out", folder_ / "again"});
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(weights("again"), weights("run"));
}

TEST_F(TrainTest, AResumedRunGivesTheSameBits) {
  for (const Strings& variant :
       {Strings{}, Strings{"--compute", "bf16", "--dropout", "0.1", "--accumulation", "2"},
        Strings{"--data.mode", "stream", "--family", "v1", "--slstm_at", "1"}}) {
    const std::string name = variant.empty() ? "f32" : variant[1];
    SCOPED_TRACE(name);
    const std::string whole = "whole_" + name;
    const std::string parts = "parts_" + name;
    ASSERT_EQ(train(whole, variant).status, 0);
    Strings first = variant, second = variant;
    first.insert(first.end(), {"--stop_at", "9"});
    second.push_back("--resume");
    ASSERT_EQ(train(parts, first).status, 0);
    const Outcome outcome = train(parts, second);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("resuming after step 9"), std::string::npos) << outcome.err;
    EXPECT_EQ(weights(parts), weights(whole));
    EXPECT_EQ(losses(parts), losses(whole));
  }
}

TEST_F(TrainTest, AKilledRunIsResumedToTheSameBits) {
  const Strings more = {"--steps", "200", "--checkpoint_every", "2", "--validate_every", "0"};
  ASSERT_EQ(train("whole", more).status, 0);
  Program program(command("killed", more));
  // In the middle of something, more than once.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (train::list_checkpoints(folder_.path() / "killed/checkpoints").empty() &&
         std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  program.signal(SIGKILL);
  EXPECT_EQ(program.wait().status, -SIGKILL);
  Strings resume = more;
  resume.push_back("--resume");
  const Outcome outcome = train("killed", resume);
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(weights("killed"), weights("whole"));
  EXPECT_EQ(losses("killed"), losses("whole"));
}

TEST_F(TrainTest, CtrlCLeavesACheckpoint) {
  Program program(command("run", {"--steps", "100000", "--checkpoint_every", "0"}));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!fs::exists(folder_.path() / "run/metrics.jsonl") &&
         std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  program.signal(SIGINT);
  const Outcome outcome = program.wait();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("--resume goes on"), std::string::npos) << outcome.err;
  EXPECT_EQ(train::list_checkpoints(folder_.path() / "run/checkpoints").size(), 1U);
}

TEST_F(TrainTest, ANumberThatIsNotFiniteNamesTheBlock) {
  const Outcome outcome = train("run", {"--lr", "100", "--clip", "0", "--warmup_steps", "0",
                                        "--gate_soft_cap", "0", "--output_logit_soft_cap", "0"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("not finite"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("step "), std::string::npos);
  EXPECT_FALSE(fs::exists(folder_.path() / "run/model"));
}

TEST_F(TrainTest, WhatIsWrongIsToldBeforeAnyWork) {
  const auto refused = [&](int status, const Strings& more, const std::string& part) {
    const Outcome outcome = train("refused", more);
    EXPECT_EQ(outcome.status, status) << part;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
    EXPECT_FALSE(fs::exists(folder_.path() / "refused/checkpoints")) << part;
  };
  refused(2, {"--learning_rate", "1"}, "unknown key 'learning_rate'");
  refused(2, {"--hiden_size", "1"}, "did you mean model.hidden_size?");
  refused(2, {"--lr", "fast"}, "optimizer.lr: expected a number");
  refused(2, {"--dropout", "1.5"}, "model.dropout");
  refused(2, {"--lr"}, "optimizer.lr: expected a number");
  refused(1, {"--num_heads", "5"}, "num_heads");
  refused(1, {"--data.train", folder_ / "nothing.txt"}, "nothing.txt");
  refused(1, {"--data.train", folder_.write("empty.txt", "")}, "empty.txt");
  refused(1, {"--data.train", folder_.write("latin1.txt", "caf\xE9 au lait")}, "byte 3");
  refused(1, {"--vocab_size", "100"}, "model.vocab_size: expected at least the 258 ids");
  refused(1, {"--accumulation", "3"}, "data.batch: expected a multiple of 3");
  refused(1, {"--seq_len", "1000000"}, "data.seq_len");
  refused(1, {"--init_from", folder_ / "nowhere"}, "nowhere");
  refused(1, {"--task.name", "parity"}, "either data.train (files) or task.name");

  const std::string bad = folder_.write("bad.toml", "[optimizer]\nlr = 1e-3\nwarmup = 3\n");
  const Outcome outcome = run({"train", bad});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("bad.toml:3: unknown key 'optimizer.warmup'"), std::string::npos)
      << outcome.err;
  EXPECT_EQ(run({"train"}).status, 2);
  EXPECT_EQ(run({"train", "--help"}).status, 0);
}

TEST_F(TrainTest, ARunIsNeitherOverwrittenNorResumedAsAnother) {
  ASSERT_EQ(train("run", {"--steps", "6"}).status, 0);
  const std::string before = weights("run");
  Outcome outcome = train("run", {"--steps", "6"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("holds a run"), std::string::npos) << outcome.err;
  outcome = train("run", {"--steps", "6", "--resume", "--lr", "5"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("optimizer.lr"), std::string::npos) << outcome.err;
  const std::string other = folder_.write("other.txt", training_text() + "more");
  outcome = train("run", {"--steps", "6", "--resume", "--data.train", other});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("data.train"), std::string::npos) << outcome.err;
  folder_.write("text.txt", training_text() + "more");  // the same name, another text
  outcome = train("run", {"--steps", "6", "--resume"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("other data"), std::string::npos) << outcome.err;
  const fs::path state = folder_.path() / "run/checkpoints/step-000000006/state.safetensors";
  folder_.write("text.txt", training_text());
  fs::resize_file(state, fs::file_size(state) / 2);
  outcome = train("run", {"--steps", "6", "--resume"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("state.safetensors"), std::string::npos) << outcome.err;
  EXPECT_EQ(weights("run"), before);
}

TEST_F(TrainTest, PlanSaysWhatARunNeeds) {
  const Outcome outcome = train("planned", {"--plan", "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.json().at("tokens_per_step"), 8 * 32);
  EXPECT_GT(outcome.json().at("activation_bytes"), 0);
  EXPECT_FALSE(fs::exists(folder_.path() / "planned"));
}

// `info --train` knows from the shape alone what a run takes.
TEST_F(TrainTest, InfoComputesWhatARunNeeds) {
  for (const Strings& family : {Strings{}, Strings{"--family", "v1", "--slstm_at", "1"}}) {
    const std::string out = family.empty() ? "large" : "v1";
    Strings more = family, plan = family;
    more.insert(more.end(), {"--steps", "2"});
    plan.insert(plan.end(), {"--plan", "--json"});
    ASSERT_EQ(train(out, more).status, 0);
    const auto planned = train(out + "_plan", plan).json();
    const Outcome info = run({"info", "-m", folder_ / (out + "/model"), "--train", "--rows", "8",
                              "--seq-len", "32", "--json"});
    ASSERT_EQ(info.status, 0) << info.err;
    const auto shape = info.json();
    EXPECT_EQ(shape.at("parameters"), planned.at("parameters"));
    EXPECT_EQ(shape.at("flops_per_token"), planned.at("flops_per_token"));
    const std::int64_t activations = shape["compute"]["f32"]["none"]["activations_bytes"];
    EXPECT_NEAR(activations, planned.at("activation_bytes"), 0.02 * activations);
    EXPECT_LT(shape["compute"]["f32"]["norms"]["activations_bytes"], activations);
    EXPECT_LT(shape["compute"]["f32"]["blocks"]["activations_bytes"],
              shape["compute"]["f32"]["norms"]["activations_bytes"]);
  }
  EXPECT_EQ(run({"info", "--config", "x.json"}).status, 2);
}

// bf16 rounds the inputs of products: the curve of the losses stays where it is.
TEST_F(TrainTest, LossesInBf16StayWithinOnePercent) {
  const Strings more = {"--steps", "200", "--validate_every", "0", "--checkpoint_every", "0"};
  Strings rounded = more;
  rounded.insert(rounded.end(), {"--compute", "bf16"});
  ASSERT_EQ(train("f32", more).status, 0);
  ASSERT_EQ(train("bf16", rounded).status, 0);
  const auto exact = losses("f32"), near = losses("bf16");
  ASSERT_EQ(exact.size(), 200U);
  ASSERT_EQ(near.size(), 200U);
  for (std::size_t i = 0; i < 200; ++i)
    EXPECT_NEAR(near[i].second, exact[i].second, 0.01 * exact[i].second) << i;
  EXPECT_NE(near, exact);
}

// A smoke of every kind of data: short runs that learn something.

TEST_F(TrainTest, FirstXlstmLearnsAndIsReadBack) {
  const Outcome outcome =
      train("v1", {"--family", "v1", "--slstm_at", "1", "--steps", "60", "--lr", "3e-3", "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_LT(outcome.json().at("validation").at("loss"), 2.2);
  const Outcome eval = run({"eval", "-m", folder_ / "v1/model", "-f", text_, "--window", "32",
                            "--windows", "20", "--no-bos", "--json"});
  ASSERT_EQ(eval.status, 0) << eval.err;
  EXPECT_LT(eval.json().at("nll"), 2.2);
}

// Scaled accuracy after 400 steps of a small model of the first xLSTM.
double learnt(const TemporaryFolder& folder, const std::string& task, const std::string& keys) {
  Strings arguments = {"train", "--json", "--out", folder / task, "--task.name", task};
  std::istringstream words(
      keys +
      " --task.min_length 1 --validation_min_length 1 --validation_count 200 --family v1"
      " --hidden_size 32 --num_heads 1 --batch 64 --steps 400 --lr 1e-2 --warmup_steps 20"
      " --validate_every 0 --threads 1 --log_every 100");
  for (std::string word; words >> word;) arguments.push_back(word);
  const Outcome outcome = run(arguments);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome.status == 0 ? outcome.json().at("validation").at("scaled_accuracy").get<double>()
                             : -1.0;
}

TEST(TrainTasks, ParityOfShortInputsIsLearnt) {
  EXPECT_GT(learnt(TemporaryFolder(), "parity",
                   "--task.max_length 5 --validation_max_length 8 --num_blocks 1 --slstm_at 0"
                   " --slstm_conv1d_kernel_size 0 --recurrent_weight_init standard"),
            0.9);
}

TEST(TrainTasks, AssociativeRecallIsLearnt) {
  EXPECT_GT(learnt(TemporaryFolder(), "associative_recall",
                   "--task.max_length 16 --validation_max_length 16 --pairs 2 --symbols 8"
                   " --num_blocks 2"),
            0.8);
}

}  // namespace
}  // namespace xlstm::test
