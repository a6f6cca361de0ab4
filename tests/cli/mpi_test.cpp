// Training by several processes, as `mpirun` starts them.

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <thread>

#include "cli/program.hpp"
#include "train/checkpoint.hpp"
#include "train/communicator.hpp"

#ifndef XLSTM_MPIRUN_PATH
#define XLSTM_MPIRUN_PATH ""
#endif

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
[run]
steps = 100
threads = 1
validate_every = 50
validation_windows = 7
checkpoint_every = 25
keep_best = false
tensorboard = false
)";

// Options that let mpirun work in a container and on fewer cores than processes.
Strings mpirun(int processes, const Strings& command) {
  Strings arguments = {"--oversubscribe", "--bind-to", "none", "-n", std::to_string(processes)};
  arguments.insert(arguments.end(), command.begin(), command.end());
  return arguments;
}
const Strings kEnvironment = {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                              "OMP_WAIT_POLICY=passive", "GTEST_TOTAL_SHARDS=1",
                              "GTEST_SHARD_INDEX=0"};

class SeveralProcesses : public testing::Test {
 protected:
  void SetUp() override {
    if (*XLSTM_MPIRUN_PATH == '\0' || !fs::exists(XLSTM_MPIRUN_PATH))
      GTEST_SKIP() << "no mpirun: install openmpi-bin and libopenmpi-dev, and configure again";
    config_ = folder_.write("config.toml", kConfig);
    text_ = folder_.write("text.txt", training_text());
  }
  Strings train(const std::string& out, const Strings& more) const {
    Strings arguments = {"train",        config_,           "--data.train", text_,
                         "--data.cache", folder_ / "cache", "--out",        folder_ / out};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Strings train_by(int processes, const std::string& out, const Strings& more) const {
    Strings command = train(out, more);
    command.insert(command.begin(), XLSTM_CLI_PATH);
    return mpirun(processes, command);
  }
  static Outcome mpirun_to_end(const Strings& arguments) {
    return Program(arguments, {}, kEnvironment, false, XLSTM_MPIRUN_PATH).wait();
  }
  // (kind, step, loss) of metrics.jsonl.
  std::vector<nlohmann::json> metrics(const std::string& out) const {
    std::ifstream file(folder_ / out + "/metrics.jsonl");
    std::vector<nlohmann::json> list;
    for (std::string line; std::getline(file, line);) list.push_back(nlohmann::json::parse(line));
    return list;
  }
  void expect_same_losses(const std::string& a, const std::string& b, std::size_t count) const {
    const auto x = metrics(a), y = metrics(b);
    ASSERT_EQ(x.size(), count);
    ASSERT_EQ(y.size(), count);
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(x[i]["step"], y[i]["step"]);
      EXPECT_EQ(x[i]["kind"], y[i]["kind"]);
      const double loss = x[i]["loss"];
      EXPECT_NEAR(loss, y[i]["loss"].get<double>(), 1e-5 * loss) << x[i] << "\n" << y[i];
    }
  }
  fs::path checkpoints(const std::string& out) const { return folder_ / out + "/checkpoints"; }
  // Waits until the run has written one.
  void wait_for_checkpoint(const std::string& out) const {
    for (int i = 0; i < 600 && train::list_checkpoints(checkpoints(out)).empty(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ASSERT_FALSE(train::list_checkpoints(checkpoints(out)).empty());
  }
  // One process goes on where several stopped.
  void expect_resumes(const std::string& out, std::int64_t steps) const {
    const std::int64_t last = train::list_checkpoints(checkpoints(out)).back();
    const Outcome resumed =
        run(train(out, {"--steps", std::to_string(steps), "--validate_every", "0", "--resume",
                        "--stop_at", std::to_string(last + 3), "--json"}));
    EXPECT_EQ(resumed.status, 0) << resumed.err;
    EXPECT_EQ(resumed.json()["step"], last + 3);
  }

  TemporaryFolder folder_;
  std::string config_, text_;
};

int occurrences(const std::string& text, const std::string& part) {
  int count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size())
    ++count;
  return count;
}

// A child of a process; 0 if there is none.
pid_t child_of(pid_t parent) {
  for (const auto& entry : fs::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "stat");
    std::string line;
    if (!std::getline(file, line)) continue;
    pid_t ppid = 0;
    char state = 0;  // after the name, which may hold anything
    if (std::sscanf(line.c_str() + line.rfind(')') + 1, " %c %d", &state, &ppid) == 2 &&
        ppid == parent)
      return static_cast<pid_t>(std::stol(entry.path().filename().string()));
  }
  return 0;
}

TEST_F(SeveralProcesses, SumAndShareAsOneTest) {
  const Outcome outcome =
      mpirun_to_end(mpirun(3, {fs::read_symlink("/proc/self/exe").string(),
                               "--gtest_filter=Communicator.*", "--gtest_color=no"}));
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  EXPECT_EQ(occurrences(outcome.out, "[  PASSED  ] 3 tests"), 3) << outcome.out;
}

// The weights of the processes are compared, bit by bit, before each checkpoint.
TEST_F(SeveralProcesses, TrainLikeOne) {
  const Outcome one = run(train("one", {"--json"}));
  ASSERT_EQ(one.status, 0) << one.err;
  const Outcome two = mpirun_to_end(train_by(2, "two", {"--json"}));
  ASSERT_EQ(two.status, 0) << two.err;
  expect_same_losses("one", "two", 102);
  EXPECT_EQ(two.json()["tokens"], one.json()["tokens"]);
  EXPECT_EQ(occurrences(two.err, "step 100/100"), 1) << two.err;
  EXPECT_NE(two.err.find("2 processes, 1 thread in each"), std::string::npos) << two.err;
}

// A checkpoint holds the states of every process's streams.
TEST_F(SeveralProcesses, StreamsGoOnInOneProcess) {
  const Strings stream = {"--mode", "stream", "--steps", "16", "--validation_fraction", "0", "-q"};
  const auto with = [&](Strings more) {
    more.insert(more.begin(), stream.begin(), stream.end());
    return more;
  };
  ASSERT_EQ(run(train("one", stream)).status, 0);
  const Outcome two = mpirun_to_end(train_by(2, "two", with({"--stop_at", "8"})));
  ASSERT_EQ(two.status, 0) << two.err;
  ASSERT_EQ(two.err, "");
  const Outcome resumed = run(train("two", with({"--resume"})));
  ASSERT_EQ(resumed.status, 0) << resumed.err;
  expect_same_losses("one", "two", 16);
}

TEST_F(SeveralProcesses, AKilledProcessEndsTheRun) {
  Program program(train_by(2, "run", {"--steps", "100000", "--validate_every", "0"}), {},
                  kEnvironment, false, XLSTM_MPIRUN_PATH);
  wait_for_checkpoint("run");
  const pid_t victim = child_of(program.pid());
  ASSERT_GT(victim, 0);
  kill(victim, SIGKILL);
  EXPECT_NE(program.wait().status, 0);
  expect_resumes("run", 100000);
}

TEST_F(SeveralProcesses, StopTogetherWhenInterrupted) {
  Program program(train_by(2, "run", {"--steps", "100000", "--validate_every", "0", "-q"}), {},
                  kEnvironment, false, XLSTM_MPIRUN_PATH);
  wait_for_checkpoint("run");
  program.signal(SIGUSR1);  // as SIGINT, but mpirun sets no limit of time
  const Outcome outcome = program.wait();
  EXPECT_EQ(outcome.status, 1) << outcome.err;
  const std::int64_t last = train::list_checkpoints(checkpoints("run")).back();
  EXPECT_EQ(occurrences(outcome.err, "warning: interrupted after step " + std::to_string(last)), 1)
      << outcome.err;
  expect_resumes("run", 100000);
}

TEST_F(SeveralProcesses, TellAnErrorOnce) {
  const Outcome outcome = mpirun_to_end(train_by(2, "run", {"--batch", "7"}));
  EXPECT_NE(outcome.status, 0);
  EXPECT_EQ(occurrences(outcome.err, "data.batch: expected a multiple of 2"), 1) << outcome.err;
}

// Processes that do not see each other would all train the same into one directory.
TEST(ProcessesThatMpiDoesNotConnect, AreRefused) {
  TemporaryFolder folder;
  const Outcome outcome =
      run({"train", "--task.name", "parity", "--out", folder / "run"}, {},
          {train::has_mpi() ? "PMI_SIZE=2" : "OMPI_COMM_WORLD_SIZE=2", "OMPI_MCA_btl=self"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find(train::has_mpi() ? "MPI connects 1" : "has no MPI"), std::string::npos)
      << outcome.err;
  EXPECT_FALSE(fs::exists(folder / "run"));
}

}  // namespace
}  // namespace xlstm::test
