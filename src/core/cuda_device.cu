#include "core/cuda_device.hpp"

#include <cuda_runtime_api.h>

namespace xlstm {
namespace {

// False and an entry in the report if a call failed; later calls start clean.
bool succeeded(cudaError_t error, const char* call, CudaReport& report) {
  if (error == cudaSuccess) return true;
  if (report.problem.empty()) report.problem = std::string(call) + ": " + cudaGetErrorString(error);
  static_cast<void>(cudaGetLastError());
  return false;
}

// Free memory is known only to a device's own context; the caller's device is restored.
void query_memory(int index, CudaDevice& device, CudaReport& report) {
  int current = 0;
  if (!succeeded(cudaGetDevice(&current), "cudaGetDevice", report)) return;
  if (succeeded(cudaSetDevice(index), "cudaSetDevice", report))
    succeeded(cudaMemGetInfo(&device.free_bytes, &device.total_bytes), "cudaMemGetInfo", report);
  succeeded(cudaSetDevice(current), "cudaSetDevice", report);
}

}  // namespace

CudaReport query_cuda() {
  CudaReport report;
  report.built = true;
  succeeded(cudaRuntimeGetVersion(&report.runtime_version), "cudaRuntimeGetVersion", report);
  succeeded(cudaDriverGetVersion(&report.driver_version), "cudaDriverGetVersion", report);
  int count = 0;
  if (!succeeded(cudaGetDeviceCount(&count), "cudaGetDeviceCount", report)) return report;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    if (!succeeded(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties", report))
      continue;
    CudaDevice device;
    device.name = properties.name;
    device.major = properties.major;
    device.minor = properties.minor;
    device.multiprocessors = properties.multiProcessorCount;
    device.total_bytes = properties.totalGlobalMem;
    query_memory(index, device, report);
    report.devices.push_back(device);
  }
  return report;
}

}  // namespace xlstm
