#pragma once
// The CUDA devices of this machine, for `doctor` and for choosing one.

#include <cstddef>
#include <string>
#include <vector>

namespace xlstm {

struct CudaDevice {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  std::size_t total_bytes = 0;
  std::size_t free_bytes = 0;
};

/// What could be found out. Versions are 1000 major + 10 minor, as CUDA writes them; 0: unknown.
struct CudaReport {
  bool built = false;  ///< this library has the CUDA part
  int runtime_version = 0;
  int driver_version = 0;  ///< newest CUDA that the driver supports
  std::vector<CudaDevice> devices;
  std::string problem;  ///< why `devices` is empty or incomplete; empty if nothing is wrong
};

/// Never throws: a machine without a driver or a device is a finding, not an error.
CudaReport query_cuda();

}  // namespace xlstm
