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

// --- longer sequences: specification A.4 (3), in float32 ---

/// C before a chunk, in rows of c_pitch.
__device__ float* state_c(const Cell& cell, std::int64_t c_pitch, std::int64_t state,
                          std::int64_t head) {
  return static_cast<float*>(cell.c) + (state * cell.heads + head) * cell.dqk * c_pitch;
}

/// The states before every chunk of a window, and those after the sequences. A block has one tile
/// of C of a sequence and head, in registers; those of the first columns have n too.
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
  const std::int64_t columns = cell.dv - x0 - column;  // of the thread, if less than 4
  const bool has_n = x0 == 0 && threadIdx.x < kTile && a0 + threadIdx.x < cell.dqk;
  float c[4][4] = {}, n = 0;
  const auto load_state = [&](const float* from, std::int64_t pitch, const float* from_n) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j)
        if (a0 + row + i < cell.dqk && j < columns)
          c[i][j] = from[(a0 + row + i) * pitch + x0 + column + j];
    if (has_n) n = from_n[a0 + threadIdx.x];
  };
  const auto store_state = [&](float* to, std::int64_t pitch, float* to_n) {
    for (int i = 0; i < 4; ++i)
      if (a0 + row + i < cell.dqk)
        store_four(to + (a0 + row + i) * pitch + x0 + column, c[i], columns);
    if (has_n) to_n[a0 + threadIdx.x] = n;
  };
  if (part.chunk_begin > 0) {
    load_state(cell.carry_c(window.carry_in, head), cell.dv, cell.carry_n(window.carry_in, head));
  } else if (cell.batch.slots[s] != nullptr) {
    load_state(cell.record_c(s, head), cell.dv, cell.record_n(s, head));
  }

  const float* kept = cell.gate(kKept, head);
  for (std::int64_t chunk = part.chunk_begin; chunk < part.chunk_end; ++chunk) {
    const std::int64_t state = part.first + chunk - window.begin;
    store_state(state_c(cell, c_pitch, state, head), c_pitch, cell.state_n(state, head));
    if (cell.saved.has_border(chunk * kChunk)) {
      const std::int64_t at = cell.saved.index(part.begin, s, chunk * kChunk, cell.heads, head);
      store_state(cell.saved.c + at * cell.dqk * cell.dv, cell.dv, cell.saved.n + at * cell.dqk);
    }
    const std::int64_t t0 = part.begin + chunk * kChunk;
    const std::int64_t t1 = min(t0 + kChunk, part.begin + part.length);
    const float decay = cell.gate(kDecay, head)[t0];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) c[i][j] *= decay;
    n = __fmul_rn(n, decay);  // in no multiply-add with what follows, as in C
    for (std::int64_t t = t0; t < t1; t += kDepth) {
      const int depth = depth_from(t, t1);
      __syncthreads();
      load(tiles.a, cell.k.row<In>(t) + head * cell.dqk + a0, cell.k.stride, depth, cell.dqk - a0);
      load(tiles.b, cell.v.row<In>(t) + head * cell.dv + x0, cell.v.stride, depth, cell.dv - x0);
      for (int d = threadIdx.x / kTile; d < depth; d += kThreads / kTile)  // as load() put them
        tiles.a[d][threadIdx.x % kTile] *= kept[t + d];
      __syncthreads();
      multiply(tiles, depth, row, column, c);
      if (has_n)
        for (int d = 0; d < depth; ++d) n += tiles.a[d][threadIdx.x];
    }
  }
  if (part.goes_on()) {
    store_state(cell.carry_c(window.carry_out, head), cell.dv,
                cell.carry_n(window.carry_out, head));
  } else if (cell.batch.slots[s] != nullptr) {
    store_state(cell.record_c(s, head), cell.dv, cell.record_n(s, head));
  }
}

/// W of A.4 (3) on and below the diagonal, transposed, and 1/N. A block a chunk and head.
template <class In>
__global__ void __launch_bounds__(kThreads, 3) scores_kernel(Cell cell, Window window) {
  __shared__ Tiles tiles;
  __shared__ float n[kDepth], carried_l[kChunk];
  const std::int64_t state = blockIdx.x, head = blockIdx.y;
  const Chunk chunk(cell, window.begin + state);
  const int row = threadIdx.x / kSide * 4, column = threadIdx.x % kSide * 4;
  const std::int64_t head_column = head * cell.dqk;

  // n q_t by four threads a token.
  const int token = threadIdx.x / 4, part = threadIdx.x % 4;
  float sum[4][4] = {}, n_q = 0;
  for (std::int64_t a = 0; a < cell.dqk; a += kDepth) {
    const int depth = depth_from(a, cell.dqk);
    __syncthreads();
    load_transposed(tiles.a, cell.q.row<In>(chunk.begin) + head_column + a, cell.q.stride,
                    chunk.length, depth);
    load_transposed(tiles.b, cell.k.row<In>(chunk.begin) + head_column + a, cell.k.stride,
                    chunk.length, depth);
    if (static_cast<int>(threadIdx.x) < depth)
      n[threadIdx.x] = cell.state_n(state, head)[a + threadIdx.x];
    __syncthreads();
    multiply(tiles, depth, row, column, sum);
    for (int d = part; d < depth; d += 4) n_q = fmaf(tiles.a[d][token], n[d], n_q);
  }
  n_q += __shfl_xor_sync(~0U, n_q, 1);
  n_q += __shfl_xor_sync(~0U, n_q, 2);
  if (part == 0) carried_l[token] = n_q;
  __syncthreads();

  const auto gate = [&](GateRow r) { return cell.gate(r, head) + chunk.begin; };
  float l[4] = {};
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
      l[i] = __fadd_rn(l[i], weights[i]);  // of what the outputs are made from
    }
    store_four(cell.scores + ((state * cell.heads + head) * kChunk + from) * kChunk + row, weights,
               4);
  }
  for (int i = 0; i < 4; ++i) {
    for (int bits = kSide / 2; bits > 0; bits /= 2) l[i] += __shfl_xor_sync(~0U, l[i], bits);
    const int t = row + i;
    if (column > 0 || t >= chunk.length) continue;
    const float whole = gate(kCarried)[t] * carried_l[t] + l[i];
    gate(kReciprocal)[t] = cell.reciprocal(whole, gate(kFloor)[t]);
    if (cell.saved.any()) cell.saved.l_of(chunk.begin + t, head) = whole;
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
