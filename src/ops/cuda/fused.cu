#include "ops/fused.hpp"

#include <type_traits>

#include "ops/cuda/device/gate.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/device/weight_group.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/linear_plan.hpp"
#include "ops/cuda/mlstm_plan.hpp"
#include "ops/cuda/norm_few.hpp"
#include "ops/cuda/sm90/few_rows.hpp"
#include "ops/cuda/sm90/mlstm_step.hpp"
#include "ops/linear.hpp"
#include "ops/norm.hpp"

namespace xlstm::ops::cuda {
namespace {

// Blocks stay for the whole product. Each first makes the rows that all of them multiply, in shared
// memory and from what the kernel before has left in the second-level cache; then its warps take
// rows of W in turn and read each once.
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kLaneNumbers = 8;
constexpr int kChunk = kWarp * kLaneNumbers;  // of a row of W, by a whole warp
constexpr std::size_t kMostShared = std::size_t{200} << 10;

int padded(std::int64_t k) { return static_cast<int>((k + kChunk - 1) / kChunk * kChunk); }

// Sums are spelt out as fmaf(): the compiler must not choose otherwise for another number of rows.

// --- before the product: kRows rows [0, width) in `tile`, `padded` apart; by the whole block ---

/// x as it is
template <class In>
struct Copied {
  Matrix<const In> x;
  int width;

  template <class X, int kRows>
  __device__ void fill(X* tile, int padded, int rows, float*) const {
    for (int d = threadIdx.x; d < padded; d += kThreads)
#pragma unroll
      for (int t = 0; t < kRows; ++t)
        tile[t * padded + d] = t < rows && d < width ? x.row(t)[d] : X{};
  }
};

/// x / rms(x) w + b
struct RmsNormed {
  Matrix<const float> x;
  Weights w, b;
  float eps;
  int width;

  /// @param scales  1 / rms of every row, for the gates
  template <class X, int kRows>
  __device__ void fill(X* tile, int padded, int rows, float* scales) const {
    __shared__ float partial[kRows][kWarps];
    float sums[kRows] = {};
    for (int d = threadIdx.x; d < width; d += kThreads)
#pragma unroll
      for (int t = 0; t < kRows; ++t)
        if (t < rows) {
          const float value = x.row(t)[d];
          sums[t] = fmaf(value, value, sums[t]);
        }
    const int warp = threadIdx.x / kWarp;
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const float sum = warp_sum(sums[t]);
      if (threadIdx.x % kWarp == 0) partial[t][warp] = sum;
    }
    __syncthreads();
    for (int t = threadIdx.x; t < rows; t += kThreads) {
      float sum = 0;
      for (int i = 0; i < kWarps; ++i) sum += partial[t][i];
      scales[t] = reciprocal_root(sum / static_cast<float>(width), eps);
    }
    __syncthreads();
    for (int d = threadIdx.x; d < padded; d += kThreads)
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        const bool exists = t < rows && d < width;
        store(tile + t * padded + d,
              exists ? fmaf(x.row(t)[d] * scales[t], w.at(d), b.at_or(0.0F, d)) : 0.0F);
      }
  }
};

/// sigmoid(o) LayerNorm(h) of every head; a warp takes a row and head.
struct HeadNormed {
  Matrix<const float> h, o;
  Weights w, b;
  float eps;
  int heads, width;

  template <class X, int kRows>
  __device__ void fill(X* tile, int padded, int rows, float*) const {
    const int lane = threadIdx.x % kWarp, dv = width / heads;
    for (int i = threadIdx.x / kWarp; i < kRows * heads; i += kWarps) {
      const int t = i / heads, first = i % heads * dv;
      X* to = tile + t * padded + first;
      if (t >= rows) {
        for (int d = lane; d < dv; d += kWarp) store(to + d, 0.0F);
        continue;
      }
      const float* row = h.row(t) + first;
      const float* gate = o.row(t) + first;
      float sum = 0, squares = 0;
      for (int d = lane; d < dv; d += kWarp) sum += row[d];
      const float mean = warp_sum(sum) / static_cast<float>(dv);
      for (int d = lane; d < dv; d += kWarp) squares = fmaf(row[d] - mean, row[d] - mean, squares);
      const float scale = reciprocal_root(warp_sum(squares) / static_cast<float>(dv), eps);
      for (int d = lane; d < dv; d += kWarp) {
        const float value =
            fmaf((row[d] - mean) * scale, w.at(first + d), b.at_or(0.0F, first + d));
        store(to + d, sigmoid(gate[d]) * value);
      }
    }
    for (int i = threadIdx.x; i < kRows * (padded - width); i += kThreads)
      store(tile + i / (padded - width) * padded + width + i % (padded - width), 0.0F);
  }
};

// --- after the product ---

struct Plain {
  static constexpr bool kPairs = false;
  Matrix<float> y;
  bool accumulate;
  __device__ void finish(std::int64_t t, std::int64_t n, float value) const {
    float* to = y.row(t) + n;
    *to = accumulate ? *to + value : value;
  }
};

/// The same, and the gates of every head from the row before it is rounded.
struct WithGates : Plain {
  Gate input, forget;
  int heads;  ///< 0: no gates
  float cap;
};

template <class Y>
struct Gated {
  static constexpr bool kPairs = true;
  Matrix<Y> y;
  __device__ void finish(std::int64_t t, std::int64_t n, float gate, float up) const {
    store(y.row(t) + n, gate / (1.0F + expf(-gate)) * up);
  }
};

/// A normed row before it is rounded.
struct UnroundedRow {
  const float* x;
  float scale;
  Weights w, b;
  __device__ float at(int d) const { return fmaf(x[d] * scale, w.at(d), b.at_or(0.0F, d)); }
};

template <int kRows>
constexpr int kColumns = kRows <= 4 ? 2 : 4;

// y[t][n] = rows of `before` times rows of W. With pairs, output n is made of rows n and `half` +
// n.
template <class X, class W, int kRows, class Before, class After>
__global__ void __launch_bounds__(kThreads, 1)
    fused_kernel(Before before, WeightGroup<W> w, After after, int rows, int padded) {
  constexpr bool kGates = std::is_same_v<After, WithGates>;
  XLSTM_DYNAMIC_SHARED(X, tile);
  __shared__ float scales[kRows];
  before.template fill<X, kRows>(tile, padded, rows, scales);
  __syncthreads();

  constexpr int kOutputs = After::kPairs ? kColumns<kRows> / 2 : kColumns<kRows>;
  constexpr int kPackNumbers = 16 / static_cast<int>(sizeof(W));
  constexpr int kPacks = kLaneNumbers / kPackNumbers;
  constexpr int kAtOnce = kRows > 1        ? 1
                          : sizeof(W) == 2 ? 4
                                           : 2;  // chunks, to have loads in flight
  const int lane = threadIdx.x % kWarp;
  const std::int64_t outputs = After::kPairs ? w.rows / 2 : w.rows;
  const std::int64_t products = (outputs + kOutputs - 1) / kOutputs;
  std::int64_t gates = 0;  // they come first: they take longest
  if constexpr (kGates) gates = 2 * after.heads;
  for (std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       item < gates + products; item += static_cast<std::int64_t>(gridDim.x) * kWarps) {
    if constexpr (kGates) {
      if (item < gates) {
        const auto i = static_cast<int>(item);
        const Gate& gate = i < after.heads ? after.input : after.forget;
        const int head = i % after.heads;
#pragma unroll 1
        for (int t = 0; t < rows; ++t) {
          const UnroundedRow row{before.x.row(t), scales[t], before.w, before.b};
          const float dot = warp_sum(lane_dot(gate, head, row, before.width));
          if (lane == 0) finish_gate(gate, t, head, dot, after.cap);
        }
        continue;
      }
    }
    const std::int64_t first = (item - gates) * kOutputs;
    const W* from[kColumns<kRows>];
#pragma unroll
    for (int c = 0; c < kColumns<kRows>; ++c) {
      const std::int64_t n = first + (After::kPairs ? c / 2 : c);
      const std::int64_t output = n < outputs ? n : outputs - 1;
      from[c] =
          w.row(After::kPairs && c % 2 == 1 ? outputs + output : output) + lane * kLaneNumbers;
    }
    float sums[kRows * kColumns<kRows>] = {};
    const int width = before.width - lane * kLaneNumbers;  // of what is this lane's
#pragma unroll(kAtOnce)
    for (int at = 0; at < padded; at += kChunk) {
      Pack<W> packs[kColumns<kRows>][kPacks];
#pragma unroll
      for (int c = 0; c < kColumns<kRows>; ++c)
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
          packs[c][p] = {};
          if (at < width) packs[c][p] = reinterpret_cast<const Pack<W>*>(from[c] + at)[p];
        }
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        const X* row = tile + t * padded + at + lane * kLaneNumbers;
        float numbers[kLaneNumbers];
#pragma unroll
        for (int p = 0; p < static_cast<int>(kLaneNumbers * sizeof(X) / 16); ++p) {
          const Pack<X> pack = reinterpret_cast<const Pack<X>*>(row)[p];
#pragma unroll
          for (int i = 0; i < static_cast<int>(16 / sizeof(X)); ++i)
            numbers[p * static_cast<int>(16 / sizeof(X)) + i] = to_float(pack.at(i));
        }
#pragma unroll
        for (int c = 0; c < kColumns<kRows>; ++c)
#pragma unroll
          for (int i = 0; i < kLaneNumbers; ++i)
            sums[t * kColumns<kRows> + c] =
                fmaf(numbers[i], to_float(packs[c][i / kPackNumbers].at(i % kPackNumbers)),
                     sums[t * kColumns<kRows> + c]);
      }
    }
    // Lane v keeps value v, and of a pair the one after it too.
    float mine = 0, next = 0;
#pragma unroll
    for (int v = 0; v < kRows * kColumns<kRows>; ++v) {
      const float sum = warp_sum(sums[v]);
      if (lane == v) mine = sum;
      if (lane == v - 1) next = sum;
    }
    const int t = lane / kColumns<kRows>, c = lane % kColumns<kRows>;
    if (t >= rows || t >= kRows) continue;
    if constexpr (After::kPairs) {
      const std::int64_t n = first + c / 2;
      if (c % 2 == 0 && n < outputs)
        after.finish(t, n, mine + w.bias_of(n), next + w.bias_of(outputs + n));
    } else {
      const std::int64_t n = first + c;
      if (n < outputs) after.finish(t, n, mine + w.bias_of(n));
    }
  }
}

template <class X, class W, int kRows, class Before, class After>
void run_rows(Context& context, const char* name, const Before& before, const WeightGroup<W>& w,
              const After& after, std::int64_t rows) {
  constexpr int kOutputs = After::kPairs ? kColumns<kRows> / 2 : kColumns<kRows>;
  const int row = padded(before.width);
  const std::size_t shared = static_cast<std::size_t>(kRows) * row * sizeof(X);
  const std::int64_t outputs = After::kPairs ? w.rows / 2 : w.rows;
  std::int64_t items = blocks_for(outputs, kOutputs);
  if constexpr (std::is_same_v<After, WithGates>) items += 2 * after.heads;
  const std::int64_t most = multiprocessors(context.device());  // registers allow one block on each
  const std::int64_t blocks = blocks_for(items, kWarps);
  if (blocks == 0) return;  // W has no rows
  launch(context, name, {.x = blocks < most ? blocks : most, .threads = kThreads, .shared = shared},
         fused_kernel<X, W, kRows, Before, After>, before, w, after, static_cast<int>(rows), row);
}

// Tokens in pieces of as many as shared memory takes, W read once for each.
// @param pieces  gives before and after of the tokens from so many on
template <class X, class W, class Pieces>
void run_typed(Context& context, const char* name, std::int64_t tokens, std::int64_t width,
               const WeightGroup<W>& w, const Pieces& pieces) {
  const std::size_t row = static_cast<std::size_t>(padded(width)) * sizeof(X);
  for (std::int64_t t = 0; t < tokens;) {
    const auto piece = pieces(t);
    const std::int64_t left = tokens - t;
    const auto run = [&]<int kRows>() {
      const std::int64_t rows = left < kRows ? left : kRows;
      run_rows<X, W, kRows>(context, name, piece.before, w, piece.after, rows);
      t += rows;
    };
    if (left > 4 && 8 * row <= kMostShared)
      run.template operator()<8>();
    else if (left > 1 && 4 * row <= kMostShared)
      run.template operator()<4>();
    else
      run.template operator()<1>();
  }
}

/// Whether the kernels serve these weights: of one type, rows on 16 bytes, one row in shared
/// memory. Not a matter of the number of tokens: a token's bits must not depend on it.
bool serves(std::span<const Tensor> w, DType activation) {
  const std::int64_t k = w[0].dim(1);
  const std::size_t row = static_cast<std::size_t>(padded(k)) * size_of(activation);
  if (w.size() > kMostWeights || k % kLaneNumbers != 0 || row > kMostShared) return false;
  if (w[0].dtype != DType::bf16 && (w[0].dtype != DType::f32 || activation != DType::f32))
    return false;
  for (const Tensor& t : w)
    if (!t || t.dtype != w[0].dtype || reinterpret_cast<std::uintptr_t>(t.data) % 16 != 0 ||
        static_cast<std::size_t>(t.row_stride()) * size_of(t.dtype) % 16 != 0)
      return false;
  return true;
}

/// @param pieces  called with a number of the activations' type and the first token
template <class Pieces>
void run(Context& context, const char* name, std::int64_t tokens, std::span<const Tensor> w,
         std::span<const Tensor> b, DType activation, const Pieces& pieces) {
  const auto run_with = [&](auto x_type, auto w_type) {
    using X = decltype(x_type);
    using W = decltype(w_type);
    run_typed<X>(context, name, tokens, w[0].dim(1), WeightGroup<W>(w, b),
                 [&](std::int64_t t) { return pieces(x_type, t); });
  };
  if (activation == DType::bf16)
    run_with(Bf16(), Bf16());
  else if (w[0].dtype == DType::bf16)
    run_with(float(), Bf16());
  else
    run_with(float(), float());
}

bool is_sm90(const Context& context) { return level(context.device()) == Level::sm90; }

Tensor from_row(const Tensor& t, std::int64_t row) { return t ? t.rows(row, t.dim(0) - row) : t; }

template <class Before, class After>
struct Piece {
  Before before;
  After after;
};

}  // namespace

bool linear_of_few_tokens(Context& context, const LinearArgs& a) {
  if (is_sm90(context) && sm90::linear_of_few_tokens(context, a)) return true;
  if (!serves(a.w, a.x.dtype)) return false;
  run(context, "linear", a.x.dim(0), a.w, a.b, a.x.dtype, [&](auto type, std::int64_t t) {
    using X = decltype(type);
    return Piece<Copied<X>, Plain>{
        {Matrix<const X>(from_row(a.x, t)), static_cast<int>(a.x.dim(1))},
        {Matrix<float>(from_row(a.y, t)), a.accumulate}};
  });
  return true;
}

namespace {

/// norm_linear() of more tokens than this file's kernels take. The gates of few rows are made
/// beside the products, which memory alone bounds then; kernels of packed weights leave no room for
/// that.
void norm_linear_of_many(Context& context, const NormLinearArgs& a) {
  const ArenaScope scope(context.arena());
  const Tensor u = context.arena().tensor(a.activation, {a.x.dim(0), a.x.dim(1)});
  const RmsNormGatesArgs gates = norm_gates_of(a, u);
  const bool few = a.w_i && serves_gates_of_few_rows(gates), gates_last = few && a.packed.empty();
  if (few && !gates_last)
    rms_norm_gates_of_few_rows(context, gates);
  else if (a.w_i && !gates_last)
    cuda::rms_norm_gates(context, gates);
  else
    cuda::rms_norm(context, {.x = a.x, .w = a.norm_w, .b = a.norm_b, .eps = a.eps, .y = u});
  cuda::linear(context, {.x = u, .w = a.w, .b = a.b, .y = a.y, .packed = a.packed});
  if (gates_last) gates_of_few_rows(context, gates);
}

}  // namespace

void norm_linear(Context& context, const NormLinearArgs& a) {
  const std::int64_t tokens = a.x.dim(0);
  if (tokens == 0) return;
  if (tokens > kFusedTokens) return norm_linear_of_many(context, a);
  if (is_sm90(context) && sm90::norm_linear(context, a)) return;
  if (!serves(a.w, a.activation)) return composed::norm_linear(context, a);
  const auto before = [&](std::int64_t t) {
    return RmsNormed{Matrix<const float>(from_row(a.x, t)), Weights(a.norm_w), Weights(a.norm_b),
                     a.eps, static_cast<int>(a.x.dim(1))};
  };
  run(context, "norm_linear", tokens, a.w, a.b, a.activation, [&](auto, std::int64_t t) {
    return Piece<RmsNormed, WithGates>{before(t),
                                       {{Matrix<float>(from_row(a.y, t)), false},
                                        Gate(a.w_i, a.b_i, from_row(a.i, t), a.sigmoid_input),
                                        Gate(a.w_f, a.b_f, from_row(a.log_f, t), true),
                                        a.w_i ? static_cast<int>(a.w_i.dim(0)) : 0,
                                        a.cap}};
  });
}

void head_norm_linear(Context& context, const HeadNormLinearArgs& a) {
  const std::int64_t tokens = a.h.dim(0);
  if (tokens == 0) return;
  if (!serves(a.w, a.activation)) return composed::head_norm_linear(context, a);
  const auto pieces = [&](auto, std::int64_t t) {
    return Piece<HeadNormed, Plain>{
        {Matrix<const float>(from_row(a.h, t)), Matrix<const float>(from_row(a.o, t)),
         Weights(a.norm_w), Weights(a.norm_b), a.eps, static_cast<int>(a.heads),
         static_cast<int>(a.h.dim(1))},
        {Matrix<float>(from_row(a.y, t)), true}};
  };
  run(context, "head_norm_linear", tokens, a.w, a.b, a.activation, pieces);
}

void mlstm_head_norm_linear(Context& context, const MlstmHeadNormLinearArgs& a) {
  const HeadNormLinearArgs& n = a.norm;
  if (n.h.dim(0) == 0) return;
  if (!is_sm90(context) || !sm90::serves_mlstm_step(a)) {
    cuda::mlstm(context, a.cell);
    return cuda::head_norm_linear(context, n);
  }
  const ArenaScope scope(context.arena());
  const Tensor u = context.arena().tensor(DType::bf16, {n.h.dim(0), n.h.dim(1)});
  std::int64_t singles = 0;
  for (std::size_t s = 1; s < a.cell.batch.offsets.size(); ++s)
    singles += a.cell.batch.offsets[s] - a.cell.batch.offsets[s - 1] == 1;
  if (singles < a.cell.batch.sequences()) {
    // The norm's kernel takes all tokens; what it makes of those of the others is replaced.
    mlstm_within(context, a.cell, MlstmPlan::kStateBytes, MlstmSequences::longer);
    cuda::head_norm(
        context,
        {.h = n.h, .o = n.o, .w = n.norm_w, .b = n.norm_b, .heads = n.heads, .eps = n.eps, .y = u});
  }
  if (singles > 0) sm90::mlstm_step(context, a, u);
  cuda::linear(context,
               {.x = u, .w = n.w, .b = n.b, .y = n.y, .accumulate = true, .packed = n.packed});
}

void norm_linear_swiglu(Context& context, const NormLinearSwigluArgs& a) {
  const std::int64_t tokens = a.x.dim(0);
  if (tokens == 0) return;
  if (is_sm90(context) && sm90::norm_linear_swiglu(context, a)) return;
  if (!serves(a.w, a.y.dtype)) return composed::norm_linear_swiglu(context, a);
  run(context, "norm_linear_swiglu", tokens, a.w, a.b, a.y.dtype, [&](auto type, std::int64_t t) {
    using Y = decltype(type);
    return Piece<RmsNormed, Gated<Y>>{{Matrix<const float>(from_row(a.x, t)), Weights(a.norm_w),
                                       Weights(a.norm_b), a.eps, static_cast<int>(a.x.dim(1))},
                                      {Matrix<Y>(from_row(a.y, t))}};
  });
}

}  // namespace xlstm::ops::cuda

bool xlstm::ops::pends_few(Device device) { return cuda::level(device) == cuda::Level::sm90; }
