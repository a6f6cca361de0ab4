// The tests of ops and models once more, on CUDA.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "core/cuda_device.hpp"
#include "test_device.hpp"

int main(int argc, char** argv) {
  // Before the tests are listed: their parameters depend on it.
  xlstm::test_device() = {xlstm::DeviceType::cuda, 0};
  testing::InitGoogleTest(&argc, argv);
  // A test reads results as soon as an op has returned.
  setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  const xlstm::CudaReport report = xlstm::query_cuda();
  if (report.devices.empty() && !testing::GTEST_FLAG(list_tests)) {
    std::printf("no CUDA device (%s): nothing is tested\n", report.problem.c_str());
    return 0;
  }
  // Ops alone are tested on tensors of the host, which many systems do not let a card read.
  if (!report.devices.empty() && !report.devices[0].reads_host_memory &&
      testing::GTEST_FLAG(filter) == "*") {
    std::printf("this card does not read the host's memory: only whole models are tested\n");
    testing::GTEST_FLAG(filter) =
        "CudaModel.*:DevicePeaks.*:ForwardTest.*:StateTest.*:StateFileTest.*:MemoryNeeds.*:"
        "LinearPlan.*:StackConfig.*:VectorsGoldenTest.*:Models/*:Families/*:Arithmetic/*";
  }
  return RUN_ALL_TESTS();
}
