#include "core/cuda_device.hpp"

#include <cuda_runtime_api.h>

#include <chrono>

#include "xlstm/error.hpp"

namespace xlstm {
namespace {

constexpr const char* kNoDriver = "no NVIDIA driver is installed";

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
  if (report.driver_version == 0 && report.problem.empty()) {
    report.problem = kNoDriver;
    return report;
  }
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

namespace cuda {
namespace {

thread_local double waited = 0;

// Adds the time that it lives.
class Waiting {
 public:
  Waiting() = default;
  ~Waiting() {
    waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

void check(cudaError_t error, const char* call, Device device) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw Error(ErrorCode::internal,
              to_string(device) + ": " + call + ": " + cudaGetErrorString(error));
}

// The device of the calling thread is another one while this lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(Device device) {
    cudaError_t error = cudaGetDevice(&before_);
    if (error == cudaSuccess && before_ == device.index) return;
    if (error == cudaSuccess) error = cudaSetDevice(device.index);
    changed_ = error == cudaSuccess;
    if (!changed_) fail(error, device);
  }
  ~CurrentDevice() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  [[noreturn]] static void fail(cudaError_t why, Device device) {
    static_cast<void>(cudaGetLastError());
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && device.index < count)
      throw Error(ErrorCode::internal,
                  to_string(device) + ": cudaSetDevice: " + cudaGetErrorString(why));
    static_cast<void>(cudaGetLastError());
    int driver = 0;
    static_cast<void>(cudaDriverGetVersion(&driver));
    throw Error(ErrorCode::not_found,
                to_string(device) + ": there is no such device: " +
                    (driver == 0            ? std::string(kNoDriver)
                     : error != cudaSuccess ? std::string(cudaGetErrorString(error))
                                            : "CUDA names " + std::to_string(count)));
  }

  int before_ = 0;
  bool changed_ = false;
};

}  // namespace

std::string name(Device device) {
  const CurrentDevice current(device);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device.index), "cudaGetDeviceProperties", device);
  return properties.name;
}

DeviceMemory memory(Device device) {
  const CurrentDevice current(device);
  DeviceMemory bytes;
  check(cudaMemGetInfo(&bytes.free, &bytes.total), "cudaMemGetInfo", device);
  return bytes;
}

void* allocate(std::size_t bytes, Device device, bool zero) {
  const CurrentDevice current(device);
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    std::size_t free = 0, total = 0;
    static_cast<void>(cudaMemGetInfo(&free, &total));
    throw Error(ErrorCode::out_of_memory,
                to_string(device) + ": could not allocate " + std::to_string(bytes) + " bytes; " +
                    std::to_string(free) + " of " + std::to_string(total) + " are free");
  }
  check(error, "cudaMalloc", device);
  if (zero) {
    check(cudaMemsetAsync(memory, 0, bytes, nullptr), "cudaMemsetAsync", device);
    check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize", device);
  }
  return memory;
}

void release(void* memory, Device device) noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device.index) != cudaSuccess) return;
  static_cast<void>(cudaFree(memory));
  static_cast<void>(cudaSetDevice(before));
}

void* allocate_pinned(std::size_t bytes, Device device) {
  const CurrentDevice current(device);
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw Error(ErrorCode::out_of_memory,
                "could not allocate " + std::to_string(bytes) + " bytes of pinned memory");
  }
  check(error, "cudaHostAlloc", device);
  return memory;
}

void release_pinned(void* memory) noexcept { static_cast<void>(cudaFreeHost(memory)); }

void pin(void* memory, std::size_t bytes, Device device) {
  const CurrentDevice current(device);
  check(cudaHostRegister(memory, bytes, cudaHostRegisterPortable), "cudaHostRegister", device);
}

void unpin(void* memory) noexcept { static_cast<void>(cudaHostUnregister(memory)); }

void* make_stream(Device device) {
  const CurrentDevice current(device);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate", device);
  return stream;
}

void destroy_stream(void* stream, Device device) noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device.index) != cudaSuccess) return;
  static_cast<void>(cudaStreamDestroy(static_cast<cudaStream_t>(stream)));
  static_cast<void>(cudaSetDevice(before));
}

void synchronize(void* stream, Device device) {
  const CurrentDevice current(device);
  const Waiting waiting;
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "cudaStreamSynchronize", device);
}

void* make_event(Device device) {
  const CurrentDevice current(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate", device);
  return event;
}

void destroy_event(void* event, Device device) noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device.index) != cudaSuccess) return;
  static_cast<void>(cudaEventDestroy(static_cast<cudaEvent_t>(event)));
  static_cast<void>(cudaSetDevice(before));
}

void record(void* event, void* stream, Device device) {
  const CurrentDevice current(device);
  check(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)),
        "cudaEventRecord", device);
}

void wait(void* event, Device device) {
  const CurrentDevice current(device);
  const Waiting waiting;
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "cudaEventSynchronize", device);
}

void wait_on_stream(void* stream, void* event, Device device) {
  const CurrentDevice current(device);
  check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0),
        "cudaStreamWaitEvent", device);
}

double waited_seconds() noexcept { return waited; }

void copy(void* to, const void* from, std::size_t bytes, void* stream, Device device) {
  if (bytes == 0) return;
  const CurrentDevice current(device);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
        "cudaMemcpyAsync", device);
}

void begin_capture(void* stream, Device device) {
  const CurrentDevice current(device);
  check(cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture", device);
}

void* end_capture(void* stream, Device device) {
  const CurrentDevice current(device);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph), "cudaStreamEndCapture",
        device);
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  check(error, "cudaGraphInstantiate", device);
  return executable;
}

void cancel_capture(void* stream, Device device) noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess) return;
  if (before != device.index && cudaSetDevice(device.index) != cudaSuccess) return;
  cudaGraph_t graph = nullptr;  // stays null if the capture was invalid; it ends all the same
  static_cast<void>(cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph));
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaGetLastError());
  if (before != device.index) static_cast<void>(cudaSetDevice(before));
}

void launch_graph(void* graph, void* stream, Device device) {
  const CurrentDevice current(device);
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)),
        "cudaGraphLaunch", device);
}

void destroy_graph(void* graph, Device device) noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device.index) != cudaSuccess) return;
  static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
  static_cast<void>(cudaSetDevice(before));
}

}  // namespace cuda
}  // namespace xlstm
