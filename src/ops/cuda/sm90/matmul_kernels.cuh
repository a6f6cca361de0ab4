#pragma once
// What the kernels of matmul.hpp are given.

#include <cuda.h>

#include <cstdint>

#include "core/context.hpp"
#include "ops/cuda/sm90/matmul_packed_plan.hpp"
#include "ops/cuda/sm90/matmul_packed_tiled_plan.hpp"
#include "ops/cuda/sm90/matmul_plan.hpp"
#include "xlstm/tensor.hpp"

namespace xlstm::ops::cuda {

constexpr int kMostProducts = 4;  ///< weights of a launch

struct MatmulMaps {
  CUtensorMap x;
  CUtensorMap w[kMostProducts];
  CUtensorMap y[kMostProducts];  ///< the columns of each W (tiled kernel)
};

struct MatmulArgs {
  int rows;                             ///< of x
  int weights;                          ///< row blocks; 1 with SwiGLU
  int row_tiles;                        ///< tiled kernel
  int column_tiles;                     ///< of all weights
  TileOrder order;                      ///< tiled kernels
  int tile_end[kMostProducts];          ///< tiles of this weight and of those before
  std::int64_t outputs[kMostProducts];  ///< rows of W
  std::int64_t first[kMostProducts];    ///< column of y where they begin
  const void* bias[kMostProducts];      ///< null: none; of gate and up with SwiGLU
  DType bias_dtype;
  const float* x_scales;                 ///< null: x and W are bf16, else e4m3
  const float* w_scales[kMostProducts];  ///< of each W; of gate and up with SwiGLU
  float* y_scales;                       ///< null: y is f32 or bf16, else e4m3
  std::int64_t y_run_step;
  std::int64_t run_step;  ///< between scales of x of two stages; 0: of whole rows
  int depth_stages;       ///< of kMatmulDepth numbers of bf16, or twice as many of e4m3
  int height;             ///< rows of each W in a tile
  int ring;               ///< stages in shared memory (streamed kernel)
  int split;
  void* y;
  std::int64_t y_stride;
  bool y_is_bf16;
  bool accumulate;
  bool swiglu;
};

struct PackedMaps {
  CUtensorMap x;
  CUtensorMap w[kMostProducts];  ///< packed_map() of each W; of gate and up with SwiGLU
  CUtensorMap y[kMostProducts];  ///< the columns of each W (tiled kernel)
};

struct PackedScales {
  const float* of[kMostProducts];  ///< of the rows of each W; of gate and up with SwiGLU
};

void launch_tiled(Context& context, const MatmulPlan& plan, const MatmulMaps& maps,
                  const MatmulArgs& args);
void launch_streamed(Context& context, const MatmulPlan& plan, const MatmulMaps& maps,
                     const MatmulArgs& args);
void launch_packed(Context& context, const PackedPlan& plan, const PackedMaps& maps,
                   const PackedScales& scales, const MatmulArgs& args, int multiprocessors);
void launch_packed_tiled(Context& context, const PackedTiledPlan& plan, const PackedMaps& maps,
                         const PackedScales& scales, const MatmulArgs& args, int multiprocessors);

}  // namespace xlstm::ops::cuda
