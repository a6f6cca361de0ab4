#pragma once
// Argument checks that the ops share.

#include <cstdint>
#include <initializer_list>

#include "ops/batch.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::ops {

/// Sets of element types an argument may have.
enum class Types { f32, f32_bf16, weight };

/// Throws Error(invalid_argument) naming op, argument, expected and found unless `tensor` has one
/// of these types and exactly this shape.
void check_tensor(const char* op, const char* argument, const Tensor& tensor, Types types,
                  std::initializer_list<std::int64_t> shape);

/// Throws Error(invalid_argument) unless offsets begin at 0, rise, and are one more than the slots.
void check_batch(const char* op, const Batch& batch);

/// Throws Error(invalid_argument) unless `value` is at least `least`.
void check_at_least(const char* op, const char* argument, std::int64_t value, std::int64_t least);

}  // namespace xlstm::ops
