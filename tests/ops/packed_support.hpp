#pragma once
// Packed weights of tests.

#include <bit>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/float_bits.hpp"
#include "ops/packed.hpp"
#include "ops/support.hpp"

namespace xlstm::ops::test {

/// A matrix of bf16 numbers, packed by the test device.
class Packed {
 public:
  Packed(std::vector<std::uint16_t> bits, std::int64_t rows, std::int64_t columns)
      : bits_(std::move(bits)),
        shape_(rows, columns),
        tiles_(static_cast<std::size_t>(shape_.rows * shape_.bytes), 0xA5),
        scales_(static_cast<std::size_t>(rows)),
        left_out_(static_cast<std::size_t>(shape_.rows), -1) {
    Context context(test_device());
    run(context, pack_weights,
        {.w = Tensor::dense(bits_.data(), DType::bf16, {rows, columns}, test_device()),
         .packed = weights(),
         .left_out = Tensor::dense(left_out_.data(), DType::i32, {shape_.rows}, test_device())});
  }

  PackedWeights weights() {
    return {Tensor::dense(tiles_.data(), DType::u8, {shape_.rows, shape_.bytes}, test_device()),
            Tensor::dense(scales_.data(), DType::f32, {static_cast<std::int64_t>(scales_.size())},
                          test_device())};
  }
  int left_out() const { return std::accumulate(left_out_.begin(), left_out_.end(), 0); }

  /// What is packed, put together again.
  float number(std::int64_t row, std::int64_t column) const {
    using Tile = PackedTile;
    const std::uint8_t* const tile =
        tiles_.data() + row / Tile::kRows * shape_.bytes + column / Tile::kColumns * Tile::kBytes;
    const int r = static_cast<int>(row % Tile::kRows),
              c = static_cast<int>(column % Tile::kColumns);
    std::uint32_t words[3];
    std::memcpy(words, tile + Tile::two_words_at(r, c / 8 % 4, c / 2 % 4), 8);
    std::memcpy(words + 2, tile + Tile::third_word_at(r, c / 8 % 4, c / 2 % 4), 4);
    unsigned bits = Tile::pair(words[0], words[1], words[2], c / 32) >> c % 2 * 16 & 0xFFFFU;
    for (int i = 0; i < Tile::kMostPatches; ++i) {
      std::uint32_t patch;
      std::memcpy(&patch, tile + Tile::kPatches + 4 * i, 4);
      if (patch == Tile::kNoPatch) break;
      if (patch >> 16 == Tile::patch(r, c, 0) >> 16) bits = patch & 0xFFFFU;
    }
    return bf16_to_f32(static_cast<std::uint16_t>(bits)) * scales_[static_cast<std::size_t>(row)];
  }

 private:
  std::vector<std::uint16_t> bits_;
  PackedShape shape_;
  std::vector<std::uint8_t> tiles_;
  std::vector<float> scales_;
  std::vector<std::int32_t> left_out_;
};

}  // namespace xlstm::ops::test
