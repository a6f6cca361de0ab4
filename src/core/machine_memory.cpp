#include "core/machine_memory.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace xlstm {
namespace {

// A file that holds one number; empty if it cannot be read or says "max".
std::optional<std::uint64_t> read_number(const char* path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

}  // namespace

std::optional<Memory> machine_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::string unit;
  std::uint64_t kilobytes = 0;
  Memory memory;
  while (file >> key >> kilobytes && std::getline(file, unit)) {
    if (key == "MemTotal:") memory.total = kilobytes * 1024;
    if (key == "MemAvailable:") memory.available = kilobytes * 1024;
  }
  if (memory.total == 0) return std::nullopt;
  const auto limit = read_number("/sys/fs/cgroup/memory.max");
  const auto used = read_number("/sys/fs/cgroup/memory.current");
  if (limit && used) {
    memory.total = std::min(memory.total, *limit);
    memory.available = std::min(memory.available, *limit > *used ? *limit - *used : 0);
  }
  return memory;
}

std::uint64_t peak_memory() {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace xlstm
