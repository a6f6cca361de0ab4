#include "ops/mlstm.hpp"

#include "ops/cuda/device/numbers.cuh"
#include "ops/cuda/device/tile.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/level.hpp"
#include "ops/cuda/mlstm_cell.cuh"
#include "ops/cuda/mlstm_gates.cuh"
#include "ops/cuda/mlstm_plan.hpp"
#include "ops/cuda/mlstm_ring.hpp"
#include "ops/cuda/mlstm_tensor.cuh"
#include "ops/cuda/mlstm_wide.hpp"
#include "ops/cuda/norm_few.hpp"
#include "ops/cuda/sm90/mlstm_fused.hpp"
#include "ops/cuda/sm90/mlstm_steps.hpp"
#include "ops/fused.hpp"

namespace xlstm::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = MlstmPlan::kChunk;
static_assert(kThreads == kTileThreads && kChunk == kTile);
static_assert(MlstmSaved::kUnit % kChunk == 0 && MlstmSaved::kUnit % MlstmPlan::kTensorChunk == 0);

// --- sequences of one token ---

/// C and h of a sequence of one token, in one pass over C. A block has kWarp columns, a warp every
/// kWarps-th row of them; memory bound, so many rows are on their way at once.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads, 3) step_kernel(Cell cell, std::int64_t slices) {
  constexpr int kRows = 16;  // of a warp at a time
  constexpr int kBlockRows = kRows * kWarps;
  __shared__ float q[kBlockRows], k[kBlockRows], partial[kWarps][kWarp];
  const std::int64_t s = blockIdx.x / slices, head = blockIdx.y;
  const std::int64_t t = cell.batch.offsets[s];
  if (cell.batch.offsets[s + 1] - t != 1) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t x = blockIdx.x % slices * kWarp + lane;
  const bool live = x < cell.dv, loads = live && cell.batch.slots[s] != nullptr;
  float* c = cell.record_c(s, head);
  const float forget = cell.gate(kForget, head)[t], input = cell.gate(kInput, head)[t];
  const float v = live ? to_float(cell.v.row<In>(t)[head * cell.dv + x]) : 0.0F;

  float sum = 0;
  for (std::int64_t a0 = 0; a0 < cell.dqk; a0 += kBlockRows) {
    float state[kRows];
    const std::int64_t at = (a0 + warp) * cell.dv + x, step = kWarps * cell.dv;
    const auto rows = static_cast<int>(min(std::int64_t{kBlockRows}, cell.dqk - a0));
    for (int r = 0; r < kRows; ++r)
      state[r] = loads && r * kWarps + warp < rows ? c[at + r * step] : 0.0F;
    __syncthreads();  // the last q and k are read
    if (static_cast<int>(threadIdx.x) < rows) {
      q[threadIdx.x] = to_float(cell.q.row<In>(t)[head * cell.dqk + a0 + threadIdx.x]);
      k[threadIdx.x] = input * to_float(cell.k.row<In>(t)[head * cell.dqk + a0 + threadIdx.x]);
    }
    __syncthreads();
    for (int r = 0; r < kRows; ++r) {
      if (r * kWarps + warp >= rows) continue;
      const float value = fmaf(k[r * kWarps + warp], v, forget * state[r]);
      sum = fmaf(q[r * kWarps + warp], value, sum);
      if (loads) c[at + r * step] = value;
    }
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || !live) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += partial[w][lane];
  store(cell.h.row<Out>(t) + head * cell.dv + x, cell.gate(kOut, head)[t] * sum);
}

// --- longer sequences: specification A.4 (3), in float32, but for n and l ---

/// Sums over a warp: lanes that differ in one bit share the numbers out among them, until each has
/// that of its own place, at the first.
template <int kHalf>
__device__ __forceinline__ void share_out(double (&sums)[kWarp], int lane) {
  const bool upper = (lane & kHalf) != 0;
#pragma unroll
  for (int t = 0; t < kHalf; ++t) {
    const double other = __shfl_xor_sync(~0U, upper ? sums[t] : sums[t + kHalf], kHalf);
    sums[t] = (upper ? sums[t + kHalf] : sums[t]) + other;
  }
  if constexpr (kHalf > 1) share_out<kHalf / 2>(sums, lane);
}

/// 1 / N of every token, and n, with weights and sums in double as n is (ops/batch.hpp), from token
/// to token. It runs before the scan of the gates, which moves m of the record. A block has a
/// sequence and head; it takes kWarp tokens at a time, a lane the gates and the sum of one.
template <class In>
__global__ void __launch_bounds__(kThreads) normaliser_kernel(Cell cell) {
  __shared__ double forget[kWarp], input[kWarp], partial[kWarps][kWarp];
  XLSTM_DYNAMIC_SHARED(double, n);
  const std::int64_t s = blockIdx.x, head = blockIdx.y, begin = cell.batch.offsets[s];
  const std::int64_t length = cell.batch.offsets[s + 1] - begin;
  if (length == 1) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double* const record = cell.record_n(s, head);
  for (std::int64_t a = threadIdx.x; a < cell.dqk; a += kThreads)
    n[a] = record != nullptr ? record[a] : 0.0;

  double m = cell.first_m(s, head);
  for (std::int64_t t0 = 0; t0 < length; t0 += kWarp) {
    if (cell.saved.has_border(t0)) {
      float* to = cell.saved.n + cell.saved.index(begin, s, t0, cell.heads, head) * cell.dqk;
      for (std::int64_t a = threadIdx.x; a < cell.dqk; a += kThreads)
        to[a] = static_cast<float>(n[a]);
    }
    // As in the scan of the gates. Beyond the end: log f = 0, i = -inf, which change nothing.
    const int count = static_cast<int>(min(std::int64_t{kWarp}, length - t0));
    const std::int64_t own = begin + t0 + lane;
    double b = lane < count ? Cell::log_forget(cell.log_f.row(own)[head]) : 0.0;
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0U, b, step);
      if (lane >= step) b += other;
    }
    const double beta = lane < count ? cell.i.row(own)[head] - b : -INFINITY;
    double mu = beta;
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0U, mu, step);
      if (lane >= step) mu = larger(other, mu);
    }
    mu = cell.has_stabiliser ? larger(m, mu) : -b;
    const double before = __shfl_up_sync(~0U, mu, 1);
    if (warp == 0) {
      forget[lane] = exp((lane > 0 ? before : m) - mu);
      input[lane] = exp(beta - mu);
    }
    m = __shfl_sync(~0U, b + mu, kWarp - 1);
    __syncthreads();  // the last sums are read, too

    double sums[kWarp] = {};
    for (std::int64_t a = threadIdx.x; a < cell.dqk; a += kThreads) {
      double value = n[a];
      // All loads of some tokens are under way before the first is needed.
      constexpr int kTogether = 16;
#pragma unroll
      for (int first = 0; first < kWarp; first += kTogether) {
        float q[kTogether], k[kTogether];
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          const std::int64_t token = begin + t0 + min(first + t, count - 1);
          q[t] = to_float(cell.q.row<In>(token)[head * cell.dqk + a]);
          k[t] = to_float(cell.k.row<In>(token)[head * cell.dqk + a]);
        }
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          if (first + t >= count) continue;
          value = fma(input[first + t], double{k[t]}, forget[first + t] * value);
          sums[first + t] = fma(value, double{q[t]}, sums[first + t]);
        }
      }
      n[a] = value;
    }
    share_out<kWarp / 2>(sums, lane);
    partial[warp][lane] = sums[0];
    __syncthreads();
    if (warp > 0 || lane >= count) continue;
    double l = 0;
    for (int w = 0; w < kWarps; ++w) l += partial[w][lane];
    const auto whole = static_cast<float>(cell.scale * l);
    cell.gate(kReciprocal, head)[own] = cell.reciprocal(whole, static_cast<float>(exp(-(b + mu))));
    if (cell.saved.any()) cell.saved.l_of(own, head) = whole;
  }
  for (std::int64_t a = threadIdx.x; record != nullptr && a < cell.dqk; a += kThreads)
    record[a] = n[a];
}

/// C before a chunk, in rows of c_pitch.
__device__ float* state_c(const Cell& cell, std::int64_t c_pitch, std::int64_t state,
                          std::int64_t head) {
  return static_cast<float*>(cell.c) + (state * cell.heads + head) * cell.dqk * c_pitch;
}

/// C before every chunk of a window, and after the sequences. A block has one tile of it of a
/// sequence and head, in registers.
template <class In>
__global__ void __launch_bounds__(kThreads, 3)
    states_kernel(Cell cell, Window window, std::int64_t c_pitch, std::int64_t row_tiles,
                  std::int64_t column_tiles) {
  __shared__ Tiles tiles;
  const std::int64_t tile = blockIdx.x % (row_tiles * column_tiles), head = blockIdx.y;
  const std::int64_t s = cell.longs[blockIdx.x / (row_tiles * column_tiles)];
  const Stretch part(cell, window, s);
  if (part.chunk_begin >= part.chunk_end) return;

  const std::int64_t a0 = tile / column_tiles * kTile, x0 = tile % column_tiles * kTile;
  const int row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;
  // Of the thread, if less than 4.
  const int rows = static_cast<int>(min(std::int64_t{4}, cell.dqk - a0 - row));
  const int columns = static_cast<int>(min(std::int64_t{4}, cell.dv - x0 - column));
  float c[4][4] = {};
  const auto load_state = [&](const float* from, std::int64_t pitch) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j)
        if (i < rows && j < columns) c[i][j] = from[(a0 + row + i) * pitch + x0 + column + j];
  };
  const auto store_state = [&](float* to, std::int64_t pitch) {
    for (int i = 0; i < 4; ++i)
      if (i < rows) store_four(to + (a0 + row + i) * pitch + x0 + column, c[i], columns);
  };
  if (part.chunk_begin > 0) {
    load_state(cell.carry_c(window.carry_in, head), cell.dv);
  } else if (cell.batch.slots[s] != nullptr) {
    load_state(cell.record_c(s, head), cell.dv);
  }

  const float* kept = cell.gate(kKept, head);
  for (std::int64_t chunk = part.chunk_begin; chunk < part.chunk_end; ++chunk) {
    const std::int64_t state = part.first + chunk - window.begin;
    store_state(state_c(cell, c_pitch, state, head), c_pitch);
    if (cell.saved.has_border(chunk * kChunk)) {
      const std::int64_t at = cell.saved.index(part.begin, s, chunk * kChunk, cell.heads, head);
      store_state(cell.saved.c + at * cell.dqk * cell.dv, cell.dv);
    }
    const std::int64_t t0 = part.begin + chunk * kChunk;
    const std::int64_t t1 = min(t0 + kChunk, part.begin + part.length);
    const float decay = cell.gate(kDecay, head)[t0];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) c[i][j] *= decay;
    for (std::int64_t t = t0; t < t1; t += kDepth) {
      const int depth = depth_from(t, t1);
      __syncthreads();
      load(tiles.a, cell.k.row<In>(t) + head * cell.dqk + a0, cell.k.stride, depth, cell.dqk - a0);
      load(tiles.b, cell.v.row<In>(t) + head * cell.dv + x0, cell.v.stride, depth, cell.dv - x0);
      for (int d = threadIdx.x / kTile; d < depth; d += kThreads / kTile)  // as load() put them
        tiles.a[d][threadIdx.x % kTile] *= kept[t + d];
      __syncthreads();
      multiply(tiles, depth, row, column, c);
    }
  }
  if (part.goes_on()) {
    store_state(cell.carry_c(window.carry_out, head), cell.dv);
  } else if (cell.batch.slots[s] != nullptr) {
    store_state(cell.record_c(s, head), cell.dv);
  }
}

/// W of A.4 (3) on and below the diagonal, transposed. A block a chunk and head.
template <class In>
__global__ void __launch_bounds__(kThreads, 3) scores_kernel(Cell cell, Window window) {
  __shared__ Tiles tiles;
  const std::int64_t state = blockIdx.x, head = blockIdx.y;
  const Chunk chunk(cell, window.begin + state);
  const int row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;
  const std::int64_t head_column = head * cell.dqk;

  float sum[4][4] = {};
  for (std::int64_t a = 0; a < cell.dqk; a += kDepth) {
    const int depth = depth_from(a, cell.dqk);
    __syncthreads();
    load_transposed(tiles.a, cell.q.row<In>(chunk.begin) + head_column + a, cell.q.stride,
                    chunk.length, depth);
    load_transposed(tiles.b, cell.k.row<In>(chunk.begin) + head_column + a, cell.k.stride,
                    chunk.length, depth);
    __syncthreads();
    multiply(tiles, depth, row, column, sum);
  }

  const auto gate = [&](GateRow r) { return cell.gate(r, head) + chunk.begin; };
  for (int j = 0; j < 4; ++j) {
    const int from = column + j;
    const bool has_token = from < chunk.length;
    const float beta_high = has_token ? gate(kBetaHigh)[from] : 0.0F;
    const float beta_low = has_token ? gate(kBetaLow)[from] : 0.0F;
    float weights[4];
    for (int i = 0; i < 4; ++i) {
      const int t = row + i;
      weights[i] = 0;  // a NaN must not go back in time: nothing is multiplied by zero
      if (from > t || t >= chunk.length) continue;
      const float exponent = (beta_high - gate(kMuHigh)[t]) + (beta_low - gate(kMuLow)[t]);
      weights[i] = cell.scale * sum[i][j] * expf(exponent);
    }
    store_four(cell.scores + ((state * cell.heads + head) * kChunk + from) * kChunk + row, weights,
               4);
  }
}

/// h of one chunk and head, a block a tile of columns.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads, 3)
    outputs_kernel(Cell cell, Window window, std::int64_t c_pitch, std::int64_t column_tiles) {
  __shared__ Tiles tiles;
  const std::int64_t state = blockIdx.x / column_tiles, head = blockIdx.y;
  const std::int64_t x0 = blockIdx.x % column_tiles * kTile;
  const Chunk chunk(cell, window.begin + state);
  const int row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;

  float sum[4][4] = {};
  const float* c = state_c(cell, c_pitch, state, head) + x0;
  for (std::int64_t a = 0; a < cell.dqk; a += kDepth) {
    const int depth = depth_from(a, cell.dqk);
    __syncthreads();
    load_transposed(tiles.a, cell.q.row<In>(chunk.begin) + head * cell.dqk + a, cell.q.stride,
                    chunk.length, depth);
    load(tiles.b, c + a * c_pitch, c_pitch, depth, cell.dv - x0);
    __syncthreads();
    multiply(tiles, depth, row, column, sum);
  }
  const auto scale_rows = [&](GateRow factor) {
    for (int i = 0; i < 4; ++i) {
      const int t = row + i;
      const float by = t < chunk.length ? cell.gate(factor, head)[chunk.begin + t] : 0.0F;
      for (int j = 0; j < 4; ++j) sum[i][j] *= by;
    }
  };
  scale_rows(kCarried);

  const float* scores = cell.scores + (state * cell.heads + head) * kChunk * kChunk;
  for (int from = 0; from < chunk.length; from += kDepth) {
    const int depth = depth_from(from, chunk.length);
    __syncthreads();
    load(tiles.a, scores + from * kChunk, kChunk, depth, kChunk);
    load(tiles.b, cell.v.row<In>(chunk.begin + from) + head * cell.dv + x0, cell.v.stride, depth,
         cell.dv - x0);
    __syncthreads();
    // Tokens up to the first of the four rows count in all of them; the next three in some.
    const int before = min(max(row + 1 - from, 0), depth);
    multiply(tiles, before, row, column, sum);
    for (int d = before; d < min(row + 4 - from, depth); ++d)
      for (int i = 0; i < 4; ++i)
        if (from + d <= row + i)
          for (int j = 0; j < 4; ++j)
            sum[i][j] = fmaf(tiles.a[d][row + i], tiles.b[d][column + j], sum[i][j]);
  }
  scale_rows(kReciprocal);
  for (int i = 0; i < 4; ++i)
    if (row + i < chunk.length)
      store_four(cell.h.row<Out>(chunk.begin + row + i) + head * cell.dv + x0 + column, sum[i],
                 cell.dv - x0 - column);
}

Cell cell_of(const MlstmArgs& a, const MlstmPlan& plan, std::byte* scratch) {
  const auto floats = [&](std::size_t at) { return reinterpret_cast<float*>(scratch + at); };
  const auto ints = [&](std::size_t at) { return reinterpret_cast<std::int32_t*>(scratch + at); };
  return {.q = Rows(a.q),
          .k = Rows(a.k),
          .v = Rows(a.v),
          .h = Rows(a.h),
          .i = Matrix<const float>(a.i),
          .log_f = Matrix<const float>(a.log_f),
          .batch = DeviceBatch(a.batch),
          .offsets = a.state,
          .chunk = plan.chunk,
          .tokens = plan.tokens,
          .heads = plan.heads,
          .dqk = plan.dqk,
          .dv = plan.dv,
          .scale = 1.0F / std::sqrt(static_cast<float>(plan.dqk)),
          .eps = a.eps,
          .has_stabiliser = a.gate == MlstmGate::exponential,
          .normalise = a.normalise,
          .steps = true,
          .longer = true,
          .saved = SavedCell(a.saved),
          .gates = floats(plan.gates),
          .firsts = ints(plan.firsts),
          .longs = ints(plan.long_sequences),
          .chunk_sequences = ints(plan.chunk_sequences),
          .c = scratch + plan.c,
          .n = floats(plan.n),
          .carry = floats(plan.carry),
          .scores = floats(plan.scores)};
}

template <class In, class Out>
void run(Context& context, const Cell& cell, const MlstmPlan& plan) {
  constexpr const char* kName = "mlstm";
  const auto grid = [&plan](std::int64_t blocks) {
    return Grid{.x = blocks, .y = plan.heads, .threads = kThreads};
  };
  const bool has_steps = cell.steps && plan.longs < plan.sequences;
  if (cell.saved.border != 0 && has_steps) mlstm_save_states_of_steps(context, cell, plan);
  if (!plan.tensor && cell.longer && plan.longs > 0)
    launch(context, kName,
           {.x = plan.sequences,
            .y = plan.heads,
            .threads = kThreads,
            .shared = static_cast<std::size_t>(plan.dqk) * sizeof(double)},
           normaliser_kernel<In>, cell);
  const Grid gates{.x = plan.sequences * plan.heads,
                   .threads = plan.longest > kGateThreads / kWarp * plan.chunk ? kMostGateThreads
                                                                               : kGateThreads};
  if (plan.tensor)
    launch(context, kName, gates, gates_kernel<In, MlstmPlan::kTensorChunk / kWarp>, cell);
  else
    launch(context, kName, gates, gates_kernel<In, kChunk / kWarp>, cell);
  if (has_steps) {
    const std::int64_t slices = blocks_for(plan.dv, kWarp);
    launch(context, kName, grid(plan.sequences * slices), step_kernel<In, Out>, cell, slices);
  }
  if (plan.tensor || !cell.longer) return;
  const std::int64_t row_tiles = blocks_for(plan.dqk, kTile);
  const std::int64_t column_tiles = blocks_for(plan.dv, kTile);
  for_each_window(plan, [&](const Window& window) {
    const std::int64_t count = window.end - window.begin;
    launch(context, kName, grid(plan.longs * row_tiles * column_tiles), states_kernel<In>, cell,
           window, plan.c_pitch, row_tiles, column_tiles);
    launch(context, kName, grid(count), scores_kernel<In>, cell, window);
    launch(context, kName, grid(count * column_tiles), outputs_kernel<In, Out>, cell, window,
           plan.c_pitch, column_tiles);
  });
}

}  // namespace

void mlstm_within(Context& context, const MlstmArgs& a, std::size_t state_bytes,
                  MlstmSequences which) {
  const MlstmPlan plan(a, state_bytes);
  if (plan.sequences == 0) return;
  ArenaScope scope(context.arena());
  Cell cell = cell_of(a, plan, context.arena().take(plan.bytes()));
  cell.steps = which != MlstmSequences::longer;
  cell.longer = which != MlstmSequences::steps;
  const bool bf16 = a.h.dtype == DType::bf16;
  if (a.q.dtype == DType::bf16)
    bf16 ? run<Bf16, Bf16>(context, cell, plan) : run<Bf16, float>(context, cell, plan);
  else
    bf16 ? run<float, Bf16>(context, cell, plan) : run<float, float>(context, cell, plan);
  if (!plan.tensor || !cell.longer) return;
  for_each_window(plan, [&](const Window& window) {
    mlstm_tensor_states(context, cell, plan, window);
    mlstm_tensor_outputs(context, cell, plan, window, a.h.dtype);
  });
}

namespace {

/// @param norm  null: h is wanted
void with_steps(Context& context, const MlstmArgs& a, const HeadNormArgs* norm) {
  std::int64_t singles = 0;
  for (std::size_t s = 1; s < a.batch.offsets.size(); ++s)
    singles += a.batch.offsets[s] - a.batch.offsets[s - 1] == 1;
  const bool longer = singles < a.batch.sequences(), pends = a.state.pending != 0;
  const bool has_sm90 = level(context.device()) == Level::sm90;
  const bool steps = singles > 0 && has_sm90 && !a.saved &&
                     (pends ? sm90::serves_mlstm_ring_steps(a) : sm90::serves_mlstm_steps(a));
  if (!steps || longer) {
    const bool apart = steps || pends;  // sequences of one token have kernels of their own
    bool fused = false;
    if (longer && a.state.c_type == DType::bf16) {
      fused = mlstm_of_wide_states(context, a);
    } else if (longer || !apart) {
      fused = has_sm90 && sm90::mlstm_fused(context, a, norm != nullptr);
      if (!fused)
        mlstm_within(context, a, MlstmPlan::kStateBytes,
                     apart ? MlstmSequences::longer : MlstmSequences::all);
      else if (singles > 0 && !apart)
        mlstm_within(context, a, MlstmPlan::kStateBytes, MlstmSequences::steps);
    }
    if (pends && singles > 0 && !steps) mlstm_ring_steps(context, a);
    // The norm's kernel takes all tokens; what it makes of the others is replaced.
    if (norm != nullptr) head_norm_of_cell(context, *norm, fused && a.h.dim(0) <= kFewNormRows);
  }
  if (steps) (pends ? sm90::mlstm_ring_steps : sm90::mlstm_steps)(context, a, norm);
}

}  // namespace

void mlstm(Context& context, const MlstmArgs& a) { with_steps(context, a, nullptr); }

void mlstm_head_norm(Context& context, const MlstmHeadNormArgs& a) {
  with_steps(context, a.cell, &a.norm);
}

}  // namespace xlstm::ops::cuda
