// The twin of cuda_device.cu in a build without CUDA.

#include "core/cuda_device.hpp"

namespace xlstm {

CudaReport query_cuda() {
  CudaReport report;
  report.problem = "built without CUDA";
  return report;
}

}  // namespace xlstm
