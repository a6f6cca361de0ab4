#include "ops/packed.hpp"

#include <cstring>

#include "core/check.hpp"
#include "core/float_bits.hpp"
#include "ops/check_args.hpp"

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

void check_weights(const char* op, std::span<const Tensor> w, std::int64_t outputs,
                   std::int64_t inputs, std::span<const PackedWeights> packed) {
  check_packed(op, packed, w);
  for (std::size_t i = 0; i < w.size(); ++i) {
    Tensor t = w[i];
    if (!packed.empty() && !t) t.data = packed[i].tiles.data;  // packed alone
    check_tensor(op, "w", t, Types::weight, {outputs, inputs});
  }
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

void unpack_weights(const PackedWeights& packed, const Tensor& w) {
  using Tile = PackedTile;
  for (std::int64_t n = 0; n < w.dim(0); ++n) {
    const auto* const tiles = packed.tiles.row<std::uint8_t>(n / Tile::kRows);
    const int row = static_cast<int>(n % Tile::kRows);
    auto* const to = w.row<std::uint16_t>(n);
    const float scale = packed.scales.as<float>()[n];
    const auto put = [&](std::int64_t k, unsigned bits) {
      if (k < w.dim(1)) to[k] = f32_to_bf16(bf16_to_f32(static_cast<std::uint16_t>(bits)) * scale);
    };
    for (std::int64_t from = 0; from < w.dim(1); from += Tile::kColumns) {
      const auto* const tile = tiles + from / Tile::kColumns * Tile::kBytes;
      for (int place = 0; place < 16; ++place) {
        const int a = place / 4, i = place % 4;
        unsigned words[3];
        std::memcpy(words, tile + Tile::two_words_at(row, a, i), 8);
        std::memcpy(words + 2, tile + Tile::third_word_at(row, a, i), 4);
        for (int u = 0; u < 4; ++u) {
          const unsigned pair = Tile::pair(words[0], words[1], words[2], u);
          const std::int64_t k = from + 32 * u + 8 * a + 2 * i;
          put(k, pair & 0xFFFFU);
          put(k + 1, pair >> 16);
        }
      }
      for (int p = 0; p < Tile::kMostPatches; ++p) {
        unsigned patch = 0;
        std::memcpy(&patch, tile + Tile::kPatches + 4 * p, 4);
        if (patch == Tile::kNoPatch) break;
        const int at = static_cast<int>(patch >> 16);
        if (at / Tile::kColumns == row) put(from + at % Tile::kColumns, patch & 0xFFFFU);
      }
    }
  }
}

std::size_t pack_weights_workspace(const Context&, const PackWeightsArgs&) { return 0; }

}  // namespace xlstm::ops
