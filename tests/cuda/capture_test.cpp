// A stream while work is noted down for a graph, and after that failed.

#include <gtest/gtest.h>

#include <cmath>

#include "core/cuda_device.hpp"
#include "formats/expect_error.hpp"
#include "ops/activation.hpp"
#include "ops/support.hpp"

namespace xlstm {
namespace {

class Capture : public ::testing::Test {
 protected:
  void cap() { ops::soft_cap(context, {.x = x.tensor(), .cap = 2.0F}); }
  void expect_value(float value) {
    context.synchronize();
    for (const float each : x.floats()) EXPECT_FLOAT_EQ(each, value);
  }

  Context context{test_device(), 1};
  ops::test::Array x = ops::test::Array::of(DType::f32, {1, 3}, {5, 5, 5});
  const float once = 2 * std::tanh(5.0F / 2), twice = 2 * std::tanh(once / 2);
};

TEST_F(Capture, RunsNothingUntilTheGraphIsLaunched) {
  const Device device = test_device();
  cuda::begin_capture(context.stream(), device);
  cap();
  void* const graph = cuda::end_capture(context.stream(), device);
  expect_value(5);
  cuda::launch_graph(graph, context.stream(), device);
  cuda::launch_graph(graph, context.stream(), device);
  expect_value(twice);
  cuda::destroy_graph(graph, device);
}

TEST_F(Capture, CancelledItLeavesTheStreamUsable) {
  const Device device = test_device();
  cuda::begin_capture(context.stream(), device);
  cap();
  cuda::cancel_capture(context.stream(), device);
  cuda::cancel_capture(context.stream(), device);  // there is none
  expect_value(5);
  cap();
  expect_value(once);
}

TEST_F(Capture, AllocationsEndItAndTheStreamStaysUsable) {
  const Device device = test_device();
  cuda::begin_capture(context.stream(), device);
  EXPECT_THROW(Buffer(64, device), Error);
  expect_error(ErrorCode::internal, {"soft_cap", "capture"}, [&] { cap(); });
  expect_error(ErrorCode::internal, {"cudaStreamEndCapture"},
               [&] { cuda::end_capture(context.stream(), device); });
  cuda::cancel_capture(context.stream(), device);
  cap();
  expect_value(once);
}

}  // namespace
}  // namespace xlstm
