// The twin of cuda_device.cu in a build without CUDA.

#include "core/check.hpp"
#include "core/cuda_device.hpp"

namespace xlstm {
namespace {

[[noreturn]] void refuse(Device device) {
  fail(ErrorCode::unsupported, "device {}: this build runs on the CPU only", to_string(device));
}

}  // namespace

CudaReport query_cuda() {
  CudaReport report;
  report.problem = "built without CUDA";
  return report;
}

namespace cuda {

std::string name(Device device) { refuse(device); }
DeviceMemory memory(Device device) { refuse(device); }
void* allocate(std::size_t, Device device, bool) { refuse(device); }
void release(void*, Device) noexcept {}
void* allocate_pinned(std::size_t, Device device) { refuse(device); }
void release_pinned(void*) noexcept {}
void pin(void*, std::size_t, Device device) { refuse(device); }
void unpin(void*) noexcept {}
void* make_stream(Device device) { refuse(device); }
void destroy_stream(void*, Device) noexcept {}
void synchronize(void*, Device device) { refuse(device); }
double waited_seconds() noexcept { return 0; }
void copy(void*, const void*, std::size_t, void*, Device device) { refuse(device); }
void* make_event(Device device) { refuse(device); }
void destroy_event(void*, Device) noexcept {}
void record(void*, void*, Device device) { refuse(device); }
void wait(void*, Device device) { refuse(device); }
void wait_on_stream(void*, void*, Device device) { refuse(device); }
void begin_capture(void*, Device device) { refuse(device); }
void* end_capture(void*, Device device) { refuse(device); }
void cancel_capture(void*, Device) noexcept {}
void launch_graph(void*, void*, Device device) { refuse(device); }
void destroy_graph(void*, Device) noexcept {}

}  // namespace cuda
}  // namespace xlstm
