#include "ops/linear.hpp"

#include <iterator>
#include <span>
#include <utility>

#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/linear_plan.hpp"
#include "ops/cuda/linear_tiled.cuh"
#include "ops/cuda/sm90/matmul.hpp"
#include "xlstm/error.hpp"

namespace xlstm::ops::cuda {
namespace {

// --- Few rows: a warp has kColumns rows of W and reads each once, 8 numbers a lane at a time ---

constexpr int kFewWarps = 4;
constexpr int kFewThreads = kFewWarps * kWarp;
constexpr int kLaneNumbers = 8;
constexpr int kChunk = kWarp * kLaneNumbers;  // of a row of W, by the whole warp

// The rows of x in shared memory, so many columns at a time. Lanes find their 8 numbers in packs of
// 16 bytes; where that takes two, all first packs of a chunk lie before all second ones, so that
// neighbours read neighbouring packs.
template <class X, int kRows>
struct FewRowsTile {
  static constexpr int kColumns = kRows == 1 ? 2048 : kRows == 4 ? 1024 : 512;
  static constexpr int kPackNumbers = 16 / sizeof(X);
  static constexpr int kPacksOfLane = kLaneNumbers / kPackNumbers;
  static constexpr int kPacksOfChunk = kWarp * kPacksOfLane;

  Pack<X> packs[kRows][kColumns / kPackNumbers];

  __device__ static int place(int pack) {
    const int in_chunk = pack % kPacksOfChunk;
    return pack - in_chunk + in_chunk % kPacksOfLane * kWarp + in_chunk / kPacksOfLane;
  }
  // Columns [from, from + columns) of x, in whole chunks. Rows that x lacks repeat its last one.
  __device__ void fill(const PackedRows<X>& x, std::int64_t from, int columns) {
    if (x.aligned && columns % kChunk == 0)
      copy<true>(x, from, columns);
    else
      copy<false>(x, from, columns);
  }
  template <bool kWhole>
  __device__ void copy(const PackedRows<X>& x, std::int64_t from, int columns) {
    constexpr int kWarpsOfRow = kRows < kFewWarps ? kFewWarps / kRows : 1;
    const int thread = static_cast<int>(threadIdx.x), end = chunks_of(columns) * kPacksOfChunk;
#pragma unroll 1
    for (int t = thread / (kWarp * kWarpsOfRow); t < kRows; t += kFewWarps / kWarpsOfRow) {
      const X* const row = x.row(t < x.rows ? t : x.rows - 1) + from;
#pragma unroll(kWhole ? 4 : 1)
      for (int p = thread % (kWarp * kWarpsOfRow); p < end; p += kWarp * kWarpsOfRow) {
        const int column = p * kPackNumbers;
        Pack<X> pack;
        if constexpr (kWhole)
          pack = *reinterpret_cast<const Pack<X>*>(row + column);
        else
          load_pack(&pack, row + column, columns - column, x.aligned);
        packs[t][place(p)] = pack;
      }
    }
  }
  __device__ static int chunks_of(int columns) { return (columns + kChunk - 1) / kChunk; }

  __device__ void read(int row, int chunk, float (&to)[kLaneNumbers]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int p = 0; p < kPacksOfLane; ++p) {
      const Pack<X> pack = packs[row][chunk * kPacksOfChunk + p * kWarp + lane];
#pragma unroll
      for (int i = 0; i < kPackNumbers; ++i) to[p * kPackNumbers + i] = to_float(pack.at(i));
    }
  }
};

// Sums each of kCount values over the warp as warp_sum() would, but every step halves the values
// that a lane keeps: lane l ends with those of index l * kCount / 32 and the next ones in front.
template <int kCount, int kBits = kWarp / 2>
__device__ inline void spread_warp_sums(float* values) {
  if constexpr (kBits > 0) {
    if constexpr (kCount > 1) {
      constexpr int kHalf = kCount / 2;
      const bool upper = (threadIdx.x & kBits) != 0;
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const float keep = upper ? values[i + kHalf] : values[i];
        const float give = upper ? values[i] : values[i + kHalf];
        values[i] = keep + __shfl_xor_sync(~0U, give, kBits);
      }
      spread_warp_sums<kHalf, kBits / 2>(values);
    } else {
      values[0] += __shfl_xor_sync(~0U, values[0], kBits);
      spread_warp_sums<1, kBits / 2>(values);
    }
  }
}

template <int kRows>
constexpr int kFewRowsColumns = kRows == 1   ? 1
                                : kRows == 4 ? 2
                                             : 4;

// A lane adds its products in the order of the columns, and the lanes are added by a tree: the same
// for every row, whatever the alignment and the rows beside it.
template <class X, class W, int kRows>
__global__ void __launch_bounds__(kFewThreads)
    few_rows_kernel(PackedRows<X> x, PackedRows<W> w, Output y, std::int64_t depth) {
  constexpr int kColumns = kFewRowsColumns<kRows>;
  constexpr int kValues = kRows * kColumns;
  using Tile = FewRowsTile<X, kRows>;
  __shared__ Tile tile;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kFewWarps + threadIdx.x / kWarp) * kColumns;
  const W* rows[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const std::int64_t n = first + c < w.rows ? first + c : w.rows - 1;
    rows[c] = w.row(n) + lane * kLaneNumbers;
  }
  float sums[kValues] = {};
  for (std::int64_t from = 0; from < depth; from += Tile::kColumns) {
    const int columns =
        static_cast<int>(depth - from < Tile::kColumns ? depth - from : Tile::kColumns);
    __syncthreads();
    tile.fill(x, from, columns);
    __syncthreads();
    if (first >= w.rows) continue;
    const auto add = [&](int chunk, bool whole) {
      constexpr int kPackNumbers = 16 / sizeof(W);
      Pack<W> packs[kColumns][kLaneNumbers / kPackNumbers];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int p = 0; p < kLaneNumbers / kPackNumbers; ++p) {
          const int column = chunk * kChunk + p * kPackNumbers;
          const W* const at = rows[c] + from + column;
          if (whole)
            packs[c][p] = *reinterpret_cast<const Pack<W>*>(at);
          else
            load_pack(&packs[c][p], at, columns - column - lane * kLaneNumbers, w.aligned);
        }
      }
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        float numbers[kLaneNumbers];
        tile.read(t, chunk, numbers);
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
#pragma unroll
          for (int i = 0; i < kLaneNumbers; ++i)
            sums[t * kColumns + c] =
                fmaf(numbers[i], to_float(packs[c][i / kPackNumbers].at(i % kPackNumbers)),
                     sums[t * kColumns + c]);
      }
    };
    const int whole = w.aligned ? columns / kChunk : 0;
    constexpr int kAtOnce = kColumns == 4 ? 1 : 4 / kColumns;
#pragma unroll kAtOnce
    for (int chunk = 0; chunk < whole; ++chunk) add(chunk, true);
#pragma unroll 1
    for (int chunk = whole; chunk < Tile::chunks_of(columns); ++chunk) add(chunk, false);
  }
  if (first >= w.rows) return;  // the whole warp
  spread_warp_sums<kValues>(sums);
  constexpr int kLanesOfValue = kValues < kWarp ? kWarp / kValues : 1;
  constexpr int kValuesOfLane = kValues < kWarp ? 1 : kValues / kWarp;
  if (lane % kLanesOfValue != 0) return;
#pragma unroll
  for (int i = 0; i < kValuesOfLane; ++i) {
    const int value = lane / kLanesOfValue * kValuesOfLane + i;
    const std::int64_t n = first + value % kColumns;
    y.write(value / kColumns, n, sums[i], y.bias_of(n));
  }
}

template <class X, class W, int kRows>
void few_rows(Context& context, const Tensor& x, const Tensor& w, const Output& y) {
  constexpr int kColumns = kFewRowsColumns<kRows>;
  launch(context, "linear",
         {.x = blocks_for(w.dim(0), kFewWarps * kColumns), .threads = kFewThreads},
         few_rows_kernel<X, W, kRows>, PackedRows<X>(x), PackedRows<W>(w), y, x.dim(1));
}

// --- Tensor cores: warps of 64 x 32 outputs, kWarpRows x 4 of them a block ---

constexpr int kTensorDepth = 32;
constexpr int kTensorColumns = static_cast<int>(kLinearTensorColumns);
constexpr int kTensorWarpRows = 64, kTensorWarpColumns = 32;
constexpr int kTensorWarpsAcross = kTensorColumns / kTensorWarpColumns;

// Part of x or W in shared memory. A row is a pack longer than what it holds: then the 8 rows that
// one step of load_matrices() reads lie in different banks.
template <int kRows>
struct TensorTile {
  static constexpr int kPacks = kTensorDepth / 8;
  Pack<Bf16> packs[kRows][kPacks + 1];
};

// What a thread carries from memory to a tile. kWhole: all rows are aligned and whole packs.
template <int kRows, int kThreads, bool kWhole>
struct TensorTransfer {
  static constexpr int kPacks = TensorTile<kRows>::kPacks;
  static constexpr int kPass = kThreads / kPacks;
  Pack<Bf16> packs[kRows / kPass];

  __device__ void load(const PackedRows<Bf16>& rows, std::int64_t first, std::int64_t from,
                       std::int64_t depth) {
    const int k = static_cast<int>(threadIdx.x) % kPacks * 8;
#pragma unroll
    for (int i = 0; i < kRows / kPass; ++i) {
      const std::int64_t row = first + i * kPass + threadIdx.x / kPacks;
      const std::int64_t count = row < rows.rows ? depth - from - k : 0;
      const Bf16* const at = rows.row(row) + from + k;
      if constexpr (kWhole)
        packs[i] = count > 0 ? *reinterpret_cast<const Pack<Bf16>*>(at) : Pack<Bf16>{};
      else
        load_pack(&packs[i], at, count, false);
    }
  }
  __device__ void store(TensorTile<kRows>& tile) const {
#pragma unroll
    for (int i = 0; i < kRows / kPass; ++i)
      tile.packs[i * kPass + threadIdx.x / kPacks][threadIdx.x % kPacks] = packs[i];
  }
};

// sums += the product of a warp's rows of both tiles.
template <int kRows>
__device__ void multiply_tiles(const TensorTile<kRows>& left,
                               const TensorTile<kTensorColumns>& right, int row, int column,
                               float (&sums)[kTensorWarpRows / 16][kTensorWarpColumns / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < kTensorDepth / 16; ++k) {
    unsigned b[kTensorWarpColumns / 8][2];
#pragma unroll
    for (int j = 0; j < kTensorWarpColumns / 16; ++j) {
      unsigned four[4];
      load_matrices(four,
                    &right.packs[column + j * 16 + b_column_of(lane)][k * 2 + b_half_of(lane)]);
#pragma unroll
      for (int i = 0; i < 4; ++i) b[j * 2 + i / 2][i % 2] = four[i];
    }
#pragma unroll
    for (int i = 0; i < kTensorWarpRows / 16; ++i) {
      unsigned a[4];
      load_matrices(a, &left.packs[row + i * 16 + a_row_of(lane)][k * 2 + a_half_of(lane)]);
#pragma unroll
      for (int j = 0; j < kTensorWarpColumns / 8; ++j) mma_bf16(sums[i][j], a, b[j]);
    }
  }
}

// The next tile travels from memory while this one is multiplied.
template <int kWarpRows, bool kWhole>
__global__ void __launch_bounds__(kWarpRows* kTensorWarpsAcross* kWarp)
    tensor_kernel(PackedRows<Bf16> x, PackedRows<Bf16> w, Output y, std::int64_t depth,
                  std::int64_t row_tiles) {
  constexpr int kRows = kWarpRows * kTensorWarpRows;
  constexpr int kThreads = kWarpRows * kTensorWarpsAcross * kWarp;
  __shared__ TensorTile<kRows> left[2];
  __shared__ TensorTile<kTensorColumns> right[2];
  const TilePlace place(row_tiles, kRows, kTensorColumns);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kTensorWarpsAcross * kTensorWarpRows;
  const int column = warp % kTensorWarpsAcross * kTensorWarpColumns;
  TensorTransfer<kRows, kThreads, kWhole> of_x;
  TensorTransfer<kTensorColumns, kThreads, kWhole> of_w;
  of_x.load(x, place.row, 0, depth);
  of_w.load(w, place.column, 0, depth);
  float sums[kTensorWarpRows / 16][kTensorWarpColumns / 8][4] = {};
  int which = 0;
  for (std::int64_t from = 0; from < depth; from += kTensorDepth, which ^= 1) {
    // Nobody reads this pair of tiles any more: all have passed the last barrier.
    of_x.store(left[which]);
    of_w.store(right[which]);
    __syncthreads();
    if (from + kTensorDepth < depth) {
      of_x.load(x, place.row, from + kTensorDepth, depth);
      of_w.load(w, place.column, from + kTensorDepth, depth);
    }
    multiply_tiles(left[which], right[which], row, column, sums);
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < kTensorWarpColumns / 4; ++j) {
    const std::int64_t n = place.column + column + j / 2 * 8 + c_column(lane, j % 2);
    const float b = y.bias_of(n);
#pragma unroll
    for (int i = 0; i < kTensorWarpRows / 8; ++i)
      y.write(place.row + row + i * 8 + c_row(lane, 0), n, sums[i / 2][j / 2][i % 2 * 2 + j % 2],
              b);
  }
}

template <int kWarpRows>
void tensor_cores(Context& context, const Tensor& x, const Tensor& w, const Output& y) {
  constexpr int kRows = kWarpRows * kTensorWarpRows;
  const PackedRows<Bf16> xs(x), ws(w);
  const std::int64_t row_tiles = blocks_for(x.dim(0), kRows), depth = x.dim(1);
  const bool whole = xs.aligned && ws.aligned && depth % 8 == 0;
  launch(context, "linear",
         {.x = row_tiles * blocks_for(w.dim(0), kTensorColumns),
          .threads = kWarpRows * kTensorWarpsAcross * kWarp},
         whole ? tensor_kernel<kWarpRows, true> : tensor_kernel<kWarpRows, false>, xs, ws, y, depth,
         row_tiles);
}

/// A matrix of a group and its outputs.
struct Part {
  Tensor w;
  Output y;
};

template <class X, class W>
void few_rows(Context& context, const Tensor& x, const Part& part, int held) {
  switch (held) {
    case 1: return few_rows<X, W, 1>(context, x, part.w, part.y);
    case 4: return few_rows<X, W, 4>(context, x, part.w, part.y);
    case 8: return few_rows<X, W, 8>(context, x, part.w, part.y);
    default: return few_rows<X, W, 16>(context, x, part.w, part.y);
  }
}

/// @param parts  of one type, at most TiledGroup::kMost
template <class X, class W>
void multiply(Context& context, const Tensor& x, std::span<const Part> parts) {
  std::int64_t outputs = 0;
  for (const Part& part : parts) outputs += part.w.dim(0);
  const auto plan_of = [&](std::int64_t count) {
    return plan_linear(x.dim(0), count, x.dtype, parts[0].w.dtype);
  };
  const LinearPlan together = plan_of(outputs);
  if (together.kernel == LinearKernel::tiled) {
    TiledGroup<PackedRows<W>> group;
    for (const Part& part : parts) group.add(PackedRows<W>(part.w), part.y);
    if (together.rows == 64) return tiled<4>(context, PackedRows<X>(x), group, x.dim(1));
    return tiled<8>(context, PackedRows<X>(x), group, x.dim(1));
  }
  for (const Part& part : parts) {
    const LinearPlan plan = plan_of(part.w.dim(0));
    if (plan.kernel == LinearKernel::few_rows)
      few_rows<X, W>(context, x, part, plan.rows);
    else if (plan.rows == 64)
      tensor_cores<1>(context, x, part.w, part.y);
    else
      tensor_cores<2>(context, x, part.w, part.y);
  }
}

}  // namespace

void linear(Context& context, const LinearArgs& a) {
  if (a.x.dim(0) == 0) return;
  const bool few = a.x.dim(0) <= kLinearFewRows;
  if (few && a.y.dtype == DType::f32 && linear_of_few_tokens(context, a)) return;
  if (!few && level(context.device()) == Level::sm90 &&
      product(
          context,
          {.x = a.x, .w = a.w, .b = a.b, .y = a.y, .accumulate = a.accumulate, .packed = a.packed}))
    return;
  Part parts[TiledGroup<PackedRows<float>>::kMost];
  std::size_t count = 0;
  const auto multiply_parts = [&] {
    if (count == 0) return;
    const std::span<const Part> some(parts, std::exchange(count, 0));
    with_type(some[0].w.dtype, [&](auto type) {
      using W = decltype(type);
      if (a.x.dtype == DType::bf16)
        multiply<Bf16, W>(context, a.x, some);
      else
        multiply<float, W>(context, a.x, some);
    });
  };
  std::int64_t first = 0;
  for (std::size_t i = 0; i < a.w.size(); ++i) {
    const Tensor& w = a.w[i];
    const Output y(a.y.cols(first, w.dim(0)), a.b.empty() ? nullptr : &a.b[i], a.accumulate);
    first += w.dim(0);
    if (w.dim(0) == 0) continue;
    if (!w)  // a model keeps packed weights alone only where kernels read them
      throw Error(ErrorCode::internal, "linear: no kernel of packed weights takes " +
                                           to_string(a.x) + " and gives " + to_string(a.y));
    if (count == std::size(parts) || (count > 0 && parts[0].w.dtype != w.dtype)) multiply_parts();
    parts[count++] = {w, y};
  }
  multiply_parts();
}

void linear_swiglu(Context& context, const LinearSwigluArgs& a) {
  if (a.x.dim(0) == 0) return;
  if (level(context.device()) == Level::sm90 &&
      product(context,
              {.x = a.x, .w = a.w, .b = a.b, .y = a.y, .swiglu = true, .packed = a.packed}))
    return;
  composed::linear_swiglu(context, a);
}

}  // namespace xlstm::ops::cuda
