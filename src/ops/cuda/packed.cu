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
constexpr int kPlaces = 16;                         // of a row of a tile: (a, i)
constexpr int kNumbers = Tile::kColumns / kPlaces;  // of a thread in a tile
constexpr int kTileThreads = Tile::kRows * kPlaces, kTileWarps = kTileThreads / kWarp;
constexpr int kTiles = 4;  // at once: a matrix has few blocks
constexpr int kThreads = kTiles * kTileThreads;

// Of the places of a row in a tile, the same in each.
template <class Combine>
__device__ unsigned over_places(unsigned value, Combine combine) {
  for (int step = kPlaces / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(~0U, value, step));
  return value;
}

// A block has the tiles of 8 rows, a thread 8 numbers of every fourth.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(Matrix<const Bf16> w, int rows, int columns, Matrix<unsigned char> tiles,
                unsigned* scales, int* left_out) {
  __shared__ unsigned tops[kTiles][Tile::kRows], of_tops[PackedRow::kTops][kTiles][Tile::kRows];
  __shared__ int of_warps[kTiles][kTileWarps], lost_by[kThreads / kWarp];
  __shared__ unsigned patches[kNumbers][kThreads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const int turn = thread / kTileThreads, in_tile = thread % kTileThreads;
  const int r = in_tile / kPlaces, place = in_tile % kPlaces;
  const int row = static_cast<int>(blockIdx.x) * Tile::kRows + r;
  const auto bits = [&](int column) -> unsigned { return w.row(row)[column].bits; };
  const int first = row < rows ? turn * kPlaces + place : columns;
  unsigned top = 0;
  for (int c = first; c < columns; c += kTiles * kPlaces)
    top = max(top, PackedRow::exponent(bits(c)));
  top = over_places(top, [](unsigned x, unsigned y) { return max(x, y); });
  if (place == 0) tops[turn][r] = top;
  __syncthreads();
  for (const auto& of_turn : tops) top = max(top, of_turn[r]);
  unsigned found[PackedRow::kTops] = {};
  for (int c = first; c < columns; c += kTiles * kPlaces)
    if (PackedRow{top}.lists(PackedRow::exponent(bits(c)))) ++found[0];
  const auto sum = [](unsigned x, unsigned y) { return x + y; };
  found[0] = over_places(found[0], sum);
  if (place == 0) of_tops[0][turn][r] = found[0];
  __syncthreads();
  int all_listed[PackedRow::kTops] = {};
  for (const auto& of_turn : of_tops[0]) all_listed[0] += static_cast<int>(of_turn[r]);
  // The other tops count in few rows: a warp has two.
  const bool asks = PackedRow::asks(all_listed[0], columns);
  if (__any_sync(~0U, asks))
    for (int c = first; c < columns; c += kTiles * kPlaces) {
      const unsigned exponent = PackedRow::exponent(bits(c));
#pragma unroll
      for (unsigned below = 1; below < PackedRow::kTops; ++below)
        if (below < top && PackedRow{top - below}.lists(exponent)) ++found[below];
    }
#pragma unroll
  for (int below = 1; below < PackedRow::kTops; ++below) {
    found[below] = over_places(found[below], sum);
    if (place == 0) of_tops[below][turn][r] = found[below];
  }
  __syncthreads();
#pragma unroll
  for (int below = 1; below < PackedRow::kTops; ++below)
    for (const auto& of_turn : of_tops[below]) all_listed[below] += static_cast<int>(of_turn[r]);
  const PackedRow packed_row = PackedRow::best(top, all_listed, columns);
  if (row < rows && turn == 0 && place == 0) scales[row] = packed_row.scale_bits();

  const int a = place / 4, i = place % 4;
  int lost = 0;
  for (int some = 0; some < columns; some += kTiles * Tile::kColumns) {
    const int from = some + turn * Tile::kColumns;
    unsigned char* const tile = tiles.row(blockIdx.x) + from / Tile::kColumns * Tile::kBytes;
    const auto column_of = [&](int n) { return n / 2 * 32 + a * 8 + i * 2 + n % 2; };
    const auto is_there = [&](int n) { return row < rows && from + column_of(n) < columns; };
    unsigned read[kNumbers] = {};  // all before any is used
#pragma unroll
    for (int n = 0; n < kNumbers; ++n)
      if (is_there(n)) read[n] = bits(from + column_of(n));
    unsigned words[3] = {};
    int count = 0;
#pragma unroll
    for (int n = 0; n < kNumbers; ++n) {
      const int column = column_of(n);
      if (!is_there(n)) continue;
      const PackedNumber number(read[n], packed_row);
      Tile::put_pair(words, n / 2, number.own << n % 2 * 16);
      if (number.listed && number.exact)
        patches[count++][thread] = Tile::patch(r, column, number.patch);
      else if (number.listed)
        ++lost;
    }
    int upto = count;  // of this warp's threads, this one the last
    for (int step = 1; step < kWarp; step *= 2) {
      const int earlier = __shfl_up_sync(~0U, upto, step);
      if (lane >= step) upto += earlier;
    }
    if (lane == kWarp - 1) of_warps[turn][in_tile / kWarp] = upto;
    __syncthreads();
    int before = upto - count, all = 0;
    for (int warp = 0; warp < kTileWarps; ++warp) {
      before += warp < in_tile / kWarp ? of_warps[turn][warp] : 0;
      all += of_warps[turn][warp];
    }
    if (from < columns) {
      unsigned* const list = reinterpret_cast<unsigned*>(tile + Tile::kPatches);
      for (int p = 0; p < count; ++p) {
        if (before + p < Tile::kMostPatches)
          list[before + p] = patches[p][thread];
        else
          ++lost;
      }
      if (in_tile >= all && in_tile < Tile::kMostPatches) list[in_tile] = Tile::kNoPatch;
      *reinterpret_cast<uint2*>(tile + Tile::two_words_at(r, a, i)) = {words[0], words[1]};
      *reinterpret_cast<unsigned*>(tile + Tile::third_word_at(r, a, i)) = words[2];
    }
    __syncthreads();
  }
  for (int step = kWarp / 2; step > 0; step /= 2) lost += __shfl_xor_sync(~0U, lost, step);
  if (lane == 0) lost_by[thread / kWarp] = lost;
  __syncthreads();
  if (thread > 0) return;
  for (int warp = 1; warp < kThreads / kWarp; ++warp) lost += lost_by[warp];
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
