// The limits of a device, measured: here only that they can be, because an emulated device has none
// worth knowing.

#include "ops/device_peaks.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "formats/expect_error.hpp"
#include "test_device.hpp"

namespace xlstm {
namespace {

TEST(DevicePeaks, AreMeasured) {
  for (const double rate : {measure_device_read_bandwidth(test_device(), 0, (1 << 20) + 48),
                            measure_device_bf16_peak(test_device(), 0, 2),
                            measure_device_f32_peak(test_device(), 0, 2)}) {
    EXPECT_TRUE(std::isfinite(rate));
    EXPECT_GT(rate, 0);
  }
}

TEST(DevicePeaks, ADeviceThatIsNotThereIsNamed) {
  expect_error(ErrorCode::not_found, {"cuda:63"}, [] {
    measure_device_bf16_peak({DeviceType::cuda, 63});
  });
}

}  // namespace
}  // namespace xlstm
