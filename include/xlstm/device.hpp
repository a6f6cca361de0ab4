#pragma once
// Where a tensor lives and an operation runs.

#include <cstdint>
#include <string>
#include <string_view>

namespace xlstm {

enum class DeviceType : std::uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  std::int8_t index = 0;

  bool is_cpu() const noexcept { return type == DeviceType::cpu; }
  friend bool operator==(const Device&, const Device&) = default;
};

/// "cpu", "cuda:0".
std::string to_string(Device device);

/// Reads "cpu", "cuda" and "cuda:<index>"; throws Error(invalid_argument) on anything else.
Device parse_device(std::string_view name);

}  // namespace xlstm
