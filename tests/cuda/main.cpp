// The tests of ops and models once more, on CUDA.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "core/cuda_device.hpp"
#include "test_device.hpp"

namespace xlstm {
bool pin_new_memory();  // pinned_memory.cu
}

int main(int argc, char** argv) {
  // Before the tests are listed: their parameters depend on it.
  xlstm::test_device() = {xlstm::DeviceType::cuda, 0};
  testing::InitGoogleTest(&argc, argv);
  // A test reads results as soon as an op has returned. So kernels overlap in graphs alone, unless
  // the environment says 0: tests of whole models wait for what they read themselves.
  setenv("CUDA_LAUNCH_BLOCKING", "1", 0);
  const xlstm::CudaReport report = xlstm::query_cuda();
  if (report.devices.empty() && !testing::GTEST_FLAG(list_tests)) {
    std::printf("no CUDA device (%s): nothing is tested\n", report.problem.c_str());
    return 77;  // ctest: skipped
  }
#if defined(XLSTM_TEST_ON_CARD)
  if (!report.devices.empty() && !xlstm::pin_new_memory()) {
    std::printf("no pinned memory: nothing is tested\n");
    return 1;
  }
#endif
  return RUN_ALL_TESTS();
}
