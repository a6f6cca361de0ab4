#include "core/context.hpp"

#include "core/cpu_features.hpp"
#include "core/cuda_device.hpp"
#include "core/threads.hpp"

namespace xlstm {

Context::Context(Device device, int threads)
    : device_(device), threads_(threads > 0 ? threads : physical_cores()), arena_(device) {
  active_isa();  // caps the kernels' instruction set before any of them is chosen
}

void* Context::stream() const {
  if (!device_.is_cpu() && stream_.use_count() == 0) {
    signals_ = Buffer(kSignals * sizeof(unsigned), device_, true);
    stream_ = cuda::shared_stream(device_);
  }
  return stream_.get();
}

unsigned* Context::signals() const {
  stream();
  return reinterpret_cast<unsigned*>(signals_.data());
}

void Context::synchronize() const {
  if (!device_.is_cpu()) cuda::synchronize(stream(), device_);
}

void Context::start_measuring() {
  arena_.start_measuring();
  measuring_ = true;
}

std::size_t Context::stop_measuring() {
  measuring_ = false;
  return arena_.stop_measuring();
}

void Context::finish_measuring() { arena_.reserve(stop_measuring()); }

}  // namespace xlstm
