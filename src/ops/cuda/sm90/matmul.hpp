#pragma once
// The product of bf16 or e4m3 matrices on compute capability 9.0: box copies feed wgmma.

#include <span>

#include "core/context.hpp"
#include "ops/packed.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::ops::cuda {

struct MatmulPlan;       // matmul_plan.hpp
struct PackedPlan;       // matmul_packed_plan.hpp
struct PackedTiledPlan;  // matmul_packed_tiled_plan.hpp

/// y = x W^T + b, or y += with `accumulate`; with `swiglu`, W is a gate and what it gates,
/// y = silu(x W_0^T + b_0) (x W_1^T + b_1). Sums are float32 in the order of K, or of few pieces of
/// it, in a kernel that M, N and K choose: the other rows do not change a row's result. (With
/// stream-K pieces begin where the row's place says, and from 1793 rows on some columns of y take K
/// from its end, in the same way for every row: TileOrder.)
struct Product {
  Tensor x;  ///< [M, K] bf16, or u8: e4m3
  /// Row blocks [N_i, K] of the same; two [F, K] with `swiglu`. No memory: packed alone.
  std::span<const Tensor> w;
  std::span<const Tensor> b;  ///< empty, or one [N_i] each of f32, bf16 or f16
  Tensor y;                   ///< [M, sum N_i] f32 or bf16; [M, F] with `swiglu`, then also u8
  bool accumulate = false;
  bool swiglu = false;
  std::span<const PackedWeights> packed = {};  ///< empty, or w packed
  // Of e4m3:
  Tensor x_scales = {};                   ///< [M] f32, or of runs [K / 128, M] (ops/e4m3.hpp)
  std::span<const Tensor> w_scales = {};  ///< [N_i] f32 each, or of blocks [N_i / 128, K / 128]
  Tensor y_scales = {};  ///< of runs [F / 128, M]: with blocks and `swiglu`, y is e4m3 too
};

/// Whether the product takes these types, sizes and addresses: rows at multiples of 16 bytes, at
/// most 4 weights, and no sums added to bf16.
bool takes_product(const Product& product);

/// Launches it on a card of Level::sm90; false, and nothing done, where it does not take it.
bool product(Context& context, const Product& product);
/// The same in this way, which serves `product`; plan_matmul() gives the fastest.
bool planned_product(Context& context, const Product& product, const MatmulPlan& plan);
/// The same of packed weights, which plan_packed() serves, or plan_packed_tiled().
bool planned_product(Context& context, const Product& product, const PackedPlan& plan);
bool planned_product(Context& context, const Product& product, const PackedTiledPlan& plan);

}  // namespace xlstm::ops::cuda
