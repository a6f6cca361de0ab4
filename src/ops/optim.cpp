#include "ops/optim.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "ops/check_args.hpp"
#include "ops/cpu/optim_plan.hpp"

namespace xlstm::ops {
namespace {

void check_dense(const char* op, const char* argument, const Tensor& tensor, DType dtype) {
  XLSTM_CHECK(tensor && tensor.dtype == dtype && tensor.is_dense(), invalid_argument,
              "{}: {} must be dense in {}, found {}", op, argument, to_string(dtype),
              tensor ? to_string(tensor) : "no tensor");
}

}  // namespace

void check_adamw(const AdamwArgs& a) {
  constexpr const char* kOp = "adamw";
  check_dense(kOp, "w", a.w, DType::f32);
  check_dense(kOp, "g", a.g, DType::f32);
  check_dense(kOp, "m", a.m, DType::f32);
  check_dense(kOp, "v", a.v, DType::f32);
  if (a.copy) check_dense(kOp, "copy", a.copy, DType::bf16);
  for (const Tensor* other : {&a.g, &a.m, &a.v, &a.copy})
    XLSTM_CHECK(!*other || (other->rank == a.w.rank && other->size == a.w.size), invalid_argument,
                "{}: expected the shape of w, {}, found {}", kOp, to_string(a.w),
                to_string(*other));
  check_at_least(kOp, "step", a.step, 1);
  XLSTM_CHECK(a.beta1 >= 0 && a.beta1 < 1 && a.beta2 >= 0 && a.beta2 < 1 && a.eps >= 0,
              invalid_argument, "{}: expected 0 <= beta < 1 and eps >= 0, found {}, {} and {}", kOp,
              a.beta1, a.beta2, a.eps);
}

std::size_t adamw_workspace(const Context&, const AdamwArgs&) { return 0; }

void check_squared_norm(const SquaredNormArgs& a) {
  check_dense("squared_norm", "x", a.x, DType::f32);
  XLSTM_CHECK(a.sum != nullptr, invalid_argument, "{}: sum must not be null", "squared_norm");
}

std::size_t squared_norm_workspace(const Context&, const SquaredNormArgs& a) {
  return static_cast<std::size_t>(cpu::squared_norm_blocks(a.x)) * sizeof(double);
}

void check_scale(const ScaleArgs& a) { check_dense("scale", "x", a.x, DType::f32); }

std::size_t scale_workspace(const Context&, const ScaleArgs&) { return 0; }

}  // namespace xlstm::ops
