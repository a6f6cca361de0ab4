#pragma once
// Memory of this machine.

#include <cstdint>
#include <optional>

namespace xlstm {

struct Memory {
  std::uint64_t total = 0;
  std::uint64_t available = 0;  ///< what a program may still take without swapping
};

/// From /proc/meminfo, capped by the control group's limit; empty if neither can be read.
std::optional<Memory> machine_memory();

/// Largest amount of memory this process had in use so far, in bytes.
std::uint64_t peak_memory();

}  // namespace xlstm
