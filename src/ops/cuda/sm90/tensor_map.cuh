#pragma once
// Tensor maps: how device/tile_copy.cuh finds the boxes of a matrix.

#include <cuda.h>

#include <cstdint>

#include "xlstm/tensor.hpp"

namespace xlstm::ops::cuda {

/// Bytes of a row of every box.
constexpr std::int64_t kBoxRowBytes = 128;

/// Whether copies can take this matrix: rows begin at multiples of 16 bytes.
bool has_boxes(const Tensor& matrix);

/// The map of a matrix [R, C] of bf16, f32 or u8 in boxes of `rows` rows (up to 256) of
/// kBoxRowBytes. It goes into a kernel by value, as `const __grid_constant__`. @throws
/// Error(internal)
CUtensorMap box_map(const Tensor& matrix, std::int64_t rows);

/// The same in boxes of rows of 64 bytes, whose 16-byte unit u of row r lies at u ^ (r / 2 % 4):
/// boxes begin at multiples of 512 bytes.
CUtensorMap narrow_box_map(const Tensor& matrix, std::int64_t rows);

/// The map of packed weights (ops/packed.hpp), one tile of `rows` rows of tiles: they lie in a row.
/// Its columns count 8 bytes.
CUtensorMap packed_map(const Tensor& tiles, std::int64_t rows);

/// The same as box_map() of a matrix [R, heads x C] of bf16 in boxes of `rows` rows of one head
/// (load_head_box).
CUtensorMap head_box_map(const Tensor& matrix, std::int64_t heads, std::int64_t rows);

}  // namespace xlstm::ops::cuda
