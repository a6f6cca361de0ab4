#pragma once
// The terminal: results on stdout, everything else on stderr, and Ctrl-C.

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/log.hpp"

namespace xlstm::cli {

/// What is shown on stderr: messages of this level and above; nothing below. `none` keeps errors.
enum class Verbosity { debug, info, warning, none };
void set_verbosity(Verbosity verbosity);
/// Sends the library's log to stderr as well.
void connect_library_log();

/// Writes a line to stderr.
void message(LogLevel level, std::string_view text);
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  message(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}

/// Writes and flushes stdout. @throws Error(io) if it is closed or full
void write_out(std::string_view text);
/// The same without throwing: false if it could not be written.
bool try_write_out(std::string_view text) noexcept;

/// From now on the first Ctrl-C only makes interrupted() true; a second one ends the program.
void catch_interrupt();
/// The same for SIGTERM and SIGUSR1, by which launchers of long runs say that time is up.
void catch_termination();
bool interrupted() noexcept;
/// Forgets a Ctrl-C and waits for the next.
void clear_interrupt();

/// A bar on stderr, drawn only on a terminal or when --progress asks for it.
class ProgressBar {
 public:
  enum class Counts { things, bytes };  ///< of bytes the rate is shown, too
  ProgressBar(std::string label, bool forced, Counts counts = Counts::things);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::uint64_t done, std::uint64_t total);
  /// Erases the bar.
  void finish();

 private:
  std::string label_;
  bool enabled_;
  Counts counts_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_;
};

/// Seconds since construction.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// "13.3 GB", "20.0 MB", "512 bytes" (powers of ten).
std::string format_bytes(std::uint64_t bytes);
/// "6.87 B", "5.01 M", "320".
std::string format_count(std::uint64_t count);

}  // namespace xlstm::cli
