#include "ops/norm.hpp"

#include "ops/cuda/device/gate.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/overlap.cuh"
#include "ops/cuda/device/pack.cuh"
#include "ops/cuda/device/row.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/norm_few.hpp"

namespace xlstm::ops::cuda {
namespace {

__device__ float rms_scale(const float* row, int width, float eps) {
  __shared__ float partial[kMostRowThreads / kWarp];
  const float sum = row_sum(width, partial, [row](int d) { return row[d] * row[d]; });
  return reciprocal_root(sum / static_cast<float>(width), eps);
}

/// x * scale * w + b
struct NormedRow {
  const float* x;
  float scale;
  Weights w, b;
  __device__ float at(int d) const { return x[d] * scale * w.at(d) + b.at_or(0.0F, d); }
};
struct HeldRow {
  const float* x;
  __device__ float at(int d) const { return x[d]; }
};

template <class Y>
__global__ void rms_norm_kernel(Matrix<const float> x, Weights w, Weights b, float eps, Matrix<Y> y,
                                int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const float* row = hold_row(x.row(blockIdx.x), held, width);
  const NormedRow u{row, rms_scale(row, width, eps), w, b};
  Y* to = y.row(blockIdx.x);
  for (int d = threadIdx.x; d < width; d += blockDim.x) store(to + d, u.at(d));
}

// A block norms a row, which it holds if it fits; then a warp for every gate of every head.
template <class Y>
__global__ void rms_norm_gates_kernel(Matrix<const float> x, Weights w, Weights b, float eps,
                                      float cap, Gate input, Gate forget, int heads, Matrix<Y> y,
                                      int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const std::int64_t token = blockIdx.x;
  const float* row = hold_row(x.row(token), held, width);
  const NormedRow u{row, rms_scale(row, width, eps), w, b};
  const bool is_held = row == held;
  for (int d = threadIdx.x; d < width; d += blockDim.x) {
    const float value = u.at(d);
    if (is_held) held[d] = value;
    store(y.row(token) + d, value);
  }
  __syncthreads();
  const int warps = blockDim.x / kWarp;
  for (int i = threadIdx.x / kWarp; i < 2 * heads; i += warps) {
    const Gate gate = i < heads ? input : forget;
    const int head = i % heads;
    const float dot = warp_sum(is_held ? lane_dot(gate, head, HeldRow{held}, width)
                                       : lane_dot(gate, head, u, width));
    if (threadIdx.x % kWarp == 0) finish_gate(gate, token, head, dot, cap);
  }
}

// Rows that lie on 16 bytes stay in the registers of a block: up to 8 of them, the columns of an
// mma, whose depth is shared out to the warps. The gates' products go to tensor cores as three bf16
// parts of each number, which together are all of its 24 bits. How many rows a block has changes no
// bit of any.
constexpr int kSteps = 16;  // 16 numbers of a row each, of which a lane has 4
constexpr int kWarpNumbers = kSteps * 16;
constexpr int kMostWarps = 16;
constexpr int kMostRows = 8;
constexpr int kGateRows = 16;  // of an mma

// kWhole: every warp has all its steps. Nothing branches around a load then, so that the loads of
// several steps are under way together.
template <class Y, bool kWhole>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    rms_norm_gates_rows_kernel(Matrix<const float> x, Weights w, Weights b, float eps,
                               GatePair gates, Matrix<Y> y, int width, int each,
                               std::int64_t tokens) {
  __shared__ float squares[kMostWarps][kMostRows];
  __shared__ float sums[kMostWarps][kGateRows][kMostRows];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int group = lane / 4, quarter = lane % 4;  // token, and place in 16 numbers
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * each, token = first + group;
  const bool exists = group < each && token < tokens;
  const int begin = warp * kWarpNumbers + quarter * 4;
  const auto has = [&](int s) { return kWhole || begin + s * 16 < width; };
  // A share of the gates' weights, while the kernel before this one ends.
  constexpr int kLine = 128 / static_cast<int>(sizeof(Bf16));
  const int lines = (width + kLine - 1) / kLine;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < 2 * gates.heads * lines;
       i += gridDim.x * blockDim.x)
    prefetch(gates.row(i / lines) + i % lines * kLine);
  grid_wait();
  float4 v[kSteps];
  float sum = 0;
  const float* row = x.row(exists ? token : first);  // rows that are not there are not written
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    v[s] = {};
    if (has(s)) v[s] = *reinterpret_cast<const float4*>(row + begin + s * 16);
  }
  grid_trigger();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    sum = fmaf(v[s].x, v[s].x, sum);
    sum = fmaf(v[s].y, v[s].y, sum);
    sum = fmaf(v[s].z, v[s].z, sum);
    sum = fmaf(v[s].w, v[s].w, sum);
  }
  sum += __shfl_xor_sync(~0U, sum, 1);
  sum += __shfl_xor_sync(~0U, sum, 2);
  if (quarter == 0) squares[warp][group] = sum;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < warps; ++i) total += squares[i][group];
  const float scale = reciprocal_root(total / static_cast<float>(width), eps);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    if (!has(s)) continue;
    const int d = begin + s * 16;
    const float4 n = FourWeights(w, d).floats();
    float4 c = {};
    if (b.any()) c = FourWeights(b, d).floats();
    v[s] = {fmaf(v[s].x * scale, n.x, c.x), fmaf(v[s].y * scale, n.y, c.y),
            fmaf(v[s].z * scale, n.z, c.z), fmaf(v[s].w * scale, n.w, c.w)};
    if (exists && blockIdx.y == 0) store_four(y.row(token) + d, v[s]);
  }
  const int tile = blockIdx.y * kGateRows;
  const Bf16* const upper = gates.row(tile + group);
  const Bf16* const lower = gates.row(tile + group + 8);
  float whole[4] = {}, rest[4] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    if (!has(s)) continue;
    const uint2 up = *reinterpret_cast<const uint2*>(upper + begin + s * 16),
                low = *reinterpret_cast<const uint2*>(lower + begin + s * 16);
    const unsigned a[4] = {up.x, low.x, up.y, low.y};
    const ThreeParts two(v[s].x, v[s].y), next(v[s].z, v[s].w);
#pragma unroll
    for (int p = 0; p < 3; ++p) mma_bf16(p == 0 ? whole : rest, a, {two.pairs[p], next.pairs[p]});
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[warp][c_row(lane, i)][c_column(lane, i)] = whole[i] + rest[i];
  __syncthreads();
  for (int i = threadIdx.x; i < kGateRows * each; i += blockDim.x) {
    const int gate = tile + i / each, t = i % each;
    if (gate >= 2 * gates.heads || first + t >= tokens) continue;
    float dot = 0;
    for (int k = 0; k < warps; ++k) dot += sums[k][i / each][t];
    finish_gate(gate < gates.heads ? gates.input : gates.forget, first + t, gate % gates.heads, dot,
                gates.cap);
  }
}

/// Whether rms_norm_gates_rows_kernel takes such rows.
bool serves_rows(const RmsNormGatesArgs& a) {
  return a.x.dim(1) % 16 == 0 && a.x.dim(1) <= kMostWarps * kWarpNumbers && on_16_bytes(a.x) &&
         on_16_bytes(a.w) && (!a.b || on_16_bytes(a.b)) && on_16_bytes(a.u) &&
         a.w_i.dtype == DType::bf16 && a.w_f.dtype == DType::bf16 && on_16_bytes(a.w_i) &&
         on_16_bytes(a.w_f);
}

void run_rows(Context& context, const RmsNormGatesArgs& a, const GatePair& gates) {
  const std::int64_t tokens = a.x.dim(0), width = a.x.dim(1);
  // As many rows for each block as let all blocks run at once.
  std::int64_t each = blocks_for(tokens, multiprocessors(context.device()));
  if (each > kMostRows) each = kMostRows;
  const auto warps = static_cast<int>(blocks_for(width, kWarpNumbers));
  with_type(a.u.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm_gates",
           {.x = blocks_for(tokens, each),
            .y = blocks_for(2 * gates.heads, kGateRows),
            .threads = warps * kWarp,
            .overlap = true},
           width % kWarpNumbers == 0 ? rms_norm_gates_rows_kernel<Y, true>
                                     : rms_norm_gates_rows_kernel<Y, false>,
           Matrix<const float>(a.x), Weights(a.w), Weights(a.b), a.eps, gates, Matrix<Y>(a.u),
           static_cast<int>(width), static_cast<int>(each), tokens);
  });
}

// In is what h and o hold.
template <class In, class Y>
__global__ void head_norm_kernel(Matrix<const In> h, Matrix<const In> o, Weights w, Weights b,
                                 float eps, Matrix<Y> y, int width) {
  XLSTM_DYNAMIC_SHARED(float, held);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * width;
  const In* from = h.row(blockIdx.x) + first;
  const In* gate = o.row(blockIdx.x) + first;
  Y* to = y.row(blockIdx.x) + first;
  with_row(from, held, width, [&](const auto& row) {
    const Moments moments(row, width, eps);
    for (int d = threadIdx.x; d < width; d += blockDim.x) {
      const float v = moments.normed(row[d]) * w.at(first + d) + b.at_or(0.0F, first + d);
      store(to + d, sigmoid(to_float(gate[d])) * v);
    }
  });
}

// A warp has a row of a head, and a lane kNumbers in each of kPlaces places of it.
constexpr int kHeadWarps = 4;
constexpr int kMostHead = 8 * 4 * kWarp;

/// @tparam kFew  the next kernel fits beside the one before this one
template <class In, class Y, int kNumbers, int kPlaces, bool kFew>
__global__ void __launch_bounds__(kHeadWarps* kWarp)
    head_norm_rows_kernel(Matrix<const In> h, Matrix<const In> o, Weights w, Weights b, float eps,
                          Matrix<Y> y, int heads, int width, std::int64_t items) {
  constexpr int kFours = kNumbers / 4;  // of a place
  const std::int64_t item =
      static_cast<std::int64_t>(blockIdx.x) * kHeadWarps + threadIdx.x / kWarp;
  const std::int64_t token = item / heads;
  const int first = static_cast<int>(item % heads) * width, own = threadIdx.x % kWarp * kNumbers;
  const auto place = [&](int i) { return i * kNumbers * kWarp + own; };
  const auto weights = [&](int i) {
    const int d = place(i / kFours) + i % kFours * 4;
    return FourWeights(w, first + (d < width ? d : 0));
  };
  if constexpr (kFew) grid_trigger();
  const FourWeights early[4] = {weights(0), weights(1), weights(2), weights(3)};
  grid_wait();
  if constexpr (!kFew) grid_trigger();
  if (item >= items) return;
  const In* from = h.row(token) + first;
  const In* gate = o.row(token) + first;
  Pack<In, kNumbers> loaded[kPlaces], gates[kPlaces];
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    loaded[i] = gates[i] = {};
    if (place(i) >= width) continue;
    loaded[i] = *reinterpret_cast<const Pack<In, kNumbers>*>(from + place(i));
    gates[i] = *reinterpret_cast<const Pack<In, kNumbers>*>(gate + place(i));
  }
  float v[kPlaces][kNumbers], sum = 0;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) v[i][j] = to_float(loaded[i].at(j));
#pragma unroll
    for (int j = 0; j < kNumbers; j += 4)
      sum += (v[i][j] + v[i][j + 1]) + (v[i][j + 2] + v[i][j + 3]);
  }
  const auto count = static_cast<float>(width);
  const float mean = warp_sum(sum) / count;
  sum = 0;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    if (place(i) >= width) continue;
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) {
      v[i][j] -= mean;
      sum = fmaf(v[i][j], v[i][j], sum);
    }
  }
  const float scale = reciprocal_root(warp_sum(sum) / count, eps);
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    if (place(i) >= width) continue;
    const auto four = [&](int f) -> float4 {
      const int at = i * kFours + f;
      const float4 n = (kFew ? early[at % 4] : weights(at)).floats();
      float4 c = {};
      if (b.any()) c = FourWeights(b, first + place(i) + f * 4).floats();
      const float* const x = v[i] + f * 4;
      const auto g = [&](int j) { return sigmoid(to_float(gates[i].at(f * 4 + j))); };
      return {g(0) * fmaf(x[0] * scale, n.x, c.x), g(1) * fmaf(x[1] * scale, n.y, c.y),
              g(2) * fmaf(x[2] * scale, n.z, c.z), g(3) * fmaf(x[3] * scale, n.w, c.w)};
    };
    Y* const to = y.row(token) + first + place(i);
    if constexpr (kFours == 1) {
      store_four(to, four(0));
    } else {
      Pack<Y> both = {};
      store_four(reinterpret_cast<Y*>(&both.words[0]), four(0));
      store_four(reinterpret_cast<Y*>(&both.words[2]), four(1));
      *reinterpret_cast<Pack<Y>*>(to) = both;
    }
  }
}

/// Whether head_norm_rows_kernel takes such rows.
bool serves_heads(const HeadNormArgs& a, std::int64_t width) {
  return width % 4 == 0 && width <= kMostHead && on_16_bytes(a.h) && on_16_bytes(a.o) &&
         on_16_bytes(a.w) && (!a.b || on_16_bytes(a.b)) && on_16_bytes(a.y);
}

template <class In, class Y>
void run_heads(Context& context, const HeadNormArgs& a, std::int64_t width, bool few) {
  const std::int64_t items = a.h.dim(0) * a.heads;
  const bool wide = width > kMostHead / 2;
  auto* kernel = wide  ? head_norm_rows_kernel<In, Y, 4, 8, false>
                 : few ? head_norm_rows_kernel<In, Y, 4, 4, true>
                       : head_norm_rows_kernel<In, Y, 4, 4, false>;
  if constexpr (sizeof(In) == 2 && sizeof(Y) == 2)  // 16 bytes at a time
    if (width % 8 == 0 && !few)
      kernel = wide ? head_norm_rows_kernel<In, Y, 8, 4, false>
                    : head_norm_rows_kernel<In, Y, 8, 2, false>;
  launch(context, "head_norm",
         {.x = blocks_for(items, kHeadWarps),
          .threads = kHeadWarps * kWarp,
          .overlap = true,
          .beside = few},
         kernel, Matrix<const In>(a.h), Matrix<const In>(a.o), Weights(a.w), Weights(a.b), a.eps,
         Matrix<Y>(a.y), static_cast<int>(a.heads), static_cast<int>(width), items);
}

}  // namespace

void rms_norm(Context& context, const RmsNormArgs& a) {
  if (a.x.count() == 0 || rms_norm_by_rows(context, a)) return;
  with_type(a.y.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm", row_grid(a.x.dim(0), 1, a.x.dim(1)), rms_norm_kernel<Y>,
           Matrix<const float>(a.x), Weights(a.w), Weights(a.b), a.eps, Matrix<Y>(a.y),
           static_cast<int>(a.x.dim(1)));
  });
}

void rms_norm_gates(Context& context, const RmsNormGatesArgs& a) {
  if (a.x.count() == 0) return;
  const Gate input(a.w_i, a.b_i, a.i, a.sigmoid_input), forget(a.w_f, a.b_f, a.log_f, true);
  const auto heads = static_cast<int>(a.w_i.dim(0));
  if (serves_rows(a)) return run_rows(context, a, {input, forget, heads, a.cap});
  const std::int64_t width = a.x.dim(1);
  with_type(a.u.dtype, [&](auto type) {
    using Y = decltype(type);
    launch(context, "rms_norm_gates", row_grid(a.x.dim(0), 1, width), rms_norm_gates_kernel<Y>,
           Matrix<const float>(a.x), Weights(a.w), Weights(a.b), a.eps, a.cap, input, forget, heads,
           Matrix<Y>(a.u), static_cast<int>(width));
  });
}

void head_norm(Context& context, const HeadNormArgs& a) { head_norm_of_cell(context, a, false); }

void head_norm_of_cell(Context& context, const HeadNormArgs& a, bool few) {
  if (a.h.count() == 0) return;
  const std::int64_t width = a.h.dim(1) / a.heads;
  const auto run = [&](auto in, auto out) {
    using In = decltype(in);
    using Y = decltype(out);
    if (serves_heads(a, width)) return run_heads<In, Y>(context, a, width, few);
    launch(context, "head_norm", row_grid(a.h.dim(0), a.heads, width), head_norm_kernel<In, Y>,
           Matrix<const In>(a.h), Matrix<const In>(a.o), Weights(a.w), Weights(a.b), a.eps,
           Matrix<Y>(a.y), static_cast<int>(width));
  };
  with_type(a.y.dtype,
            [&](auto out) { a.h.dtype == DType::bf16 ? run(Bf16(), out) : run(float(), out); });
}

}  // namespace xlstm::ops::cuda
