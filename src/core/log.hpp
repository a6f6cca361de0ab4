#pragma once
// Logging is a callback: the library itself never prints.

#include <functional>
#include <string_view>

namespace xlstm {

enum class LogLevel { debug, info, warning };
using LogCallback = std::function<void(LogLevel, std::string_view)>;

/// Sets the process-wide receiver; empty (the default) drops every message. Not thread-safe: set it
/// before loading models.
void set_log_callback(LogCallback callback);
void log(LogLevel level, std::string_view message);

}  // namespace xlstm
