#include "ops/cuda/level.hpp"

#include <cuda_runtime.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "xlstm/error.hpp"

namespace xlstm::ops::cuda {
namespace {

Level most() {
#if defined(XLSTM_CUDA_EMULATED)
  return Level::base;
#else
  const char* asked = std::getenv("XLSTM_CUDA_LEVEL");
  const std::string_view name = asked == nullptr ? "" : asked;
  if (name == "base") return Level::base;
  if (name.empty() || name == "sm90") return Level::sm90;
  throw Error(ErrorCode::invalid_argument,
              "XLSTM_CUDA_LEVEL: expected base or sm90, found '" + std::string(name) + "'");
#endif
}

}  // namespace

Level level(Device device) {
  static const Level limit = most();
  if (limit == Level::base) return limit;
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index) !=
          cudaSuccess)
    throw Error(ErrorCode::internal, "cudaDeviceGetAttribute of " + to_string(device));
  return major == 9 && minor == 0 ? Level::sm90 : Level::base;
}

int multiprocessors(Device device) {
  int count = 0;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index) != cudaSuccess)
    throw Error(ErrorCode::internal, "cudaDeviceGetAttribute of " + to_string(device));
  return count;
}

}  // namespace xlstm::ops::cuda
