// Names and views: error codes, dtypes, devices, tensors.

#include <gtest/gtest.h>

#include <array>

#include "core/cuda_device.hpp"
#include "xlstm/device.hpp"
#include "xlstm/dtype.hpp"
#include "xlstm/error.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm {
namespace {

TEST(DType, NamesRoundTrip) {
  for (DType dtype :
       {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::i64, DType::u8}) {
    EXPECT_EQ(parse_dtype(to_string(dtype)), dtype);
    EXPECT_GT(size_of(dtype), 0U);
  }
  EXPECT_EQ(parse_dtype("bfloat16"), DType::bf16);
  EXPECT_EQ(parse_dtype("float8"), std::nullopt);
}

TEST(Device, ReadsWhatItWrites) {
  EXPECT_EQ(parse_device("cpu"), Device{});
  EXPECT_EQ(parse_device("cuda"), (Device{DeviceType::cuda, 0}));
  EXPECT_EQ(to_string(parse_device("cuda:3")), "cuda:3");
  for (const char* bad : {"", "CPU", "cuda:", "cuda:-1", "cuda:1x", "cuda:999"})
    EXPECT_THROW(parse_device(bad), Error) << bad;
}

TEST(Tensor, ViewsOfRowsAndColumns) {
  std::array<float, 12> data{};
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  const Tensor t = Tensor::dense(data.data(), DType::f32, {3, 4});
  EXPECT_TRUE(t.is_dense());
  EXPECT_EQ(t.count(), 12);
  EXPECT_EQ(to_string(t), "f32[3, 4]");
  const Tensor block = t.rows(1, 2).cols(1, 2);
  EXPECT_FALSE(block.is_dense());
  EXPECT_EQ(block.dim(0), 2);
  EXPECT_EQ(block.dim(1), 2);
  EXPECT_EQ(block.row<float>(0)[0], 5.0F);
  EXPECT_EQ(block.row<float>(1)[1], 10.0F);
}

TEST(CudaReport, SaysWhyThereIsNoDevice) {
  const CudaReport report = query_cuda();
  EXPECT_EQ(report.devices.empty() && report.problem.empty(), false);
  for (const CudaDevice& device : report.devices) {
    EXPECT_FALSE(device.name.empty());
    EXPECT_GE(device.total_bytes, device.free_bytes);
  }
#ifdef XLSTM_TEST_WITHOUT_CUDA
  EXPECT_FALSE(report.built);
  EXPECT_EQ(report.problem, "built without CUDA");
#endif
}

}  // namespace
}  // namespace xlstm
