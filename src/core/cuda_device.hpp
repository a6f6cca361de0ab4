#pragma once
// The CUDA devices of this machine: what they are, their memory and their streams. No header of
// CUDA is seen here. A build without CUDA has cuda_device_none.cpp, where everything but the query
// throws Error(unsupported).

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "xlstm/device.hpp"

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

/// Functions that throw Error(unsupported) in a build without CUDA, Error(not_found) where `device`
/// is none, and Error(out_of_memory) or Error(internal) naming the call that failed.
namespace cuda {

/// As its maker calls it.
std::string name(Device device);
struct DeviceMemory {
  std::size_t free = 0, total = 0;  ///< bytes
};
DeviceMemory memory(Device device);
/// Memory on kAlignment bytes, full of zeros if `zero`.
void* allocate(std::size_t bytes, Device device, bool zero);
void release(void* memory, Device device) noexcept;
/// Memory of the host that the system leaves where it is: every CUDA device reads and writes it,
/// and copy() between it and a device returns at once and runs at the speed of the bus.
void* allocate_pinned(std::size_t bytes, Device device);
void release_pinned(void* memory) noexcept;
/// Makes whole pages of the host's memory such memory, until unpin().
void pin(void* memory, std::size_t bytes, Device device);
void unpin(void* memory) noexcept;

/// A queue of work on the device; copies and kernels of one stream run in order.
void* make_stream(Device device);
void destroy_stream(void* stream, Device device) noexcept;
/// A stream that is gone with its last owner.
inline std::shared_ptr<void> shared_stream(Device device) {
  return {make_stream(device), [device](void* s) { destroy_stream(s, device); }};
}
/// Waits for all work of a stream. @throws Error(internal) if any of it failed
void synchronize(void* stream, Device device);
/// Seconds that the calling thread has spent in synchronize() and wait().
double waited_seconds() noexcept;
/// Copies between memory of the host and of devices, whichever `to` and `from` are; returns before
/// it is done. Memory of the host must stay as it is until synchronize().
void copy(void* to, const void* from, std::size_t bytes, void* stream, Device device);

/// A mark in a stream, set anew by each record().
void* make_event(Device device);
void destroy_event(void* event, Device device) noexcept;
/// An event that is gone with its last owner.
inline std::shared_ptr<void> shared_event(Device device) {
  return {make_event(device), [device](void* e) { destroy_event(e, device); }};
}
void record(void* event, void* stream, Device device);
/// Waits for the work before the last record(). @throws Error(internal) if any of it failed
void wait(void* event, Device device);
/// Has what is queued on the stream from now on wait for the work before the last record().
void wait_on_stream(void* stream, void* event, Device device);

/// Begins to note down what is queued on the stream instead of running it.
void begin_capture(void* stream, Device device);
/// Ends that; what was noted down, to be run with launch_graph(). @throws Error(internal) if the
/// work cannot be repeated
void* end_capture(void* stream, Device device);
/// Ends it after an error, be it that of end_capture(): the stream runs again what is queued on it,
/// and nothing of what was noted down.
void cancel_capture(void* stream, Device device) noexcept;
void launch_graph(void* graph, void* stream, Device device);
void destroy_graph(void* graph, Device device) noexcept;

}  // namespace cuda

}  // namespace xlstm
