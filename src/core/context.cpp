#include "core/context.hpp"

#include "core/cpu_features.hpp"
#include "core/threads.hpp"

namespace xlstm {

Context::Context(Device device, int threads)
    : device_(device), threads_(threads > 0 ? threads : physical_cores()), arena_(device) {
  active_isa();  // caps the kernels' instruction set before any of them is chosen
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
