#pragma once
// Which kernel multiplies a linear layer on CUDA.

#include <cstdint>

#include "ops/linear.hpp"

namespace xlstm::ops::cuda {

enum class LinearKernel {
  few_rows,     ///< reads W once; a row has the same bits with any others beside it
  tiled,        ///< float32 products from shared memory
  tensor_cores  ///< bf16 x bf16
};

struct LinearPlan {
  LinearKernel kernel;
  int rows;  ///< of x that a block holds: 1, 4, 8 or 16; 64 or 128 in the other two

  bool operator==(const LinearPlan&) const = default;
};

/// The most rows of x for which sums have one order (ops/linear.hpp).
constexpr std::int64_t kLinearFewRows = 16;

/// Outputs per block of the two kernels for many rows.
constexpr std::int64_t kLinearTiledColumns = 64;
constexpr std::int64_t kLinearTensorColumns = 128;

/// For x [rows, K] times the transpose of W [outputs, K]: of one, or of several that share a launch
/// where the kernel is `tiled`. `rows` and `outputs` are positive. What a kernel computes does not
/// depend on the rows of a block.
constexpr LinearPlan plan_linear(std::int64_t rows, std::int64_t outputs, DType x, DType w) {
  if (rows <= kLinearFewRows) {
    const int held = rows == 1 ? 1 : rows <= 4 ? 4 : rows <= 8 ? 8 : 16;
    return {LinearKernel::few_rows, held};
  }
  // f16 has more bits than bf16 and bf16 a wider range than f16: a mixed product would lose some.
  const bool tensor_cores = x == DType::bf16 && w == DType::bf16;
  const std::int64_t columns = tensor_cores ? kLinearTensorColumns : kLinearTiledColumns;
  // High tiles read less memory per product, low ones leave no multiprocessor of a card idle.
  constexpr std::int64_t kEnoughBlocks = 128;
  const std::int64_t high = ((rows + 127) / 128) * ((outputs + columns - 1) / columns);
  return {tensor_cores ? LinearKernel::tensor_cores : LinearKernel::tiled,
          rows > 64 && high >= kEnoughBlocks ? 128 : 64};
}

/// linear() of at most kLinearFewRows rows by the kernel that fused ops use (fused.cu): all W of
/// the group at once, x made once by each block. False, and nothing done, where that does not serve
/// the types or the alignment; the number of rows does not decide.
bool linear_of_few_tokens(Context& context, const LinearArgs& args);

}  // namespace xlstm::ops::cuda
