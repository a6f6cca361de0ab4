#include "ops/check_args.hpp"

#include <algorithm>
#include <string>

#include "core/check.hpp"

namespace xlstm::ops {
namespace {

bool admits(Types types, DType dtype) {
  switch (types) {
    case Types::f32: return dtype == DType::f32;
    case Types::f32_bf16: return dtype == DType::f32 || dtype == DType::bf16;
    case Types::weight: return is_weight_dtype(dtype);
  }
  return false;
}

const char* to_string(Types types) {
  switch (types) {
    case Types::f32: return "f32";
    case Types::f32_bf16: return "f32 or bf16";
    case Types::weight: return "f32, bf16 or f16";
  }
  return "";
}

std::string shape_text(std::initializer_list<std::int64_t> shape) {
  std::string text;
  for (std::int64_t size : shape) text += fmt::format("{}{}", text.empty() ? "" : ", ", size);
  return text;
}

}  // namespace

void check_tensor(const char* op, const char* argument, const Tensor& tensor, Types types,
                  std::initializer_list<std::int64_t> shape) {
  const bool same_shape = static_cast<std::size_t>(tensor.rank) == shape.size() &&
                          std::equal(shape.begin(), shape.end(), tensor.size.begin());
  if (tensor.data != nullptr && same_shape && admits(types, tensor.dtype)) return;
  fail(ErrorCode::invalid_argument, "{}: {} must be {}[{}], found {}", op, argument,
       to_string(types), shape_text(shape),
       tensor.data == nullptr ? "no tensor" : xlstm::to_string(tensor));
}

void check_at_least(const char* op, const char* argument, std::int64_t value, std::int64_t least) {
  XLSTM_CHECK(value >= least, invalid_argument, "{}: {} must be at least {}, found {}", op,
              argument, least, value);
}

void check_batch(const char* op, const Batch& batch) {
  XLSTM_CHECK(batch.sequences() >= 1 && batch.offsets.size() == batch.slots.size() + 1,
              invalid_argument, "{}: a batch needs offsets = sequences + 1 >= 2, found {} and {}",
              op, batch.offsets.size(), batch.slots.size());
  XLSTM_CHECK(batch.offsets[0] == 0, invalid_argument, "{}: offsets[0] must be 0, found {}", op,
              batch.offsets[0]);
  for (std::size_t s = 1; s < batch.offsets.size(); ++s)
    XLSTM_CHECK(batch.offsets[s] > batch.offsets[s - 1], invalid_argument,
                "{}: offsets must rise, found {} after {}", op, batch.offsets[s],
                batch.offsets[s - 1]);
}

}  // namespace xlstm::ops
