#include "ops/packed.hpp"

#include "core/check.hpp"

namespace xlstm::ops {
namespace {

void check_one(const char* op, const PackedWeights& packed, const Tensor& w) {
  const PackedShape shape(w.dim(0), w.dim(1));
  const Tensor& tiles = packed.tiles;
  XLSTM_CHECK(
      tiles.dtype == DType::u8 && tiles.rank == 2 && tiles.dim(0) == shape.rows &&
          tiles.dim(1) == shape.bytes && tiles.row_stride() % 16 == 0 && tiles.device == w.device,
      invalid_argument, "{}: expected packed weights u8 [{}, {}] on {}, found {} on {}", op,
      shape.rows, shape.bytes, to_string(w.device), to_string(tiles), to_string(tiles.device));
  XLSTM_CHECK(packed.scales.dtype == DType::f32 && packed.scales.rank == 1 &&
                  packed.scales.dim(0) == w.dim(0),
              invalid_argument, "{}: expected scales of packed weights f32 [{}], found {}", op,
              w.dim(0), to_string(packed.scales));
}

}  // namespace

void check_packed(const char* op, std::span<const PackedWeights> packed,
                  std::span<const Tensor> w) {
  if (packed.empty()) return;
  XLSTM_CHECK(packed.size() == w.size(), invalid_argument,
              "{}: expected no packed weights or as many as {} weights, found {}", op, w.size(),
              packed.size());
  for (std::size_t i = 0; i < w.size(); ++i) check_one(op, packed[i], w[i]);
}

void check_pack_weights(const PackWeightsArgs& a) {
  constexpr const char* kOp = "pack_weights";
  XLSTM_CHECK(a.w.rank == 2 && a.w.dtype == DType::bf16 && a.w.dim(0) >= 1 && a.w.dim(1) >= 1,
              invalid_argument, "{}: expected w [N, K] in bf16, found {}", kOp, to_string(a.w));
  check_one(kOp, a.packed, a.w);
  XLSTM_CHECK(a.left_out.dtype == DType::i32 && a.left_out.rank == 1 &&
                  a.left_out.dim(0) == a.packed.tiles.dim(0),
              invalid_argument, "{}: expected left_out i32 [{}], found {}", kOp,
              a.packed.tiles.dim(0), to_string(a.left_out));
}

std::size_t pack_weights_workspace(const Context&, const PackWeightsArgs&) { return 0; }

}  // namespace xlstm::ops
