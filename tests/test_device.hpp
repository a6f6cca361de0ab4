#pragma once
// Where the tests of this program run ops and models: the CPU, or CUDA in xlstm_emulator_tests and
// xlstm_cuda_tests, where the device reads what `new` gave, so that a test is the same for all.

#include "xlstm/device.hpp"

namespace xlstm {

inline Device& test_device() {
  static Device device;
  return device;
}

}  // namespace xlstm
