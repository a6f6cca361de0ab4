// Numbers to e4m3, and their products where there is no kernel of tensor cores.

#include "ops/e4m3.hpp"

#include <algorithm>

#include "ops/cuda/device/e4m3.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/linear_tiled.cuh"
#include "ops/cuda/sm90/matmul.hpp"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;

/// The largest of the block's values, in every thread.
__device__ float block_most(float x) {
  __shared__ float partial[kThreads / kWarp];
  for (int bits = kWarp / 2; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(~0U, x, bits));
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  float most = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) most = fmaxf(most, partial[w]);
  return most;
}

// A block has a row and reads it twice.
template <class X>
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(Matrix<const X> x, Matrix<E4m3> y, float* scales, std::int64_t width) {
  grid_wait();
  grid_trigger();
  const X* row = x.row(blockIdx.x);
  float most = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads)
    most = fmaxf(most, fabsf(to_float(row[i])));
  const E4m3Scale s(block_most(most));
  if (threadIdx.x == 0) scales[blockIdx.x] = s.scale;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads)
    store(y.row(blockIdx.x) + i, to_float(row[i]) * s.factor);
}

// The same of aligned rows of bf16, which stay in registers: kPacks of 8
// numbers a thread.
constexpr int kPackNumbers = 8;

template <int kPacks>
__global__ void __launch_bounds__(kThreads)
    quantise_packs_kernel(Matrix<const Bf16> x, Matrix<E4m3> y, float* scales, int width) {
  grid_wait();
  const Bf16* row = x.row(blockIdx.x);
  Pack<Bf16> packs[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int at = (p * kThreads + static_cast<int>(threadIdx.x)) * kPackNumbers;
    packs[p] = {};
    if (at < width) packs[p] = *reinterpret_cast<const Pack<Bf16>*>(row + at);
  }
  grid_trigger();
  float most = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int i = 0; i < kPackNumbers; ++i) most = fmaxf(most, fabsf(to_float(packs[p].at(i))));
  const E4m3Scale s(block_most(most));
  if (threadIdx.x == 0) scales[blockIdx.x] = s.scale;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int at = (p * kThreads + static_cast<int>(threadIdx.x)) * kPackNumbers;
    if (at >= width) continue;
    E4m3 codes[kPackNumbers];
#pragma unroll
    for (int i = 0; i < kPackNumbers; ++i) store(codes + i, to_float(packs[p].at(i)) * s.factor);
    uint2 both;
    std::memcpy(&both, codes, sizeof(both));
    *reinterpret_cast<uint2*>(y.row(blockIdx.x) + at) = both;
  }
}

// A warp has a run: 4 numbers a lane. kPacked: rows lie so that a lane's 4 are
// one access.
template <class X, bool kPacked>
__global__ void __launch_bounds__(kThreads)
    quantise_runs_kernel(Matrix<const X> x, Matrix<E4m3> y, Matrix<float> scales, int width) {
  grid_wait();
  grid_trigger();
  const int run = static_cast<int>(blockIdx.y * (kThreads / kWarp) + threadIdx.x / kWarp);
  const int at = run * static_cast<int>(kE4m3Run) + static_cast<int>(threadIdx.x) % kWarp * 4;
  if (run * kE4m3Run >= width) return;
  Pack<X, 4> pack;
  load_pack(&pack, x.row(blockIdx.x) + at, width - at, kPacked);
  float most = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) most = fmaxf(most, fabsf(to_float(pack.at(i))));
  for (int bits = kWarp / 2; bits > 0; bits /= 2)
    most = fmaxf(most, __shfl_xor_sync(~0U, most, bits));
  const E4m3Scale s(most);
  if (threadIdx.x % kWarp == 0) scales.row(run)[blockIdx.x] = s.scale;
  E4m3 codes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) store(codes + i, to_float(pack.at(i)) * s.factor);
  E4m3* to = y.row(blockIdx.x) + at;
  if (kPacked && at + 4 <= width) {
    unsigned word = 0;
    std::memcpy(&word, codes, sizeof(word));
    *reinterpret_cast<unsigned*>(to) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (at + i < width) to[i] = codes[i];
}

// A block of the grid has a block of weights.
template <class X>
__global__ void __launch_bounds__(kThreads)
    quantise_blocks_kernel(Matrix<const X> x, Matrix<E4m3> y, Matrix<float> scales,
                           std::int64_t rows, std::int64_t width) {
  grid_wait();
  grid_trigger();
  constexpr int kRun = static_cast<int>(kE4m3Run);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kRun,
                     column = static_cast<std::int64_t>(blockIdx.y) * kRun + threadIdx.x % kRun;
  const std::int64_t end = first + kRun < rows ? first + kRun : rows;
  float most = 0;
  if (column < width)
    for (std::int64_t r = first + threadIdx.x / kRun; r < end; r += kThreads / kRun)
      most = fmaxf(most, fabsf(to_float(x.row(r)[column])));
  const E4m3Scale s(block_most(most));
  if (threadIdx.x == 0) scales.row(blockIdx.x)[blockIdx.y] = s.scale;
  if (column < width)
    for (std::int64_t r = first + threadIdx.x / kRun; r < end; r += kThreads / kRun)
      store(y.row(r) + column, to_float(x.row(r)[column]) * s.factor);
}

/// Rows of e4m3 numbers, for linear_tiled.cuh.
struct ScaledRows : PackedRows<E4m3> {
  const float* scales = nullptr;
  std::int64_t row_step = 0, run_step = 0;
  int share = 1;  ///< rows that share a scale

  ScaledRows() = default;
  explicit ScaledRows(const E4m3Matrix& m)
      : PackedRows<E4m3>(m.codes),
        scales(m.scales.as<float>()),
        row_step(m.row_step()),
        run_step(m.run_step()),
        share(m.kind == E4m3Scales::blocks ? static_cast<int>(kE4m3Run) : 1) {}
};
__device__ inline float scale_of(const ScaledRows& m, std::int64_t row, std::int64_t from) {
  return row < m.rows ? m.scales[row / m.share * m.row_step + from / kE4m3Run * m.run_step] : 0.0F;
}

struct E4m3Parts {
  Tensor codes[kMostE4m3Weights], scales[kMostE4m3Weights];
  std::size_t count;
  explicit E4m3Parts(std::span<const E4m3Matrix> w) : count(w.size()) {
    for (std::size_t i = 0; i < count; ++i) {
      codes[i] = w[i].codes;
      scales[i] = w[i].scales;
    }
  }
};

}  // namespace

void quantise_e4m3(Context& context, const QuantiseE4m3Args& a) {
  if (a.x.count() == 0) return;
  constexpr const char* kName = "quantise_e4m3";
  const std::int64_t rows = a.x.dim(0), width = a.x.dim(1);
  const Matrix<E4m3> y(a.y.codes);
  if (a.y.kind != E4m3Scales::rows) {
    const bool runs = a.y.kind == E4m3Scales::runs;
    const Matrix<float> scales(a.y.scales);
    const bool packed = on_bytes(a.x, 4 * size_of(a.x.dtype)) && on_bytes(a.y.codes, 4);
    return with_type(a.x.dtype, [&](auto type) {
      using X = decltype(type);
      const Matrix<const X> x(a.x);
      if (runs)
        launch(context, kName,
               {.x = rows,
                .y = blocks_for(blocks_for(width, kE4m3Run), kThreads / kWarp),
                .threads = kThreads,
                .overlap = true},
               packed ? quantise_runs_kernel<X, true> : quantise_runs_kernel<X, false>, x, y,
               scales, static_cast<int>(width));
      else
        launch(context, kName,
               {.x = blocks_for(rows, kE4m3Run),
                .y = blocks_for(width, kE4m3Run),
                .threads = kThreads,
                .overlap = true},
               quantise_blocks_kernel<X>, x, y, scales, rows, width);
    });
  }
  const Grid grid{.x = rows, .threads = kThreads, .overlap = true};
  auto* scales = a.y.scales.as<float>();
  constexpr int kFew = 2, kMany = 6, kPass = kThreads * kPackNumbers;
  if (a.x.dtype == DType::bf16 && width % kPackNumbers == 0 && width <= kMany * kPass &&
      on_16_bytes(a.x) && on_bytes(a.y.codes, 8))
    return launch(
        context, kName, grid,
        width <= kFew * kPass ? quantise_packs_kernel<kFew> : quantise_packs_kernel<kMany>,
        Matrix<const Bf16>(a.x), y, scales, static_cast<int>(width));
  with_type(a.x.dtype, [&](auto type) {
    using X = decltype(type);
    launch(context, kName, grid, quantise_kernel<X>, Matrix<const X>(a.x), y, scales, width);
  });
}

// Where there is no kernel of e4m3 numbers, float32 products of what they say.
void linear_e4m3(Context& context, const LinearE4m3Args& a) {
  if (a.y.count() == 0) return;
  const E4m3Parts w(a.w);
  if (level(context.device()) == Level::sm90 && product(context, {.x = a.x.codes,
                                                                  .w = {w.codes, w.count},
                                                                  .b = a.b,
                                                                  .y = a.y,
                                                                  .accumulate = a.accumulate,
                                                                  .x_scales = a.x.scales,
                                                                  .w_scales = {w.scales, w.count}}))
    return;
  static_assert(kMostE4m3Weights <= TiledGroup<ScaledRows>::kMost);
  TiledGroup<ScaledRows> group;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < w.count; ++i) {
    const std::int64_t outputs = w.codes[i].dim(0);
    const Output y(a.y.cols(first, outputs), a.b.empty() ? nullptr : &a.b[i], a.accumulate);
    first += outputs;
    if (outputs > 0) group.add(ScaledRows(a.w[i]), y);
  }
  const std::int64_t rows = std::max(a.x.codes.dim(0), kLinearFewRows + 1);
  if (plan_linear(rows, first, DType::f32, DType::f32).rows == 128)
    tiled<8>(context, ScaledRows(a.x), group, a.x.codes.dim(1));
  else
    tiled<4>(context, ScaledRows(a.x), group, a.x.codes.dim(1));
}

void linear_swiglu_e4m3(Context& context, const LinearSwigluE4m3Args& a) {
  if (a.x.codes.dim(0) == 0) return;
  const E4m3Parts w(a.w);
  if (level(context.device()) == Level::sm90 && product(context, {.x = a.x.codes,
                                                                  .w = {w.codes, w.count},
                                                                  .b = a.b,
                                                                  .y = a.y ? a.y : a.coded.codes,
                                                                  .swiglu = true,
                                                                  .x_scales = a.x.scales,
                                                                  .w_scales = {w.scales, w.count},
                                                                  .y_scales = a.coded.scales}))
    return;
  composed::linear_swiglu_e4m3(context, a);
}

}  // namespace xlstm::ops::cuda
