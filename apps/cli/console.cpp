#include "console.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/check.hpp"

namespace xlstm::cli {
namespace {

Verbosity current_verbosity = Verbosity::info;

volatile sig_atomic_t interrupt_seen = 0;
void on_interrupt(int) { interrupt_seen = 1; }
void catch_once(int number) {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);  // a second Ctrl-C kills
  sigemptyset(&action.sa_mask);
  sigaction(number, &action, nullptr);
}

// Bars shorter than this are over before anybody could read them.
constexpr auto kFirstDraw = std::chrono::milliseconds(300);
constexpr auto kRedraw = std::chrono::milliseconds(100);

}  // namespace

void set_verbosity(Verbosity verbosity) { current_verbosity = verbosity; }

void connect_library_log() {
  set_log_callback([](LogLevel level, std::string_view text) {
    // What the library tells of its own accord is detail for a user, unless it warns.
    message(level == LogLevel::info ? LogLevel::debug : level, text);
  });
}

void message(LogLevel level, std::string_view text) {
  if (static_cast<int>(level) < static_cast<int>(current_verbosity)) return;
  fmt::print(stderr, "{}{}\n", level == LogLevel::warning ? "warning: " : "", text);
}

bool try_write_out(std::string_view text) noexcept {
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
         std::fflush(stdout) == 0;
}

void write_out(std::string_view text) {
  errno = 0;
  if (!try_write_out(text))
    fail(ErrorCode::io, "could not write to stdout: {}",
         errno != 0 ? std::strerror(errno) : "it is closed");
}

void catch_interrupt() { catch_once(SIGINT); }

void catch_termination() {
  catch_once(SIGTERM);
  catch_once(SIGUSR1);
}

bool interrupted() noexcept { return interrupt_seen != 0; }

void clear_interrupt() {
  interrupt_seen = 0;
  catch_interrupt();
}

ProgressBar::ProgressBar(std::string label, bool forced, Counts counts)
    : label_(std::move(label)),
      enabled_(forced || (isatty(STDERR_FILENO) == 1 && current_verbosity <= Verbosity::info)),
      counts_(counts),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::update(std::uint64_t done, std::uint64_t total) {
  if (!enabled_ || total == 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ ? (now - last_ < kRedraw && done < total) : now - start_ < kFirstDraw) return;
  last_ = now;
  drawn_ = true;
  constexpr std::uint64_t kWidth = 30;
  const double fraction = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const auto filled = static_cast<std::size_t>(fraction * kWidth);
  fmt::print(stderr, "\r{:<18}[{}{}] {:3.0f} %", label_, std::string(filled, '#'),
             std::string(kWidth - filled, '.'), 100 * fraction);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  if (counts_ == Counts::bytes && seconds > 0)
    fmt::print(stderr, " {:5.1f} GB/s", 1e-9 * static_cast<double>(done) / seconds);
  std::fflush(stderr);
}

void ProgressBar::finish() {
  if (!drawn_) return;
  drawn_ = false;
  if (isatty(STDERR_FILENO) == 1)
    fmt::print(stderr, "\r{:72}\r", "");
  else
    fmt::print(stderr, "\n");
  std::fflush(stderr);
}

namespace {
std::string scaled(double value, const char* const* units, const char* plain) {
  int step = 0;
  while (step < 4 && value >= 1000.0) {
    value /= 1000.0;
    ++step;
  }
  if (step == 0) return fmt::format("{:.0f}{}", value, plain);
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : 1, units[step - 1]);
}
}  // namespace

std::string format_bytes(std::uint64_t bytes) {
  static const char* const kUnits[] = {"kB", "MB", "GB", "TB"};
  return scaled(static_cast<double>(bytes), kUnits, " bytes");
}

std::string format_count(std::uint64_t count) {
  static const char* const kUnits[] = {"K", "M", "B", "T"};
  return scaled(static_cast<double>(count), kUnits, "");
}

}  // namespace xlstm::cli
