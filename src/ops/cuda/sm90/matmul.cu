#include "ops/cuda/sm90/matmul.hpp"

#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/sm90/matmul_kernels.cuh"
#include "ops/cuda/sm90/tensor_map.cuh"

namespace xlstm::ops::cuda {
namespace {

/// Whether the weights are there as they are, not in their packed form alone.
bool has_weights(const Product& p) {
  for (const Tensor& w : p.w)
    if (!w) return false;
  return true;
}

/// Whether packed weights can take the place of the others: whole tiles.
bool takes_packed(const Product& p) {
  if (p.packed.empty() || p.x.dtype != DType::bf16 || p.y.dtype == DType::u8) return false;
  for (const PackedWeights& w : p.packed)
    if (!w || !has_boxes(w.tiles)) return false;
  for (const Tensor& w : p.w)
    if (w.dim(0) % PackedTile::kRows != 0 || w.dim(0) == 0) return false;
  return true;
}

/// Whether the kernel of few rows serves too: its offsets have 32 bits.
bool takes_few_packed(const Product& p) {
  return takes_packed(p) && p.x.dim(0) <= kPackedRows &&
         p.x.dim(0) * p.y.row_stride() < std::int64_t{1} << 31;
}

/// What the kernels need of any product. @param height  of a tile, as its plan counts it
MatmulArgs args_of(const Product& p, int height, int split) {
  MatmulArgs args = {};
  args.rows = static_cast<int>(p.x.dim(0));
  args.weights = p.swiglu ? 1 : static_cast<int>(p.w.size());
  args.height = height;
  args.split = split;
  args.y = p.y.data;
  args.y_stride = p.y.row_stride();
  args.y_is_bf16 = p.y.dtype == DType::bf16;
  args.accumulate = p.accumulate;
  args.swiglu = p.swiglu;
  args.bias_dtype = p.b.empty() ? DType::f32 : p.b[0].dtype;
  return args;
}

/// Of the tiled kernels, whose clusters have two blocks.
TileOrder order_of(const Context& context, const MatmulArgs& args) {
  return tile_order(args.rows, args.row_tiles, args.column_tiles,
                    multiprocessors(context.device()) / kPackedTiledCluster);
}

}  // namespace

bool takes_product(const Product& p) {
  if ((p.x.dtype != DType::bf16 && p.x.dtype != DType::u8) || !has_boxes(p.x) || p.w.empty() ||
      p.w.size() > static_cast<std::size_t>(kMostProducts))
    return false;
  const bool coded = p.y.dtype == DType::u8;
  if (coded && (!p.swiglu || !p.y_scales || p.x_scales.rank != 2)) return false;
  if (!coded && p.y.dtype != DType::f32 && (p.y.dtype != DType::bf16 || p.accumulate)) return false;
  if (p.swiglu && (p.w.size() != 2 || p.accumulate)) return false;
  std::int64_t first = 0;
  for (const Tensor& w : p.w) {
    if (w.dtype != p.x.dtype || (w && !has_boxes(w)) || !has_boxes(p.y.cols(first, w.dim(0))))
      return false;
    // Stores end at 16 bytes too: they would reach into what lies behind a part of wider rows.
    // (Codes have rows of their own.)
    if (!coded && w.dim(0) * static_cast<std::int64_t>(size_of(p.y.dtype)) % 16 != 0) return false;
    if (!p.swiglu) first += w.dim(0);
  }
  for (const Tensor& s : p.w_scales)
    if (!s.is_dense()) return false;
  for (const Tensor& b : p.b)
    if (b.dtype != p.b[0].dtype) return false;
  return true;
}

bool product(Context& context, const Product& p) {
  if (!takes_product(p)) return false;
  const int count = p.swiglu ? 1 : static_cast<int>(p.w.size());
  std::int64_t outputs[kMostProducts] = {};
  for (int i = 0; i < count; ++i) outputs[i] = p.w[static_cast<std::size_t>(i)].dim(0);
  const int places = multiprocessors(context.device());
  const bool e4m3 = p.x.dtype == DType::u8;
  const MatmulShape shape{.rows = p.x.dim(0),
                          .outputs = {outputs, static_cast<std::size_t>(count)},
                          .depth = e4m3 ? pieces_of(p.x.dim(1), 2) : p.x.dim(1),
                          .swiglu = p.swiglu,
                          .multiprocessors = places};
  // Where both forms are there, the packed one is for passes that memory bounds.
  constexpr std::int64_t kMostOfBoth = 128;
  if (takes_packed(p) && (shape.rows <= kMostOfBoth || !has_weights(p))) {
    const PackedPlan few = takes_few_packed(p) ? plan_packed(shape) : PackedPlan{};
    if (few.rows > 0) return planned_product(context, p, few);
    return planned_product(context, p, plan_packed_tiled(shape));
  }
  return planned_product(context, p,
                         e4m3 ? plan_tiled(shape, p.x_scales.rank == 2) : plan_matmul(shape));
}

bool planned_product(Context& context, const Product& p, const MatmulPlan& plan) {
  constexpr int kBlock = 128;  // of weights that share a scale
  if (!takes_product(p) || !has_weights(p) || (p.x_scales.rank == 2 && plan.height % kBlock != 0))
    return false;
  const bool tiled = plan.kernel == MatmulKernel::tiled;
  MatmulMaps maps = {};
  MatmulArgs args = args_of(p, plan.height, plan.split);
  args.row_tiles = static_cast<int>(pieces_of(p.x.dim(0), plan.rows));
  const bool e4m3 = p.x.dtype == DType::u8;
  args.depth_stages =
      static_cast<int>(pieces_of(p.x.dim(1), e4m3 ? 2 * kMatmulDepth : kMatmulDepth));
  if (e4m3) {
    args.x_scales = p.x_scales.as<float>();
    if (p.y_scales) {
      args.y_scales = p.y_scales.as<float>();
      args.y_run_step = p.y_scales.row_stride();
    }
    args.run_step = p.x_scales.rank == 2 ? p.x_scales.row_stride() : 0;
  }
  // A block of a cluster loads its share of what the cluster multiplies.
  maps.x = box_map(p.x, tiled ? plan.rows / 2 : plan.rows);
  std::int64_t first = 0;
  for (std::size_t i = 0; i < p.w.size(); ++i) {
    const Tensor& w = p.w[i];
    maps.w[i] = box_map(w, tiled ? plan.columns / 2 : plan.height);
    args.outputs[i] = w.dim(0);
    args.first[i] = first;
    if (!p.b.empty()) args.bias[i] = p.b[i].data;
    if (e4m3) args.w_scales[i] = p.w_scales[i].as<float>();
    if (p.swiglu && i == 1) break;
    constexpr std::int64_t kWarpRows = 16;
    if (tiled) maps.y[i] = box_map(p.y.cols(first, w.dim(0)), kWarpRows);
    args.column_tiles += static_cast<int>(pieces_of(w.dim(0), plan.height));
    args.tile_end[i] = args.column_tiles;
    first += w.dim(0);
  }
  if (!tiled) {
    launch_streamed(context, plan, maps, args);
    return true;
  }
  args.order = order_of(context, args);
  launch_tiled(context, plan, maps, args);
  return true;
}

namespace {

/// What both kernels of packed weights are given: tiles of `height` of each W, of which `blocks`
/// blocks have one each.
struct PackedCall {
  MatmulArgs args;
  PackedMaps maps = {};
  PackedScales scales = {};

  PackedCall(const Product& p, int rows, int height, int split, int blocks)
      : args(args_of(p, height, split)) {
    args.row_tiles = static_cast<int>(pieces_of(p.x.dim(0), rows));
    args.depth_stages = static_cast<int>(pieces_of(p.x.dim(1), PackedTile::kColumns));
    maps.x = box_map(p.x, rows / blocks);  // a block of a cluster loads its share
    std::int64_t first = 0;
    for (std::size_t i = 0; i < p.w.size(); ++i) {
      maps.w[i] = packed_map(p.packed[i].tiles, height);
      scales.of[i] = p.packed[i].scales.as<float>();
      args.outputs[i] = p.w[i].dim(0);
      args.first[i] = first;
      if (!p.b.empty()) args.bias[i] = p.b[i].data;
      if (p.swiglu && i == 1) break;
      args.column_tiles +=
          static_cast<int>(pieces_of(p.w[i].dim(0), PackedTile::kRows * height * blocks));
      args.tile_end[i] = args.column_tiles;
      first += p.w[i].dim(0);
    }
  }
};

}  // namespace

bool planned_product(Context& context, const Product& p, const PackedPlan& plan) {
  if (!takes_product(p) || !takes_few_packed(p)) return false;
  const PackedCall call(p, plan.rows, plan.height, plan.split, 1);
  launch_packed(context, plan, call.maps, call.scales, call.args,
                multiprocessors(context.device()));
  return true;
}

bool planned_product(Context& context, const Product& p, const PackedTiledPlan& plan) {
  if (!takes_product(p) || !takes_packed(p)) return false;
  PackedCall call(p, plan.rows, p.swiglu ? kPackedTiledTiles / 2 : kPackedTiledTiles, 1,
                  kPackedTiledCluster);
  call.args.order = order_of(context, call.args);
  // Boxes of y: a warp group has 64 rows of W, or 32 of both with SwiGLU.
  const bool narrow = p.swiglu && p.y.dtype == DType::bf16;
  for (std::size_t i = 0; i < (p.swiglu ? 1 : p.w.size()); ++i) {
    const Tensor y = p.y.cols(call.args.first[i], p.w[i].dim(0));
    call.maps.y[i] = narrow ? narrow_box_map(y, kPackedTiledPiece) : box_map(y, kPackedTiledPiece);
  }
  launch_packed_tiled(context, plan, call.maps, call.scales, call.args,
                      multiprocessors(context.device()));
  return true;
}

}  // namespace xlstm::ops::cuda
