// Plain loops: what a CUDA device computes, for tests. No model runs this on the CPU.

#include "ops/packed.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "ops/packed_number.hpp"

namespace xlstm::ops::cpu {

void pack_weights(Context&, const PackWeightsArgs& a) {
  using Tile = PackedTile;
  const std::int64_t rows = a.w.dim(0), columns = a.w.dim(1);
  const auto bits = [&](std::int64_t r, std::int64_t c) -> unsigned {
    return a.w.row<std::uint16_t>(r)[c];
  };
  std::vector<PackedRow> tops(static_cast<std::size_t>(rows), PackedRow{0});
  for (std::int64_t r = 0; r < rows; ++r) {
    unsigned largest = 0;
    for (std::int64_t c = 0; c < columns; ++c)
      largest = std::max(largest, PackedRow::exponent(bits(r, c)));
    int listed[PackedRow::kTops] = {};
    for (std::int64_t c = 0; c < columns; ++c)
      for (unsigned below = 0; below < PackedRow::kTops && below < largest; ++below)
        listed[below] += PackedRow{largest - below}.lists(PackedRow::exponent(bits(r, c))) ? 1 : 0;
    PackedRow& row = tops[static_cast<std::size_t>(r)];
    row = PackedRow::best(largest, listed, columns);
    a.packed.scales.as<float>()[r] = std::bit_cast<float>(row.scale_bits());
  }
  for (std::int64_t first = 0; first < rows; first += Tile::kRows) {
    std::int32_t& left_out = a.left_out.as<std::int32_t>()[first / Tile::kRows];
    left_out = 0;
    for (std::int64_t from = 0; from < columns; from += Tile::kColumns) {
      auto* const tile = a.packed.tiles.row<std::uint8_t>(first / Tile::kRows) +
                         from / Tile::kColumns * Tile::kBytes;
      std::memset(tile, 0, Tile::kPatches);
      std::memset(tile + Tile::kPatches, 0xFF, Tile::kBytes - Tile::kPatches);
      int listed = 0;
      for (int place = 0; place < Tile::kRows * 16; ++place) {
        const int r = place / 16, a_ = place / 4 % 4, i = place % 4;
        unsigned words[3] = {};
        for (int c = 8 * a_ + 2 * i; c < Tile::kColumns; c += c % 2 == 0 ? 1 : 31) {
          if (first + r >= rows || from + c >= columns) continue;
          const PackedNumber number(bits(first + r, from + c),
                                    tops[static_cast<std::size_t>(first + r)]);
          Tile::put_pair(words, c / 32, number.own << c % 2 * 16);
          if (!number.listed) continue;
          const bool fits = listed < Tile::kMostPatches && number.exact;
          const unsigned patch = Tile::patch(r, c, number.patch);
          if (fits) std::memcpy(tile + Tile::kPatches + 4 * listed++, &patch, 4);
          if (!fits) ++left_out;
        }
        std::memcpy(tile + Tile::two_words_at(r, a_, i), words, 8);
        std::memcpy(tile + Tile::third_word_at(r, a_, i), words + 2, 4);
      }
    }
  }
}

}  // namespace xlstm::ops::cpu
