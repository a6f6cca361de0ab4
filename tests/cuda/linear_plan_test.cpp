#include "ops/cuda/linear_plan.hpp"

#include <gtest/gtest.h>

namespace xlstm::ops::cuda {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

TEST(LinearPlan, UpTo16RowsHaveOneOrderOfSumsForAllTypesAndWidths) {
  for (const DType w : kTypes) {
    for (const DType x : {DType::f32, DType::bf16}) {
      for (const std::int64_t outputs : {1, 64, 50304}) {
        for (std::int64_t rows = 1; rows <= 16; ++rows) {
          const LinearPlan plan = plan_linear(rows, outputs, x, w);
          EXPECT_EQ(plan.kernel, LinearKernel::few_rows);
          EXPECT_GE(plan.rows, rows);
          EXPECT_LE(plan.rows, 16);
        }
        EXPECT_NE(plan_linear(17, outputs, x, w).kernel, LinearKernel::few_rows);
      }
    }
  }
  EXPECT_EQ(plan_linear(1, 64, DType::f32, DType::bf16).rows, 1);
  EXPECT_EQ(plan_linear(5, 64, DType::f32, DType::bf16).rows, 8);
}

TEST(LinearPlan, OnlyBf16TimesBf16IsExactOnTensorCores) {
  for (const DType w : kTypes) {
    for (const DType x : {DType::f32, DType::bf16}) {
      const bool both = x == DType::bf16 && w == DType::bf16;
      EXPECT_EQ(plan_linear(100, 100, x, w).kernel,
                both ? LinearKernel::tensor_cores : LinearKernel::tiled);
    }
  }
}

TEST(LinearPlan, HighTilesOnlyWhereTheyAreManyAndNotHalfEmpty) {
  EXPECT_EQ(plan_linear(64, 1 << 20, DType::bf16, DType::bf16).rows, 64);
  EXPECT_EQ(plan_linear(65, 1 << 20, DType::bf16, DType::bf16).rows, 128);
  EXPECT_EQ(plan_linear(512, 4096, DType::bf16, DType::bf16).rows, 128);  // 4 x 32 tiles
  EXPECT_EQ(plan_linear(512, 3968, DType::bf16, DType::bf16).rows, 64);
  EXPECT_EQ(plan_linear(512, 2048, DType::f32, DType::bf16).rows, 128);  // 4 x 32 narrower ones
  EXPECT_EQ(plan_linear(512, 1984, DType::f32, DType::bf16).rows, 64);
}

}  // namespace
}  // namespace xlstm::ops::cuda
