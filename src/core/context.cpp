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

void Context::finish_measuring() {
  const std::size_t bytes = arena_.stop_measuring();
  measuring_ = false;
  arena_.reserve(bytes);
}

}  // namespace xlstm
