// Weights in 12 bits: all of them come back, on every device.

#include "ops/packed.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "core/float_bits.hpp"
#include "ops/packed_support.hpp"
#include "ops/support.hpp"

namespace xlstm::ops {
namespace {

using Tile = PackedTile;

TEST(PackedTile, EveryNumberHasItsOwnBits) {
  std::set<int> places;  // of bits
  for (int row = 0; row < Tile::kRows; ++row) {
    for (int column = 0; column < Tile::kColumns; ++column) {
      const int a = column / 8 % 4, i = column / 2 % 4, u = column / 32;
      const int two = Tile::two_words_at(row, a, i), third = Tile::third_word_at(row, a, i);
      EXPECT_EQ(two % 8, 0);
      EXPECT_EQ(third % 4, 0);
      for (int bit = 0; bit < 16; ++bit) {
        const unsigned number = 1U << bit << column % 2 * 16;
        if ((number & Tile::kOwn) == 0) continue;
        unsigned words[3] = {};
        Tile::put_pair(words, u, number);
        EXPECT_EQ(Tile::pair(words[0], words[1], words[2], u), number | Tile::kCommon);
        for (int w = 0; w < 3; ++w)
          for (int at = 0; at < 32; ++at)
            if ((words[w] >> at & 1U) != 0) places.insert((w < 2 ? two + w * 4 : third) * 8 + at);
      }
    }
  }
  EXPECT_EQ(places.size(), 12U * 1024);
  EXPECT_EQ(*places.rbegin(), Tile::kPatches * 8 - 1);
  EXPECT_EQ(Tile::kBytes % 16, 0);
}

// Both ways in which a warp reads a tile: lane 4 row + n has all i of a = n, or all a of i = n, 8
// bytes and 4 at a time.
TEST(PackedTile, LanesOfAWarpReadDifferentBanks) {
  for (const bool by_i : {false, true}) {
    for (int step = 0; step < 4; ++step) {
      for (int half = 0; half < 2; ++half) {
        std::set<int> banks;
        for (int lane = half * 16; lane < half * 16 + 16; ++lane) {
          const int a = by_i ? step : lane % 4, i = by_i ? lane % 4 : step;
          const int at = Tile::two_words_at(lane / 4, a, i);
          EXPECT_EQ(at % 8, 0);
          banks.insert(at / 4 % 32);
          banks.insert(at / 4 % 32 + 1);
        }
        EXPECT_EQ(banks.size(), 32U);
      }
      std::set<int> banks;
      for (int lane = 0; lane < 32; ++lane)
        banks.insert(Tile::third_word_at(lane / 4, by_i ? step : lane % 4, by_i ? lane % 4 : step) /
                     4 % 32);
      EXPECT_EQ(banks.size(), 32U);
    }
  }
}

void expect_all_back(const std::vector<std::uint16_t>& bits, std::int64_t rows,
                     std::int64_t columns, int left_out = 0) {
  test::Packed packed(bits, rows, columns);
  EXPECT_EQ(packed.left_out(), left_out);
  if (left_out > 0) return;
  std::vector<std::uint16_t> again(bits.size(), 0x1234);
  unpack_weights(packed.weights(), Tensor::dense(again.data(), DType::bf16, {rows, columns}));
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      const float unpacked = bf16_to_f32(again[static_cast<std::size_t>(r * columns + c)]),
                  number = packed.number(r, c);
      EXPECT_TRUE(unpacked == number || (std::isnan(unpacked) && std::isnan(number)))
          << r << ", " << c;
      const std::uint16_t want = bits[static_cast<std::size_t>(r * columns + c)];
      if ((want & 0x7FFFU) == 0)
        EXPECT_EQ(packed.number(r, c), 0.0F) << r << ", " << c;
      else if (std::isnan(bf16_to_f32(want)))
        EXPECT_TRUE(std::isnan(packed.number(r, c))) << r << ", " << c;
      else
        ASSERT_EQ(packed.number(r, c), bf16_to_f32(want)) << r << ", " << c;
    }
}

std::vector<std::uint16_t> normal(std::int64_t count, float scale = 1.0F) {
  std::mt19937 random(7);
  std::normal_distribution<float> distribution(0.0F, scale);
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(count));
  for (std::uint16_t& b : bits) b = f32_to_bf16(distribution(random));
  return bits;
}

TEST(PackWeights, NormalNumbersComeBack) {
  for (const float scale : {1.0F, 0.02F, 1e-20F, 1e20F}) {
    expect_all_back(normal(64 * 4096, scale), 64, 4096);
    expect_all_back(normal(13 * 141, scale), 13, 141);  // tiles beyond both ends
    expect_all_back(normal(1), 1, 1);
  }
}

TEST(PackWeights, SmallNumbersZerosAndWhatIsNotANumberAreListed) {
  std::vector<std::uint16_t> bits(8 * 128, f32_to_bf16(1.5F));
  bits[3] = 0;
  bits[129] = f32_to_bf16(-0.0F);
  bits[200] = f32_to_bf16(-0x1.02p-16F);
  bits[300] = f32_to_bf16(0x1p-15F);  // the least that is not
  bits[301] = f32_to_bf16(0x1p-100F);
  bits[400] = f32_to_bf16(std::numeric_limits<float>::quiet_NaN());
  bits[401] = f32_to_bf16(-std::numeric_limits<float>::infinity());
  bits[1022] = f32_to_bf16(0x1.fep-126F);
  bits[1023] = f32_to_bf16(-0x1p-16F);
  expect_all_back(bits, 8, 128);
}

// Outliers are listed in place of the many numbers that are small beside them.
TEST(PackWeights, OutliersAreListed) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0, 0.02F);
  for (const float outlier : {1.5F, -16.0F, 60.0F}) {
    std::vector<std::uint16_t> bits(48 * 1024);
    for (std::uint16_t& b : bits) b = f32_to_bf16(normal(random));
    for (std::size_t row = 0; row < 48; ++row)
      bits[row * 1024 + row * 577 % 1024] = f32_to_bf16(outlier);
    expect_all_back(bits, 48, 1024);
  }
}

TEST(PackWeights, RowsOfZerosTakeNoList) {
  std::vector<std::uint16_t> bits = normal(16 * 256);
  std::fill(bits.begin() + 256, bits.begin() + 5 * 256, std::uint16_t{0});
  expect_all_back(bits, 16, 256);
  expect_all_back(std::vector<std::uint16_t>(8 * 128), 8, 128);
}

TEST(PackWeights, SaysWhatItLeavesOut) {
  std::vector<std::uint16_t> bits(8 * 256, f32_to_bf16(1.0F));
  for (int i = 0; i < 8; ++i) bits[static_cast<std::size_t>(i * 256 + 5)] = 0;
  expect_all_back(bits, 8, 256);
  bits[6] = 0;  // a ninth of this tile
  expect_all_back(bits, 8, 256, 1);
  bits.assign(8 * 128, f32_to_bf16(1.0F));
  bits[9] = 1;  // without an exponent: 2^-133
  expect_all_back(bits, 8, 128, 1);
  bits[9] = f32_to_bf16(1.0F);
  std::fill(bits.begin() + 128, bits.begin() + 256, f32_to_bf16(0x1p127F));
  bits[129] = f32_to_bf16(0x1p-125F);  // 2^-252 of it
  expect_all_back(bits, 8, 128, 1);
}

TEST(PackWeights, RefusesArgumentsThatDoNotFit) {
  Context context(test_device());
  test::Array w(DType::bf16, {9, 130}), scales(DType::f32, {9});
  std::vector<std::uint8_t> tiles(2 * 2 * Tile::kBytes);
  std::vector<std::int32_t> left_out(2);
  const PackedWeights packed{
      Tensor::dense(tiles.data(), DType::u8, {2, 2 * Tile::kBytes}, test_device()),
      scales.tensor()};
  const Tensor lost = Tensor::dense(left_out.data(), DType::i32, {2}, test_device());
  test::expect_refused(
      [&] {
        pack_weights(context, {.w = w.tensor(),
                               .packed = {packed.tiles.rows(0, 1), packed.scales},
                               .left_out = lost});
      },
      "pack_weights: expected packed weights u8 [2, 3136]");
  test::expect_refused(
      [&] {
        pack_weights(context, {.w = w.tensor(), .packed = packed, .left_out = lost.rows(0, 1)});
      },
      "pack_weights: expected left_out i32 [2]");
}

}  // namespace
}  // namespace xlstm::ops
