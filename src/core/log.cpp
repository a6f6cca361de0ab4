#include "core/log.hpp"

#include <utility>

namespace xlstm {
namespace {
LogCallback& receiver() {
  static LogCallback callback;
  return callback;
}
}  // namespace

void set_log_callback(LogCallback callback) { receiver() = std::move(callback); }

void log(LogLevel level, std::string_view message) {
  if (receiver()) receiver()(level, message);
}

}  // namespace xlstm
