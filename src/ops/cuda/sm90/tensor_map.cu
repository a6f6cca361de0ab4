#include "ops/cuda/sm90/tensor_map.cuh"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <string>

#include "ops/packed.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops::cuda {
namespace {

// From the driver that the runtime has loaded: nothing links with libcuda.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &result) != cudaSuccess ||
      result != cudaDriverEntryPointSuccess)
    throw Error(ErrorCode::internal, "the CUDA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType data_type(DType dtype) {
  if (dtype == DType::f32) return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  return dtype == DType::u8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

CUtensorMap encode(const Tensor& matrix, int rank, const cuuint64_t* sizes,
                   const cuuint64_t* pitches, const cuuint32_t* box, CUtensorMapDataType type,
                   CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encoder();
  constexpr cuuint32_t kSteps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, type, static_cast<cuuint32_t>(rank), matrix.data, sizes, pitches, box, kSteps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Error(ErrorCode::internal,
                "cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(result)));
  return map;
}

CUtensorMap boxes(const Tensor& matrix, std::int64_t rows, std::int64_t row_bytes,
                  CUtensorMapSwizzle swizzle) {
  const auto size = static_cast<std::int64_t>(size_of(matrix.dtype));
  std::int64_t pitch = matrix.row_stride() * size;
  if (matrix.dim(0) == 1) pitch = (matrix.dim(1) * size + 15) / 16 * 16;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(matrix.dim(1)),
                               static_cast<cuuint64_t>(matrix.dim(0))};
  const cuuint64_t pitches[1] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(row_bytes / size),
                             static_cast<cuuint32_t>(rows)};
  return encode(matrix, 2, sizes, pitches, box, data_type(matrix.dtype), swizzle);
}

}  // namespace

bool has_boxes(const Tensor& matrix) {
  constexpr std::int64_t kUnit = 16, kMostRows = std::int64_t{1} << 31;
  const auto size = static_cast<std::int64_t>(size_of(matrix.dtype));
  return matrix.rank == 2 && reinterpret_cast<std::uintptr_t>(matrix.data) % kUnit == 0 &&
         matrix.dim(0) > 0 && matrix.dim(1) > 0 && matrix.dim(0) < kMostRows &&
         matrix.dim(1) < kMostRows &&
         (matrix.dim(0) == 1 || matrix.row_stride() * size % kUnit == 0);
}

CUtensorMap box_map(const Tensor& matrix, std::int64_t rows) {
  return boxes(matrix, rows, kBoxRowBytes, CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap narrow_box_map(const Tensor& matrix, std::int64_t rows) {
  return boxes(matrix, rows, kBoxRowBytes / 2, CU_TENSOR_MAP_SWIZZLE_64B);
}

CUtensorMap packed_map(const Tensor& tiles, std::int64_t rows) {
  constexpr int kWord = 8;  // a box has at most 256 columns
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(tiles.dim(1) / kWord),
                               static_cast<cuuint64_t>(tiles.dim(0))};
  const cuuint64_t pitches[1] = {static_cast<cuuint64_t>(
      tiles.dim(0) == 1 ? (tiles.dim(1) + 15) / 16 * 16 : tiles.row_stride())};
  const cuuint32_t box[2] = {PackedTile::kBytes / kWord, static_cast<cuuint32_t>(rows)};
  return encode(tiles, 2, sizes, pitches, box, CU_TENSOR_MAP_DATA_TYPE_UINT64,
                CU_TENSOR_MAP_SWIZZLE_NONE);
}

CUtensorMap head_box_map(const Tensor& matrix, std::int64_t heads, std::int64_t rows) {
  const auto columns = static_cast<cuuint64_t>(matrix.dim(1) / heads);
  const cuuint64_t sizes[3] = {columns, static_cast<cuuint64_t>(heads),
                               static_cast<cuuint64_t>(matrix.dim(0))};
  const cuuint64_t pitches[2] = {columns * 2, static_cast<cuuint64_t>(matrix.row_stride()) * 2};
  const cuuint32_t box[3] = {kBoxRowBytes / 2, 1, static_cast<cuuint32_t>(rows)};
  return encode(matrix, 3, sizes, pitches, box, data_type(matrix.dtype));
}

}  // namespace xlstm::ops::cuda
