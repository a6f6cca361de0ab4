// The maps from lanes and registers to elements that the PTX ISA documents, beside those that
// device/mma.cuh gives to kernels and those that the emulator computes with.

#include "ops/cuda/device/mma.cuh"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>

#include "core/float_bits.hpp"

namespace xlstm::ops::cuda {
namespace {

constexpr int kLanes = 32, kRows = 16, kColumns = 8, kDepth = 16;

struct Place {
  int row, column;
  bool operator==(const Place&) const = default;
};

// "Matrix Fragments for mma.m16n8k16 with floating point type": elements a0 .. a7, b0 .. b3 and
// c0 .. c3 of a lane; two neighbours of A and B share a register, the first in its lower half.
Place ptx_a(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  const bool upper_rows = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {upper_rows ? group : group + 8, in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}
Place ptx_b(int lane, int i) {  // row: depth
  const int group = lane >> 2, in_group = lane % 4;
  return {in_group * 2 + (i & 1) + (i < 2 ? 0 : 8), group};
}
Place ptx_c(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i < 2 ? group : group + 8, in_group * 2 + (i & 1)};
}

// The same from another source, the strides of CuTe's MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>:
// a lane (l % 4, l / 4) and an element's bits (i % 2, i / 2 % 2, i / 4) lead to row + 16 depth of
// A, column + 8 depth of B and row + 16 column of C.
Place cute_a(int lane, int i) {
  const int at = lane % 4 * 32 + lane / 4 + i % 2 * 16 + i / 2 % 2 * 8 + i / 4 * 128;
  return {at % kRows, at / kRows};
}
Place cute_b(int lane, int i) {
  const int at = lane % 4 * 16 + lane / 4 + i % 2 * 8 + i / 2 * 64;
  return {at / kColumns, at % kColumns};
}
Place cute_c(int lane, int i) {
  const int at = lane % 4 * 32 + lane / 4 + i % 2 * 16 + i / 2 * 8;
  return {at % kRows, at / kRows};
}

// Whole numbers, so that products and sums are exact; no two columns or rows alike.
float left(int row, int depth) { return static_cast<float>((row * 7 + depth * 5) % 61 - 30); }
float right(int depth, int column) { return static_cast<float>((depth * 11 + column * 3) % 53); }

unsigned pair(float low, float high) {
  return f32_to_bf16(low) | static_cast<unsigned>(f32_to_bf16(high)) << 16;
}

void run_warp(const std::function<void(int)>& body) {
  cuda_emulator::run_grid(dim3(1), dim3(kLanes), 0,
                          [&] { body(static_cast<int>(unsigned{threadIdx.x})); });
}

// The registers of A that a lane must have, and of B whose columns begin at `first`.
std::array<unsigned, 4> registers_a(int lane) {
  std::array<unsigned, 4> a{};
  for (int r = 0; r < 4; ++r) {
    const Place low = ptx_a(lane, 2 * r), high = ptx_a(lane, 2 * r + 1);
    a[static_cast<std::size_t>(r)] = pair(left(low.row, low.column), left(high.row, high.column));
  }
  return a;
}
std::array<unsigned, 2> registers_b(int lane, int first) {
  std::array<unsigned, 2> b{};
  for (int r = 0; r < 2; ++r) {
    const Place low = ptx_b(lane, 2 * r), high = ptx_b(lane, 2 * r + 1);
    b[static_cast<std::size_t>(r)] =
        pair(right(low.row, first + low.column), right(high.row, first + high.column));
  }
  return b;
}

TEST(Mma, TwoSourcesDocumentTheSameMap) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 8; ++i) EXPECT_EQ(ptx_a(lane, i), cute_a(lane, i)) << lane << " " << i;
    for (int i = 0; i < 4; ++i) EXPECT_EQ(ptx_b(lane, i), cute_b(lane, i)) << lane << " " << i;
    for (int i = 0; i < 4; ++i) EXPECT_EQ(ptx_c(lane, i), cute_c(lane, i)) << lane << " " << i;
  }
}

TEST(Mma, KernelsFindTheElementsOfC) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 4; ++i)
      EXPECT_EQ((Place{c_row(lane, i), c_column(lane, i)}), ptx_c(lane, i)) << lane << " " << i;
}

TEST(Mma, TheEmulatorMultipliesFragmentsOfTheDocumentedMap) {
  std::array<std::array<float, 4>, kLanes> sums;
  run_warp([&](int lane) {
    unsigned a[4], b[2];
    float c[4];
    std::memcpy(a, registers_a(lane).data(), sizeof(a));
    std::memcpy(b, registers_b(lane, 0).data(), sizeof(b));
    for (int i = 0; i < 4; ++i) c[i] = static_cast<float>(lane * 4 + i);
    mma_bf16(c, a, b);
    std::memcpy(sums[static_cast<std::size_t>(lane)].data(), c, sizeof(c));
  });
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Place at = ptx_c(lane, i);
      auto want = static_cast<float>(lane * 4 + i);
      for (int k = 0; k < kDepth; ++k) want += left(at.row, k) * right(k, at.column);
      EXPECT_EQ(sums[static_cast<std::size_t>(lane)][static_cast<std::size_t>(i)], want);
    }
  }
}

// ldmatrix .x4: lanes 8 i to 8 i + 7 name the rows of matrix i, and lane l gets the two numbers
// 2 (l % 4) and the next of row l / 4 of each.
TEST(Mma, TheEmulatorLoadsMatricesAsDocumented) {
  alignas(16) std::array<std::array<std::uint16_t, 8>, kLanes> rows;
  for (std::size_t r = 0; r < kLanes; ++r)
    for (std::size_t k = 0; k < 8; ++k) rows[r][k] = static_cast<std::uint16_t>(8 * r + k);
  run_warp([&](int lane) {
    unsigned to[4];
    load_matrices(to, rows[static_cast<std::size_t>(lane)].data());
    for (int i = 0; i < 4; ++i) {
      const auto low = static_cast<unsigned>((8 * i + lane / 4) * 8 + lane % 4 * 2);
      EXPECT_EQ(to[i], low | (low + 1) << 16) << lane << " " << i;
    }
  });
}

TEST(Mma, LoadedMatricesAreFragments) {
  alignas(16) std::array<std::array<std::uint16_t, kDepth>, kRows> a_rows, b_columns;
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t k = 0; k < kDepth; ++k) {
      a_rows[r][k] = f32_to_bf16(left(static_cast<int>(r), static_cast<int>(k)));
      b_columns[r][k] = f32_to_bf16(right(static_cast<int>(k), static_cast<int>(r)));
    }
  }
  const auto half_of = [](const auto& rows, int row, int half) {
    return &rows[static_cast<std::size_t>(row)][static_cast<std::size_t>(half) * 8];
  };
  run_warp([&](int lane) {
    unsigned a[4], b[4];
    load_matrices(a, half_of(a_rows, a_row_of(lane), a_half_of(lane)));
    load_matrices(b, half_of(b_columns, b_column_of(lane), b_half_of(lane)));
    EXPECT_EQ(std::memcmp(a, registers_a(lane).data(), sizeof(a)), 0) << lane;
    EXPECT_EQ(std::memcmp(b, registers_b(lane, 0).data(), sizeof(b) / 2), 0) << lane;
    EXPECT_EQ(std::memcmp(b + 2, registers_b(lane, 8).data(), sizeof(b) / 2), 0) << lane;
  });
}

}  // namespace
}  // namespace xlstm::ops::cuda
