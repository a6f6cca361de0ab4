// Weights of bf16 to 12 bits each. Models do it once, when they are loaded.

#include "ops/packed.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/packed_number.hpp"

namespace xlstm::ops::cuda {
namespace {

using Tile = PackedTile;
constexpr int kPlaces = 16;  // of a row of a tile: (a, i)
constexpr int kThreads = Tile::kRows * kPlaces;
constexpr int kNumbers = Tile::kColumns / kPlaces;  // of a thread in a tile

// A block has the tiles of 8 rows, a thread 8 numbers of each.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(Matrix<const Bf16> w, int rows, int columns, Matrix<unsigned char> tiles,
                unsigned* scales, int* left_out) {
  __shared__ unsigned tops[kThreads];
  __shared__ int listed[kThreads], of_tops[PackedRow::kTops][kThreads];
  __shared__ unsigned patches[kNumbers][kThreads];
  const int thread = static_cast<int>(threadIdx.x), r = thread / kPlaces, place = thread % kPlaces;
  const int row = static_cast<int>(blockIdx.x) * Tile::kRows + r;
  const auto bits = [&](int column) -> unsigned { return w.row(row)[column].bits; };
  unsigned top = 0;
  if (row < rows)
    for (int c = place; c < columns; c += kPlaces) {
      const unsigned exponent = PackedRow::exponent(bits(c));
      top = exponent > top ? exponent : top;
    }
  tops[thread] = top;
  __syncthreads();
  for (int i = 0; i < kPlaces; ++i) {
    const unsigned other = tops[r * kPlaces + i];
    top = other > top ? other : top;
  }
  int all_listed[PackedRow::kTops] = {};
  if (row < rows)
    for (int c = place; c < columns; c += kPlaces) {
      const unsigned exponent = PackedRow::exponent(bits(c));
#pragma unroll
      for (unsigned below = 0; below < PackedRow::kTops; ++below)
        if (below < top && PackedRow{top - below}.lists(exponent)) ++all_listed[below];
    }
#pragma unroll
  for (int below = 0; below < PackedRow::kTops; ++below) of_tops[below][thread] = all_listed[below];
  __syncthreads();
#pragma unroll
  for (int below = 0; below < PackedRow::kTops; ++below) {
    all_listed[below] = 0;
    for (int i = 0; i < kPlaces; ++i) all_listed[below] += of_tops[below][r * kPlaces + i];
  }
  const PackedRow packed_row = PackedRow::best(top, all_listed, columns);
  if (row < rows && place == 0) scales[row] = packed_row.scale_bits();

  const int a = place / 4, i = place % 4;
  int lost = 0;
  for (int from = 0; from < columns; from += Tile::kColumns) {
    unsigned char* const tile = tiles.row(blockIdx.x) + from / Tile::kColumns * Tile::kBytes;
    unsigned words[3] = {};
    int count = 0;
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      const int column = n / 2 * 32 + a * 8 + i * 2 + n % 2;
      if (row >= rows || from + column >= columns) continue;
      const PackedNumber number(bits(from + column), packed_row);
      Tile::put_pair(words, n / 2, number.own << n % 2 * 16);
      if (number.listed && number.exact)
        patches[count++][thread] = Tile::patch(r, column, number.patch);
      else if (number.listed)
        ++lost;
    }
    listed[thread] = count;
    __syncthreads();
    int before = 0, all = 0;
    for (int t = 0; t < kThreads; ++t) {
      before += t < thread ? listed[t] : 0;
      all += listed[t];
    }
    unsigned* const list = reinterpret_cast<unsigned*>(tile + Tile::kPatches);
    for (int p = 0; p < count; ++p) {
      if (before + p < Tile::kMostPatches)
        list[before + p] = patches[p][thread];
      else
        ++lost;
    }
    if (thread >= all && thread < Tile::kMostPatches) list[thread] = Tile::kNoPatch;
    *reinterpret_cast<uint2*>(tile + Tile::two_words_at(r, a, i)) = {words[0], words[1]};
    *reinterpret_cast<unsigned*>(tile + Tile::third_word_at(r, a, i)) = words[2];
    __syncthreads();
  }
  listed[thread] = lost;
  __syncthreads();
  if (thread > 0) return;
  for (int t = 1; t < kThreads; ++t) lost += listed[t];
  left_out[blockIdx.x] = lost;
}

}  // namespace

void pack_weights(Context& context, const PackWeightsArgs& a) {
  launch(context, "pack_weights", {.x = a.packed.tiles.dim(0), .threads = kThreads}, pack_kernel,
         Matrix<const Bf16>(a.w), static_cast<int>(a.w.dim(0)), static_cast<int>(a.w.dim(1)),
         Matrix<unsigned char>(a.packed.tiles), static_cast<unsigned*>(a.packed.scales.data),
         a.left_out.as<int>());
}

}  // namespace xlstm::ops::cuda

bool xlstm::ops::reads_packed(Device device) { return cuda::level(device) == cuda::Level::sm90; }
