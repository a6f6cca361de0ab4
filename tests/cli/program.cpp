#include "cli/program.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

extern char** environ;

namespace xlstm::test {
namespace fs = std::filesystem;
namespace {

fs::path make_folder() {
  std::string name = (fs::temp_directory_path() / "xlstm_cli_XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) ADD_FAILURE() << "no temporary folder";
  return name;
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_file(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

// Pointers to every string, closed by a null pointer.
std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& s : strings) result.push_back(s.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

nlohmann::json Outcome::json() const {
  EXPECT_EQ(out.find('\n'), out.size() - 1) << "JSON is one line: " << out;
  nlohmann::json value = nlohmann::json::parse(out, nullptr, false);
  EXPECT_TRUE(value.is_object()) << "no JSON object on stdout: " << out << "\nstderr: " << err;
  return value;
}

Program::Program(const std::vector<std::string>& arguments, const std::string& input,
                 const std::vector<std::string>& environment, bool closed_stdout,
                 const std::string& executable)
    : folder_(make_folder()) {
  write_file(folder_ / "in", input);
  start(arguments, environment, closed_stdout, executable);
}

void Program::start(std::vector<std::string> arguments, std::vector<std::string> environment,
                    bool closed_stdout, const std::string& executable) {
  arguments.insert(arguments.begin(), executable);
  // The caller's XLSTM_* settings must not change what is tested.
  for (char** variable = environ; *variable != nullptr; ++variable)
    if (!std::string_view(*variable).starts_with("XLSTM_")) environment.emplace_back(*variable);
  // Tests run side by side: more threads than cores would make each other wait. The first of two
  // equal names counts.
  environment.emplace_back("XLSTM_THREADS=1");
  environment.emplace_back("XLSTM_DEVICE=cpu");

  const std::string in = (folder_ / "in").string();
  const std::string out = (folder_ / "out").string();
  const std::string err = (folder_ / "err").string();
  int ends[2] = {-1, -1};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, in.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), O_WRONLY | O_CREAT, 0600);
  if (closed_stdout) {
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    close(ends[0]);  // nobody will ever read: every write fails
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  } else {
    posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT, 0600);
  }
  const int error = posix_spawn(&pid_, executable.c_str(), &actions, nullptr,
                                pointers(arguments).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  if (closed_stdout) close(ends[1]);
  ASSERT_EQ(error, 0) << "could not start " << executable;
}

Program::~Program() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

void Program::signal(int number) const { kill(pid_, number); }

std::string Program::out() const { return read_file(folder_ / "out"); }

Outcome Program::wait() {
  Outcome outcome;
  int status = 0;
  EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  outcome.out = read_file(folder_ / "out");
  outcome.err = read_file(folder_ / "err");
  return outcome;
}

Outcome run(const std::vector<std::string>& arguments, const std::string& input,
            const std::vector<std::string>& environment) {
  return Program(arguments, input, environment).wait();
}

TemporaryFolder::TemporaryFolder() : path_(make_folder()) {}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string TemporaryFolder::write(const std::string& name, const std::string& content) const {
  write_file(path_ / name, content);
  return (path_ / name).string();
}

std::string training_text() {
  const char* words[] = {"the ", "sun ", "rises ", "over ", "old ", "hills ", "and ", "sea.\n"};
  std::string result;
  for (std::uint64_t x = 1; result.size() < 20000;) {
    x = x * 6364136223846793005ULL + 1442695040888963407ULL;
    result += words[x >> 61];
  }
  return result;
}

fs::path default_model() { return fs::path(XLSTM_SOURCE_DIR) / "models" / "shakespeare-byte"; }

nlohmann::json default_model_golden() {
  return nlohmann::json::parse(read_file(default_model() / "golden.json"));
}

std::set<std::string> keys(const nlohmann::json& object) {
  std::set<std::string> names;
  for (const auto& [key, value] : object.items()) names.insert(key);
  return names;
}

}  // namespace xlstm::test
