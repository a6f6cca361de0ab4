#pragma once
// Runs the real program as a user would, and keeps what it printed.

#include <sys/types.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace xlstm::test {

struct Outcome {
  int status = -1;  ///< exit status, or -signal
  std::string out, err;

  /// stdout as the one JSON object that it must be; a discarded value if it is not.
  nlohmann::json json() const;
};

/// A program that is still running.
class Program {
 public:
  /// Arguments after the program's name; `input` is its stdin; `environment` holds "NAME=value".
  explicit Program(const std::vector<std::string>& arguments, const std::string& input = {},
                   const std::vector<std::string>& environment = {}, bool closed_stdout = false,
                   const std::string& executable = XLSTM_CLI_PATH);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void signal(int number) const;
  pid_t pid() const { return pid_; }
  /// What came to stdout so far.
  std::string out() const;
  Outcome wait();

 private:
  void start(std::vector<std::string> arguments, std::vector<std::string> environment,
             bool closed_stdout, const std::string& executable);

  std::filesystem::path folder_;
  pid_t pid_ = -1;
};

/// Runs to the end.
Outcome run(const std::vector<std::string>& arguments, const std::string& input = {},
            const std::vector<std::string>& environment = {});

/// A folder of its own, gone when the test is over.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }
  /// Writes a file and returns its name.
  std::string write(const std::string& name, const std::string& content) const;

 private:
  std::filesystem::path path_;
};

/// 20 kB of words to train on, in an order that has no period.
std::string training_text();

/// models/shakespeare-byte of the source tree, and its golden.json.
std::filesystem::path default_model();
nlohmann::json default_model_golden();

/// The names of an object's fields.
std::set<std::string> keys(const nlohmann::json& object);

}  // namespace xlstm::test
